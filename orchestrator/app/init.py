"""A first recipe: small, complete, and running as it is."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from orchestrator.core.errors import UsageError
from orchestrator.core.files import write_atomic
from orchestrator.core.ids import check_name

_FILES: Final = ("recipe.yaml", "model.py", "train.py")
_NAME: Final = "@NAME@"


def write_recipe(folder: Path) -> tuple[Path, ...]:
    """Write a working recipe into `folder`, which is made; returns the files.

    Raises:
        UsageError: The folder's name is no recipe name, or one of the files is there already.
    """
    name = check_name(folder.resolve().name, "the folder's name")
    present = [file for file in _FILES if (folder / file).exists()]
    if present:
        raise UsageError(
            f"{folder} already has {', '.join(present)}", hint="choose a new folder; nothing is ever overwritten"
        )
    templates = files("orchestrator.app") / "templates"
    written: list[Path] = []
    for file in _FILES:
        text = (templates / f"{file}.tmpl").read_text(encoding="utf-8")
        write_atomic(folder / file, text.replace(_NAME, name).encode())
        written.append(folder / file)
    return tuple(written)
