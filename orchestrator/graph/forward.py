"""Calling a user's module by the names of the recipe: inputs to arguments of `forward`, results to named outputs."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from orchestrator.core.errors import UserCodeError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Binding:
    """How inputs reach `forward`: `names` in the order of its arguments, by keyword or by position."""

    names: tuple[str, ...]
    by_keyword: bool

    def arguments(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments."""
        if self.by_keyword:
            return (), {name: values[name] for name in self.names}
        return tuple(values[name] for name in self.names), {}


def bind(module: torch.nn.Module, input_names: Sequence[str]) -> Binding:
    """Find out how `module.forward` takes the inputs: by name where the names match, else by position.

    Raises:
        UserCodeError: There are several inputs and their names are not those of the arguments.
    """
    parameters = inspect.signature(module.forward).parameters
    named = [name for name, p in parameters.items() if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
    if set(input_names) <= set(named):
        return Binding(tuple(name for name in named if name in set(input_names)), by_keyword=True)
    if len(input_names) == 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return Binding(tuple(input_names), by_keyword=False)
    raise UserCodeError(
        f"forward of {type(module).__name__} takes {named}, the recipe's inputs are {list(input_names)}",
        hint="give `model.inputs` the names of the arguments of `forward`",
    )


def named_outputs(result: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Give the results of `forward` their names: by key for mappings and named tuples, else by position.

    Raises:
        UserCodeError: Their number or keys differ, or one is no tensor.
    """
    fields = cast("Sequence[str]", getattr(result, "_fields", ()))
    if isinstance(result, torch.Tensor):
        found: dict[str, Any] = {names[0]: result} if len(names) == 1 else {}
    elif isinstance(result, Mapping):
        by_key = cast("Mapping[str, Any]", result)
        found = {name: by_key[name] for name in names if name in by_key}
    elif isinstance(result, tuple | list):
        values = cast("Sequence[Any]", result)
        keys = fields if set(names) <= set(fields) else names
        found = dict(zip(keys, values, strict=True)) if len(keys) == len(values) else {}
        found = {name: found[name] for name in names} if found else {}
    else:
        found = {}
    if set(found) != set(names) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UserCodeError(
            f"forward returned {_describe(result)}, the recipe's outputs are {list(names)}",
            hint="return one tensor, a tuple in the order of `model.outputs`, or a dict with their names",
        )
    return found


def forward(module: torch.nn.Module, inputs: Mapping[str, Array], output_names: Sequence[str]) -> dict[str, Array]:
    """Run the module on arrays, without gradients, on the device of its parameters.

    Raises:
        UserCodeError: The module raised, or returned something else than the recipe says.
    """
    first = next(iter(module.parameters()), None)
    device = torch.device("cpu") if first is None else first.device
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)).to(device) for name, value in inputs.items()}  # pyright: ignore[reportUnknownMemberType]
    args, kwargs = bind(module, list(inputs)).arguments(tensors)
    try:
        with torch.no_grad():
            result = module(*args, **kwargs)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        shapes = {name: f"{value.dtype}{list(value.shape)}" for name, value in inputs.items()}
        raise UserCodeError(
            f"forward of {type(module).__name__} raised {type(error).__name__} on {shapes}: {error}",
            hint="check `model.inputs` of the recipe against the module",
        ) from error
    return {name: value.detach().cpu().numpy() for name, value in named_outputs(result, output_names).items()}


@contextmanager
def evaluating(module: torch.nn.Module) -> Generator[None]:
    """Put the module and all its parts into eval mode, and give each its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def tuple_outputs(module: torch.nn.Module, names: Sequence[str]) -> Generator[None]:
    """Make the module return a tuple in the order of `names`; a hook, so that no module name changes."""

    def in_order(_module: torch.nn.Module, _args: Any, result: Any) -> Any:
        return tuple(named_outputs(result, names).values())

    handle = module.register_forward_hook(in_order)
    try:
        yield
    finally:
        handle.remove()


def _describe(result: Any) -> str:
    if isinstance(result, Mapping):
        return f"a mapping with keys {sorted(map(str, cast('Mapping[Any, Any]', result)))}"
    if isinstance(result, tuple | list):
        kinds = [type(item).__name__ for item in cast("Sequence[Any]", result)]
        return f"{type(cast('Any', result)).__name__} of {kinds}"
    return f"a {type(result).__name__}"
