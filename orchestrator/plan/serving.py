"""What the recipe's `serve:` block means for the bundle step: its settings, its entry points, and the files it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.core.digests import sha256_file
from orchestrator.recipe import Recipe
from orchestrator.recipe.serve import ServeTensor
from orchestrator.recipe.source_path import is_in_package, source_path


def serve_spec(recipe: Recipe) -> dict[str, Any]:
    """Return `{"serve": …}` for the bundle's spec; nothing where the recipe has no such block.

    Tensors become a list, since the order of names counts and canonical JSON sorts keys. Files of packages come with their
    digest, since no source of the recipe's folder stands for them.

    Raises:
        RecipeError: A package of `serve.files` is not installed, or has no such file.
    """
    serve = recipe.serve
    if serve is None:
        return {}
    row = serve.model_dump(mode="json", exclude={"inputs", "outputs", "files"})
    return {
        "serve": {
            **row,
            "inputs": _listed(serve.inputs),
            "outputs": _listed(serve.outputs),
            "further": {name: _packaged(name) for name in serve.files},
        }
    }


def bundle_entrypoints(recipe: Recipe) -> list[str]:
    """Return the entry points whose code the bundle carries or is proved with."""
    return [*([recipe.samples] if recipe.samples else []), *serve_entrypoints(recipe)]


def serve_entrypoints(recipe: Recipe) -> list[str]:
    """Return the entry points of the `serve:` block."""
    serve = recipe.serve
    stages = (serve.preprocess, serve.postprocess, serve.samples) if serve is not None else ()
    return [entrypoint for entrypoint in stages if entrypoint]


def _packaged(name: str) -> str:
    return sha256_file(source_path(name, Path())) if is_in_package(name) else ""


def _listed(tensors: Mapping[str, ServeTensor] | None) -> list[dict[str, Any]] | None:
    if tensors is None:
        return None
    return [{"name": name, **tensor.model_dump(mode="json")} for name, tensor in tensors.items()]
