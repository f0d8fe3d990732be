"""Digests of what a step can reach beyond its settings: the user's files and the declared data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orchestrator.core.digests import is_digest, sha256_file, sha256_json
from orchestrator.core.errors import RecipeError
from orchestrator.core.files import regular_files
from orchestrator.plan.fingerprint import package_version
from orchestrator.recipe import Recipe
from orchestrator.recipe.source_files import source_files
from orchestrator.recipe.source_path import is_in_package, source_path


def source_digests(recipe: Recipe, folder: Path) -> Callable[[Sequence[str], Sequence[str]], Mapping[str, str]]:
    """Return a function from entry points and a command to the digest of each file below `folder` they can reach."""
    digests: dict[Path, str] = {}

    def digest(path: Path) -> str:
        if path not in digests:
            digests[path] = sha256_file(path)
        return digests[path]

    def sources(entrypoints: Sequence[str], command: Sequence[str]) -> Mapping[str, str]:
        stages = {recipe.serve.preprocess, recipe.serve.postprocess} if recipe.serve is not None else set[str | None]()
        further = recipe.serve.files if recipe.serve is not None and stages.intersection(entrypoints) else ()
        patterns = [*recipe.files, *(name for name in further if not is_in_package(name))]
        files = source_files(folder, entrypoints, patterns, command=command)
        return {name: digest(path) for name, path in files.items()}

    return sources


def data_identities(recipe: Recipe, folder: Path) -> dict[str, str]:
    """Return what identifies each dataset: its declared digest, its package's version, or the digest of its files.

    Raises:
        RecipeError: A file or folder is not there.
    """
    return {
        name: f"{data.uri}@{data.digest}" if data.digest else _identity(f"data.{name}", data.uri, folder)
        for name, data in recipe.data.items()
    }


def source_identity(recipe: Recipe, folder: Path) -> dict[str, str]:
    """Return what identifies the recipe's `source:`; empty where it has none.

    A file by its content, be it beside the recipe or in a package. A registered model by its version; an alias may point
    elsewhere a moment later, so a plan never takes it for known: the model is fetched again, and what follows is reused
    when its bytes are the same.

    Raises:
        RecipeError: The file or folder is not there.
    """
    source = recipe.source
    if source is None:
        return {}
    if source.mlflow is not None:
        fixed = "@" not in source.mlflow
        return {"source": source.mlflow if fixed else f"{source.mlflow} at {time.time_ns()}"}
    where = source.checkpoint or source.safetensors or source.torch or source.onnx or ""
    if is_in_package(where):
        return {"source": f"{where}@{sha256_file(source_path(where, folder))}"}
    return {"source": where if is_digest(where) else _identity("source", f"file:{where}", folder)}


def _identity(name: str, uri: str, folder: Path) -> str:
    scheme, _, rest = uri.partition(":")
    if scheme == "package":
        package = rest.partition("/")[0]
        return f"{uri}@{package_version(package)}"
    if scheme != "file":
        return uri
    path = (folder / rest.removeprefix("//")).resolve()
    if path.is_file():
        return f"{uri}@{sha256_file(path)}"
    if path.is_dir():
        return f"{uri}@{sha256_json({p.relative_to(path).as_posix(): sha256_file(p) for p in regular_files(path)})}"
    raise RecipeError(
        f"{name}: there is no {path}", place=str(folder), hint="correct the recipe, or put the file there"
    )
