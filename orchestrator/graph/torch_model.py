"""The user's torch module: built by the recipe's factory, loaded from and saved to safetensors. No pickle on our side."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import safetensors
import safetensors.torch
import torch

from orchestrator.core.errors import IntegrityError, OrchestratorError, UserCodeError
from orchestrator.graph.forward import evaluating, forward

Array = np.ndarray[Any, Any]

MODEL_FILE: Final = "model.safetensors"
_STATE_KEYS: Final = ("model", "state_dict", "model_state_dict")
_WRAPPERS: Final = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every name."""

_torch = cast("Any", torch)  # partly untyped
_safetensors = cast("Any", safetensors.torch)  # its PathLike is untyped


def build(factory: str, recipe_dir: Path) -> torch.nn.Module:
    """Import `module:name` from the recipe's folder and call it.

    Raises:
        UserCodeError: It cannot be imported or called, or does not return a `torch.nn.Module`.
    """
    module_name, _, name = factory.partition(":")
    if not module_name or not name:
        raise UserCodeError(f"model.factory {factory!r} is no entry point", hint="write module:name, e.g. model:build")
    _prefer(recipe_dir, module_name.partition(".")[0])
    try:
        function = getattr(importlib.import_module(module_name), name)
        made = function()
    except OrchestratorError:
        raise
    except Exception as error:
        raise UserCodeError(
            f"model.factory {factory!r} raised {type(error).__name__}: {error}",
            place=str(recipe_dir),
            hint="call it in a shell beside the recipe to see the whole traceback",
        ) from error
    if not isinstance(made, torch.nn.Module):
        raise UserCodeError(
            f"model.factory {factory!r} returned a {type(made).__name__}", hint="return a torch.nn.Module"
        )
    return made


def _prefer(folder: Path, package: str) -> None:
    """Make `folder` the first place to import from, and forget a module of this name that came from elsewhere."""
    text = str(folder.absolute())
    if sys.path[:1] != [text]:
        sys.path.insert(0, text)
    known = sys.modules.get(package)
    origin = getattr(known, "__file__", None) if known is not None else None
    ours = any((folder / f"{package}{suffix}").exists() for suffix in (".py", "/__init__.py"))
    if origin and ours and not Path(origin).is_relative_to(folder.absolute()):
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        importlib.invalidate_caches()


def save_checkpoint(module: torch.nn.Module, folder: Path) -> Path:
    """Write `model.safetensors` into `folder`; the same weights give the same bytes.

    Raises:
        UserCodeError: The state holds something that is no tensor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return _save(dict(module.state_dict()), folder / MODEL_FILE)


def load_checkpoint(module: torch.nn.Module, folder: Path) -> None:
    """Load `model.safetensors` of `folder` into the module; every name and shape must fit.

    Raises:
        IntegrityError: The file is absent or damaged.
        UserCodeError: The file is that of another model; the message lists what differs.
    """
    path = folder / MODEL_FILE
    try:
        found = cast("dict[str, torch.Tensor]", _safetensors.load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise IntegrityError(
            f"cannot read {MODEL_FILE}: {error}", place=str(folder), hint="train or import it again"
        ) from error
    wanted = module.state_dict()
    problems = {
        "missing": sorted(set(wanted) - set(found)),
        "unexpected": sorted(set(found) - set(wanted)),
        "other shape or dtype": [
            f"{name} is {_describe(found[name])}, the module has {_describe(tensor)}"
            for name, tensor in wanted.items()
            if name in found and (found[name].shape != tensor.shape or found[name].dtype != tensor.dtype)
        ],
    }
    said = [f"{what}: {_shortened(names)}" for what, names in problems.items() if names]
    if said:
        raise UserCodeError(
            f"the checkpoint does not fit {type(module).__name__}; " + "; ".join(said),
            place=str(path),
            hint="`model.factory` must build the module that was trained",
            details={what: names[:100] for what, names in problems.items()},
        )
    module.load_state_dict(found, strict=True)


def torch_file_to_safetensors(path: Path, out: Path) -> Path:
    """Read a `torch.save` file of plain tensors and write it as the safetensors file `out`.

    The tensors may be the whole file or lie under `model`, `state_dict` or `model_state_dict`; the prefixes of
    DistributedDataParallel and torch.compile are stripped. Shared tensors are written once per name.

    Raises:
        UserCodeError: The file holds Python objects, no tensors, or is no torch file.
    """
    hint = "save it with torch.save(model.state_dict(), path) or as safetensors"
    try:
        data: object = _torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).splitlines()[0]
        raise UserCodeError(
            f"{path.name} holds Python objects, which are never loaded: {first}", place=str(path), hint=hint
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserCodeError(f"{path.name} is no readable torch file: {error}", place=str(path), hint=hint) from error
    state = _state_of(data)
    if state is None:
        keys = (
            sorted(map(str, cast("Mapping[object, object]", data)))[:20]
            if isinstance(data, Mapping)
            else type(data).__name__
        )
        raise UserCodeError(f"{path.name} holds no state dict; it holds {keys}", place=str(path), hint=hint)
    out.parent.mkdir(parents=True, exist_ok=True)
    return _save(state, out)


def _state_of(data: object) -> dict[str, Any] | None:
    if not isinstance(data, Mapping):
        return None
    mapping = cast("Mapping[str, Any]", data)
    for candidate in (mapping, *(mapping[key] for key in _STATE_KEYS if key in mapping)):
        if isinstance(candidate, Mapping) and candidate:
            state = dict(cast("Mapping[Any, Any]", candidate))
            if all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()):
                return _unwrapped(state)
    return None


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    for prefix in (*_WRAPPERS, *_WRAPPERS):  # compiled and distributed, in either order
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _save(state: Mapping[str, Any], path: Path) -> Path:
    others = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others or not state:
        what = f"{_shortened(others)} are no tensors" if others else "it is empty"
        raise UserCodeError(
            f"the state of the model cannot be saved: {what}", hint="keep only tensors in the state dict"
        )
    # Clones, so that tensors that share memory become separate: any safetensors reader then loads every name.
    tensors = {name: cast("torch.Tensor", state[name]).detach().cpu().clone().contiguous() for name in sorted(state)}
    _safetensors.save_file(tensors, path, {"format": "pt"})
    return path


def predictor(
    module: torch.nn.Module, output_names: tuple[str, ...] | list[str]
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """Return `predict(inputs) -> outputs`, both by name, in eval mode and without gradients."""

    def predict(inputs: Mapping[str, Array]) -> dict[str, Array]:
        with evaluating(module):
            return forward(module, inputs, list(output_names))

    return predict


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
