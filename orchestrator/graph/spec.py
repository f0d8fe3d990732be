"""Tensors by name, dtype and shape, as a recipe declares them, and the check of arrays against that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.core.errors import GateError, OrchestratorError, RecipeError

if TYPE_CHECKING:
    import numpy as np

DTYPES: Final = (
    "float32", "float16", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        dtype: numpy's name, e.g. `float32`.
        shape: A positive int is fixed; a text names a dimension that may vary, equal wherever the name is.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def dynamic(self) -> dict[int, str]:
        """Axis -> name of each dimension that may vary."""
        return {axis: dim for axis, dim in enumerate(self.shape) if isinstance(dim, str)}

    def to_json(self) -> dict[str, object]:
        """Return `{name, dtype, shape}`."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(str(dim) for dim in self.shape)}]"


def specs(declared: Mapping[str, Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Read `{name: {dtype, shape}}`, the form of a recipe's `model.inputs` and `model.outputs`, in its order.

    Raises:
        RecipeError: A dtype or a dimension is none.
    """
    return tuple(_spec(name, body.get("dtype", "float32"), body.get("shape", ())) for name, body in declared.items())


def specs_from_list(items: Iterable[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Read `[{name, dtype, shape}]`, the form of `onnx.json`.

    Raises:
        RecipeError: A dtype or a dimension is none.
    """
    return tuple(_spec(str(item["name"]), item["dtype"], item["shape"]) for item in items)


def _spec(name: str, dtype: object, shape: Sequence[object]) -> TensorSpec:
    if dtype not in DTYPES:
        raise RecipeError(f"tensor {name!r} has unknown dtype {dtype!r}", hint=f"use one of {', '.join(DTYPES)}")
    dims: list[int | str] = []
    for dim in shape:
        if isinstance(dim, bool) or not isinstance(dim, int | str) or (isinstance(dim, int) and dim < 1) or dim == "":
            raise RecipeError(f"tensor {name!r} has dimension {dim!r}", hint="use a positive number or a name")
        dims.append(dim)
    return TensorSpec(name, str(dtype), tuple(dims))


def check_arrays(
    expected: Sequence[TensorSpec],
    arrays: Mapping[str, np.ndarray[Any, Any]],
    what: str,
    *,
    error: type[OrchestratorError] = GateError,
) -> dict[str, int]:
    """Check names, dtypes, ranks and dimensions; return the size that each named dimension has.

    Args:
        expected: What the recipe or the graph declares.
        arrays: What there is.
        what: What the arrays are, for the message: `sample 3`, `output of the ONNX graph`.
        error: The family to raise.

    Raises:
        OrchestratorError: As `error`, naming the tensor, what is expected and what was found.
    """
    names, found = [spec.name for spec in expected], list(arrays)
    if set(names) != set(found):
        raise error(
            f"{what} has tensors {sorted(found)}, expected {sorted(names)}",
            hint="use the names of `model.inputs` and `model.outputs` of the recipe",
        )
    sizes: dict[str, int] = {}
    for spec in expected:
        array = arrays[spec.name]
        problem = _mismatch(spec, str(array.dtype), array.shape, sizes)
        if problem:
            shown = f"{array.dtype}[{', '.join(str(dim) for dim in array.shape)}]"
            raise error(
                f"{what}: tensor {spec.name!r} is {shown}, expected {spec.dtype}[{', '.join(map(str, spec.shape))}]: {problem}",
                hint="correct the recipe's `model` section or the code that makes the tensor",
            )
    return sizes


def _mismatch(spec: TensorSpec, dtype: str, shape: Sequence[int], sizes: dict[str, int]) -> str:
    if dtype != spec.dtype:
        return f"dtype {dtype} is not {spec.dtype}"
    if len(shape) != len(spec.shape):
        return f"rank {len(shape)} is not {len(spec.shape)}"
    for axis, (dim, size) in enumerate(zip(spec.shape, shape, strict=True)):
        wanted = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
        if size != wanted:
            label = f"{dim!r} is {wanted} elsewhere but" if isinstance(dim, str) else f"expected {wanted} but"
            return f"axis {axis}: {label} {size} here"
    return ""
