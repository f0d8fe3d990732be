"""Sizes that vary: from a model's named dimensions, gears and ranges to what a batch must be padded to, and cut back from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from orchestrator.core.errors import ServingError
from orchestrator.serving.protocol.tensors import ITEM_BYTES, Dim, Tensor, TensorSpec, count
from orchestrator.serving.runtimes.api import Bucket, InputRejected

if TYPE_CHECKING:
    from orchestrator.bundle.variant import Variant

MAX_BATCH: Final = 32
"""Rows of a batch where the model takes any number."""
_DTYPES: Final = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "bfloat16": "BF16", "float32": "FP32",
    "float64": "FP64", "string": "BYTES",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fit:
    """How a batch runs.

    Attributes:
        sizes: Every named dimension.
        rows: Rows that were given.
        batch: Rows that run; those beyond `rows` are padding.
    """

    sizes: Mapping[str, int]
    rows: int
    batch: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a model takes, with its gears.

    Only the batch is padded: a longer sequence or a larger picture is another input, so every other size must be one that
    the model was compiled for.

    Attributes:
        inputs: As the session shows them: a size with a single value is a number.
        outputs: Likewise.
        named: The inputs with all their names.
        batch: Name of axis 0 of every input and output; empty where rows have no meaning.
        gears: Every combination of sizes that it was compiled for; empty where any will do.
        ranges: Name -> least and most.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    named: tuple[TensorSpec, ...]
    batch: str
    gears: tuple[Mapping[str, int], ...]
    ranges: Mapping[str, tuple[int, int]]

    @property
    def max_batch(self) -> int:
        """Most rows of one batch."""
        if not self.batch:
            return 1
        if self.batch in self.ranges:
            return self.ranges[self.batch][1]
        return max((gear[self.batch] for gear in self.gears if self.batch in gear), default=MAX_BATCH)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes of every gear; for ranges those of both ends."""
        ends = [{name: limits[end] for name, limits in self.ranges.items()} for end in range(2 if self.ranges else 1)]
        combined = [{**gear, **end} for gear in self.gears or ({},) for end in ends]
        names = {dim for spec in self.named for dim in spec.dims if isinstance(dim, str)}
        return tuple(
            {spec.name: self.shape(spec, sizes) for spec in self.named} for sizes in combined if names <= set(sizes)
        )

    def shape(self, spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the concrete shape of an input or output."""
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in spec.dims)

    def fit(self, inputs: Sequence[Tensor]) -> Fit:
        """Find the smallest gear that takes these inputs.

        Raises:
            InputRejected: There is none; the message lists the sizes that there are.
        """
        pairs = [(t.shape, spec.dims) for t, spec in zip(inputs, self.named, strict=True)]
        found = {d: n for shape, dims in pairs for n, d in zip(shape, dims, strict=True) if isinstance(d, str)}
        for name, (least, most) in self.ranges.items():
            if name != self.batch and not least <= found.get(name, least) <= most:
                raise InputRejected(f"size {name!r} is {found[name]}; the model takes {least} to {most}")
        rows = found.get(self.batch, 1)
        fits = [gear for gear in self.gears or ({},) if self._takes(gear, found, rows)]
        if not fits:
            had = "; ".join(", ".join(f"{k} {v}" for k, v in gear.items()) for gear in self.gears)
            raise InputRejected(f"the model was not compiled for {found}; it takes {had}"[:1000])
        best = min(fits, key=lambda gear: gear.get(self.batch, rows))
        batch = max(best.get(self.batch, rows), self.ranges.get(self.batch, (rows, rows))[0])
        sizes = {**found, **best, **({self.batch: batch} if self.batch else {})}
        return Fit(sizes, rows, batch)

    def _takes(self, gear: Mapping[str, int], found: Mapping[str, int], rows: int) -> bool:
        others = all(found.get(name, size) == size for name, size in gear.items() if name != self.batch)
        return others and rows <= gear.get(self.batch, rows)


def batches(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Axis 0 is a batch when it has one name in every input and output; rows of unlike meaning must not be joined."""
    first = {spec.dims[0] if spec.dims else 0 for spec in (*inputs, *outputs)}
    return len(first) == 1 and isinstance(first.pop(), str) and bool(inputs) and bool(outputs)


def sizes_of(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    gears: Sequence[Mapping[str, int]] = (),
    fixed: Mapping[str, int] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
) -> Sizes:
    """Settle the named dimensions of a signature."""
    limits = dict(ranges or {})
    rows = tuple({**(fixed or {}), **gear} for gear in gears)
    rows = tuple(row for row in rows if row)
    batch = str(inputs[0].dims[0]) if batches(inputs, outputs) else ""
    if any(batch in spec.dims[1:] for spec in (*inputs, *outputs)):
        batch = ""
    single = {name: size for row in rows for name, size in row.items() if all(r.get(name) == size for r in rows)}
    several = batch in single and single[batch] > 1
    shown = {name: size for name, size in single.items() if not (name == batch and several)}
    if batch in shown:
        batch = ""
    plain = tuple(_settled(spec, shown) for spec in inputs), tuple(_settled(spec, shown) for spec in outputs)
    return Sizes(*plain, tuple(inputs), batch, rows, limits)


def sizes_of_variant(variant: Variant) -> Sizes:
    """Settle the named dimensions of a variant, as it was compiled."""
    shapes = cast("Mapping[str, Any]", variant.facts.get("shapes") or {})
    ranges = {name: (int(ends[0]), int(ends[1])) for name, ends in dict(shapes.get("ranges") or {}).items()}
    inputs, outputs = (tuple(map(_spec, rows)) for rows in (variant.inputs, variant.outputs))
    return sizes_of(inputs, outputs, variant.gears, dict(shapes.get("fixed") or {}), ranges)


def padded(tensor: Tensor, fit: Fit) -> Tensor:
    """Return the tensor with rows of zeros up to the batch that runs."""
    if fit.batch == fit.rows or not tensor.shape:
        return tensor
    shape = (fit.batch, *tensor.shape[1:])
    missing = (fit.batch - fit.rows) * count(tensor.shape[1:]) * (ITEM_BYTES[tensor.datatype] or 4)
    return Tensor(tensor.name, tensor.datatype, shape, b"".join((tensor.data, bytes(missing))))


def cut(tensor: Tensor, fit: Fit) -> Tensor:
    """Return the rows that were asked for."""
    if fit.batch == fit.rows or tensor.shape[:1] != (fit.batch,):
        return tensor
    keep = fit.rows * count(tensor.shape[1:]) * ITEM_BYTES[tensor.datatype]
    return Tensor(tensor.name, tensor.datatype, (fit.rows, *tensor.shape[1:]), memoryview(tensor.data)[:keep])


def oip_datatype(dtype: str, name: str) -> str:
    """Return the protocol's word for a NumPy dtype.

    Raises:
        ServingError: It has none.
    """
    found = _DTYPES.get(dtype)
    if found is None:
        raise ServingError(f"tensor {name!r} is {dtype}, which cannot be served")
    return found


def _spec(row: Mapping[str, Any]) -> TensorSpec:
    name, dims = str(row["name"]), cast("Sequence[Dim]", row["shape"])
    return TensorSpec(name, oip_datatype(str(row["dtype"]), name), tuple(dims))


def _settled(spec: TensorSpec, shown: Mapping[str, int]) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, tuple(shown.get(d, d) if isinstance(d, str) else d for d in spec.dims))
