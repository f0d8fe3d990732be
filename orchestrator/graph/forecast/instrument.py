"""Statistics computed inside the graph: each right after the node that writes the tensor, a few scalars as the only output.

With the node order as the order of execution a tensor is freed as soon as its statistics are taken; marking every tensor
as an output instead would hold them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from orchestrator.graph.forecast.batches import Batches
from orchestrator.graph.forecast.workspace import Workspace

Array = np.ndarray[Any, Any]

PREFIX: Final = "forecast/"
"""Begins the name of every tensor and node that a probe adds."""

SAMPLE_VALUES: Final = 8192
"""Values per tensor that are taken out, evenly spaced, for shares and histograms; over all runs together."""
_LEAST_VALUES: Final = 256
"""In each run."""


@dataclass(slots=True)
class Instrument:
    """Collects nodes, and the scalars to take out of them.

    Attributes:
        nodes: In order of execution.
        rows: Name of the scalar -> its place in the vector that a run returns.
    """

    space: Workspace
    nodes: list[Any] = field(default_factory=list[Any])
    initializers: list[Any] = field(default_factory=list[Any])
    rows: list[str] = field(default_factory=list[str])
    samples: list[str] = field(default_factory=list[str])
    _known: dict[tuple[str, bytes], str] = field(default_factory=dict[tuple[str, bytes], str])
    _count: int = 0

    def emit(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append one node and return its output."""
        self._count += 1
        name = f"{PREFIX}{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Return the name of a constant; equal ones are shared."""
        array = np.asarray(value, dtype)
        key = (str(array.dtype) + str(array.shape), array.tobytes())
        if key not in self._known:
            self._known[key] = f"{PREFIX}constant{len(self._known)}"
            self.initializers.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def scalar(self, label: str, tensor: str) -> None:
        """Take out `tensor`, which has shape [1]."""
        self.rows.append(label)
        self._vector.append(tensor)

    _vector: list[str] = field(default_factory=list[str])

    def flat(self, tensor: str) -> str:
        """Return `tensor` as one axis."""
        return self.emit("Reshape", tensor, self.constant([-1], np.int64))

    def reduce(self, kind: str, flat: str) -> str:
        """Reduce a flat tensor to shape [1]."""
        return self.emit(kind, flat, keepdims=1)

    def count(self, flags: str) -> str:
        """Count true elements of a flat bool tensor; shape [1]."""
        return self.reduce("ReduceSum", self.emit("Cast", flags, to=TensorProto.FLOAT))

    def sample(self, tensor: str, flat: str, elements: int, runs: int) -> None:
        """Take out a part of `SAMPLE_VALUES` values of a tensor, evenly spaced over its `elements`, in each of `runs` runs."""
        step = max(1, elements // max(_LEAST_VALUES, SAMPLE_VALUES // runs))
        if step > 2:
            step |= 1  # an odd step does not keep to one column of a power-of-two shape
        bounds = [self.constant([bound], np.int64) for bound in (0, elements, 0, step)]
        self.samples.append(tensor)
        self._slices.append(self.emit("Slice", flat, *bounds))

    _slices: list[str] = field(default_factory=list[str])

    def build(self, *, outputs: Iterable[Any] = ()) -> onnx.ModelProto:
        """Return the graph with the vector of scalars, the samples and `outputs` as its outputs."""
        extra: list[Any] = []
        if self._vector:
            self.nodes.append(
                helper.make_node("Concat", self._vector, [f"{PREFIX}scalars"], name=f"{PREFIX}scalars", axis=0)
            )
            extra.append(helper.make_tensor_value_info(f"{PREFIX}scalars", TensorProto.FLOAT, [len(self._vector)]))
        extra += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self._slices]
        return self.space.derived(self.nodes, initializers=self.initializers, outputs=[*extra, *outputs])


@dataclass(slots=True)
class Taken:
    """What the runs of an instrumented graph gave.

    Attributes:
        scalars: Label -> one value per batch, float64.
        samples: Tensor -> values of all batches, float32.
        outputs: The graph's own outputs, samples stacked.
    """

    scalars: dict[str, Array]
    samples: dict[str, Array]
    outputs: dict[str, Array]


def take(made: Instrument, batches: Batches, *, outputs: Iterable[Any] = ()) -> Taken:
    """Run an instrumented graph over all batches.

    Raises:
        GateError: The runtime refuses the graph or fails on the samples.
    """
    own = list(outputs)
    session = made.space.session(made.build(outputs=own))
    names = [entry.name for entry in session.get_outputs()]
    vectors: list[Array] = []
    samples: list[list[Array]] = []
    results: list[list[Array]] = []
    first = 1 if made.rows else 0
    for feed in batches:
        found = made.space.run(session, names, feed)
        vectors.append(found[0].astype(np.float64) if first else np.empty(0))
        samples.append([np.asarray(value) for value in found[first : first + len(made.samples)]])
        results.append(found[first + len(made.samples) :])
    table = np.stack(vectors)
    return Taken(
        {label: table[:, place] for place, label in enumerate(made.rows)},
        {name: np.concatenate([piece[i] for piece in samples]) for i, name in enumerate(made.samples)},
        {entry.name: np.concatenate([piece[i] for piece in results]) for i, entry in enumerate(own)},
    )
