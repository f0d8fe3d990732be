"""What a checkpoint holds: tensors in safetensors, everything else in JSON. No pickle, so nothing in it can run.

`state_dict()` of a model, optimizer, scheduler or gradient scaler is a tree of dicts, lists, tensors and scalars. The
tree goes to `state.json`; each tensor in it is replaced by `{"$tensor": key}` and stored under that key.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, cast

import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]  untyped PathLike

from orchestrator.core.files import write_json
from orchestrator.steps.train_checkpoint import MODEL_FILE, OPTIMIZER_FILE, STATE_FILE

SCHEMA: Final = 1
_SEED_BITS: Final = 63


class Stateful(Protocol):
    """Anything with a state: optimizer, learning-rate scheduler, gradient scaler, or an object of your own."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: dicts, lists, tuples, tensors and scalars."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take the state over."""
        ...


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """Return the user's module below DistributedDataParallel and `torch.compile`."""
    while True:
        inner: object = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, torch.nn.parallel.DistributedDataParallel):
            inner = cast("torch.nn.Module", model.module)
        if not isinstance(inner, torch.nn.Module):
            return model
        model = inner


def write_state(
    folder: Path, model: torch.nn.Module, states: Mapping[str, Stateful], facts: Mapping[str, object]
) -> None:
    """Write `model.safetensors`, `optimizer.safetensors` and `state.json` into `folder`.

    Args:
        folder: An empty folder.
        model: Wrapped or not; its tensors are copied to the CPU, so that tied weights are stored twice.
        states: Optimizer, scheduler … by name.
        facts: JSON-ready; merged into `state.json`.

    Raises:
        TypeError: A state holds something that is neither tensor nor JSON.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, value in unwrap(model).state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"the model's state {name!r} is a {type(value).__name__}; only tensors can be stored")
        weights[name] = _own(value)
    tensors: dict[str, torch.Tensor] = {}
    packed = {name: pack(state.state_dict(), tensors, name) for name, state in states.items()}
    save_file(weights, folder / MODEL_FILE)
    if tensors:
        save_file(tensors, folder / OPTIMIZER_FILE)
    write_json(folder / STATE_FILE, {"schema": SCHEMA, **facts, "states": packed})


def read_state(folder: Path, model: torch.nn.Module, states: Mapping[str, Stateful]) -> dict[str, Any]:
    """Load a checkpoint into `model` and `states`, and return what `state.json` says beside them.

    Raises:
        KeyError: The checkpoint has no state of that name.
        RuntimeError: Names or shapes of the weights differ.
    """
    facts = cast("dict[str, Any]", json.loads((folder / STATE_FILE).read_bytes()))
    unwrap(model).load_state_dict(load_file(folder / MODEL_FILE))
    path = folder / OPTIMIZER_FILE
    tensors = load_file(path) if path.exists() else {}
    packed = cast("dict[str, Any]", facts.pop("states"))
    for name, state in states.items():
        if name not in packed:
            raise KeyError(f"the checkpoint holds no {name!r}, only {sorted(packed)}")
        state.load_state_dict(cast("dict[str, Any]", unpack(packed[name], tensors)))
    return facts


def pack(value: object, tensors: dict[str, torch.Tensor], path: str) -> object:
    """Return the JSON form of a state's tree; its tensors are added to `tensors` under their path.

    Raises:
        TypeError: Something is neither tensor nor JSON.
    """
    if isinstance(value, torch.Tensor):
        tensors[path] = _own(value)
        return {"$tensor": path}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value)
        return {"$map": [[pack(k, tensors, ""), pack(v, tensors, f"{path}.{k}")] for k, v in items.items()]}
    if isinstance(value, list | tuple):
        parts = cast("list[object] | tuple[object, ...]", value)
        packed = [pack(part, tensors, f"{path}.{index}") for index, part in enumerate(parts)]
        return {"$tuple": packed} if isinstance(value, tuple) else packed
    raise TypeError(f"{path} is a {type(value).__name__}; a checkpoint stores tensors, numbers, text and containers")


def unpack(value: object, tensors: Mapping[str, torch.Tensor]) -> object:
    """Return the tree that `pack` was given."""
    if isinstance(value, list):
        return [unpack(part, tensors) for part in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    (kind, body), *_ = cast("dict[str, Any]", value).items()
    if kind == "$tensor":
        return tensors[body]
    if kind == "$float":
        return float(body)
    if kind == "$tuple":
        return tuple(unpack(part, tensors) for part in body)
    return {unpack(key, tensors): unpack(item, tensors) for key, item in body}


def seed_all(seed: int, *parts: int) -> None:
    """Seed torch, random and (where user code loaded it) numpy with one number made of all parts."""
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % (1 << _SEED_BITS)
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]  torch leaves it untyped
    random.seed(seed)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(seed % (1 << 32))


def _own(tensor: torch.Tensor) -> torch.Tensor:
    # A copy: safetensors refuses tensors that share memory, and the original may live on a device.
    return tensor.detach().to("cpu", copy=True).contiguous()
