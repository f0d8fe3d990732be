"""Writing a twin beside a note of what it emulates."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from orchestrator.ascend.precision import Policy
from orchestrator.core.errors import GateError
from orchestrator.core.files import write_atomic, write_json
from orchestrator.graph.read import load_model
from orchestrator.graph.twin.edges import plan_edges
from orchestrator.graph.twin.emulate import build_twin
from orchestrator.graph.twin.weights import FileToFile
from orchestrator.graph.twin.wires import Edges

MODEL_NAME: Final = "model.onnx"
NOTE_NAME: Final = "twin.json"
_EXTERNAL_NAME: Final = "model.onnx.data"


@dataclass(frozen=True, slots=True)
class TwinInfo:
    """What a twin emulates.

    Attributes:
        path: The graph.
        policy: Mode, SoC, saturation, format of sums, and the assumptions.
        keep: Nodes kept in fp32.
        rounded: Tensors that are rounded somewhere, as `path of the graph:name`, the path left out for the main graph.
        kept_by_policy: Names of nodes that the mode leaves in fp32.
        unrounded: Tensors that are left alone though the target may round them, each with the reason.
    """

    path: Path
    policy: Policy
    keep: tuple[str, ...]
    rounded: tuple[str, ...]
    kept_by_policy: tuple[str, ...]
    unrounded: Mapping[str, str]

    def to_json(self) -> dict[str, object]:
        """Return the note, JSON-ready."""
        return {
            "schema": 1, **self.policy.to_json(), "keep": list(self.keep), "rounded": list(self.rounded),
            "kept_by_policy": list(self.kept_by_policy), "unrounded": dict(self.unrounded),
        }  # fmt: skip


def write_twin(source: Path, out: Path, policy: Policy, *, keep: Collection[str] = ()) -> TwinInfo:
    """Write the twin of the graph at `source` as `out/model.onnx`, its weights beside it if the source has them so.

    External weights are rounded from file to file, a piece at a time: a twin of a graph of many GB needs little memory.

    Args:
        source: A graph in fp32.
        out: A folder of its own; made where it is missing.
        policy: What the target does.
        keep: Names of nodes that stay in fp32.

    Raises:
        GateError: The file is refused, the graph is of an opset below 11, or computes in 16-bit floats itself.
        PlanError: `keep` names no node, or one that this SoC cannot compute in fp32.
    """
    model = load_model(source, weights=False)
    edges = plan_edges(model, policy, keep)
    out.mkdir(parents=True, exist_ok=True)
    target, external = out / MODEL_NAME, out / _EXTERNAL_NAME
    with external.open("wb") as data:
        weights = FileToFile(source.parent, _EXTERNAL_NAME, data, edges.low, saturating=edges.saturating)
        twin = build_twin(model, policy, edges, weights)
    del model
    if external.stat().st_size == 0:
        external.unlink()
    write_atomic(target, _serialised(twin))
    info = TwinInfo(target, policy, tuple(sorted(keep)), _rounded(edges), _kept(edges), edges.unrounded)
    write_json(out / NOTE_NAME, info.to_json())
    return info


def _serialised(twin: onnx.ModelProto) -> bytes:
    try:
        return twin.SerializeToString(deterministic=True)
    except ValueError as error:
        raise GateError("the twin is larger than 2 GiB", hint="export the model with external data") from error


def _rounded(edges: Edges) -> tuple[str, ...]:
    found = (wire for wire in edges.wires.values() if wire.rounds)
    return tuple(f"{wire.scope}:{wire.name}" if wire.scope else wire.name for wire in found)


def _kept(edges: Edges) -> tuple[str, ...]:
    uses = (use for use in edges.nodes.values() if use.op_type != "Constant" and not use.kept)
    low = ("fp16", "bf16")
    return tuple(use.name for use in uses if use.rounding.output not in low and use.rounding.inputs not in low)
