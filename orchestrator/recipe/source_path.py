"""Where the file lies that a recipe's `source:` names: below or beside the recipe, or inside an installed package."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Final

from orchestrator.core.errors import RecipeError

PACKAGE: Final = "package:"


def is_in_package(where: str) -> bool:
    """Return whether `where` names a file of an installed package."""
    return where.startswith(PACKAGE)


def source_path(where: str, folder: Path) -> Path:
    """Return the path of `where`; a path of the recipe's is returned as it is, even where nothing is there.

    Args:
        where: `package:NAME/path`, with the path as the package installs it (`python -m pip show -f NAME` lists them),
            or a path that is absolute or relative to `folder`.
        folder: The recipe's.

    Raises:
        RecipeError: The package is not installed, or did not install such a file.
    """
    if not is_in_package(where):
        return folder / where
    name, _, inside = where.removeprefix(PACKAGE).partition("/")
    try:
        package = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise RecipeError(
            f"the package {name!r} is not installed", hint=f"install it: python -m pip install {name}"
        ) from error
    installed = {file.as_posix() for file in package.files or ()}  # so that `..` leads nowhere
    path = Path(str(package.locate_file(inside)))
    if inside not in installed or not path.is_file():
        raise RecipeError(
            f"the package {name} {package.version} has no file {inside!r}",
            hint=f"`python -m pip show -f {name}` lists its files",
        )
    return path.resolve()
