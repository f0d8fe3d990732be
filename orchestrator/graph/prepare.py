"""The graph that a target's toolchain reads: rewritten where it must be, proved, and byte for byte the same where not."""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from orchestrator.ascend.gears import LARGEST_SIZE
from orchestrator.ascend.toolchains import Toolchain, toolchain_called
from orchestrator.core.errors import PlanError
from orchestrator.core.files import write_json
from orchestrator.graph.model_io import infer, read_ir, write_ir
from orchestrator.graph.prove import Proof
from orchestrator.graph.read import MODEL_ONNX, GraphInfo, inspect_onnx
from orchestrator.graph.rewrites import REWRITES, Changes, Context, Rewrite
from orchestrator.graph.rewrites.base import Equivalence
from orchestrator.graph.rewrites.shapes import quantised

Array = np.ndarray[Any, Any]

PREPARED_JSON: Final = "prepared.json"

_SHAPES_CHANGE: Final = frozenset({"fix_shapes", "decompose_group_normalization"})
"""Rewrites after which more is known: sizes, and what comes behind a GroupNormalization, which ONNX cannot infer."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A rewrite that changed the graph.

    Attributes:
        nodes: Names of the nodes (or inputs) it touched, as they were called before.
        max_abs: Largest |before - after| over all outputs; None when the graph could not be run.
        worst_sqnr_db: Least SQNR of any sample of any float output; None likewise.
    """

    rewrite: str
    equivalence: Equivalence
    nodes: tuple[str, ...]
    max_abs: float | None
    worst_sqnr_db: float | None

    def to_json(self) -> dict[str, object]:
        """Return the fields, JSON-ready."""
        return {
            "rewrite": self.rewrite,
            "equivalence": self.equivalence,
            "nodes": list(self.nodes),
            "max_abs": self.max_abs,
            "worst_sqnr_db": self.worst_sqnr_db,
        }


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` made.

    Attributes:
        path: The graph.
        opset: Its opset, read back.
        notes: For people: what was left alone and why, gears, quantised nodes.
    """

    path: Path
    opset: int
    applied: tuple[Applied, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the content of `prepared.json`, without what was asked."""
        return {"opset": self.opset, "applied": [item.to_json() for item in self.applied], "notes": list(self.notes)}


def prepare(
    source: Path,
    out: Path,
    *,
    toolchain: str,
    soc: str | None,
    precision: str = "fp16",
    shapes: Mapping[str, Sequence[int]] | None = None,
    switches: Mapping[str, bool] | None = None,
    samples: Mapping[str, Array] | None = None,
) -> Prepared:
    """Write `out/model.onnx` and `out/prepared.json`.

    Args:
        source: The exported graph.
        out: A folder; made where absent, its model replaced.
        toolchain: Key of the toolchain that will read the graph.
        soc: The SoC, or None.
        precision: The target's mode; recorded.
        shapes: Dimension name -> sizes. One size fixes the dimension; several are gears, and it stays open.
        switches: Rewrite -> on or off, in place of its default.
        samples: Inputs for the proof, axis 0 the sample; inputs out of nothing when None.

    Raises:
        PlanError: An unknown toolchain or rewrite, or a size below 1.
        GateError: The graph is refused, cannot be brought to an opset that the toolchain reads, or a rewrite proved wrong.
    """
    chain = toolchain_called(toolchain)
    chosen = dict(switches or {})
    sizes = _sizes(shapes or {})
    _check_switches(chosen)
    info = inspect_onnx(source)
    context = Context(toolchain, _opset(info, chain), soc, sizes)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=out) as folder:
        run = _Run(source, Path(folder), info, context, samples)
        for rewrite in REWRITES.values():
            if _is_on(rewrite, toolchain, chosen):
                run.apply(rewrite, forced=chosen.get(rewrite.name, False))
        notes = (*_head_notes(info, chain), *run.notes)
        path = _install(run.stage or source, out)
    done = inspect_onnx(path)
    prepared = Prepared(path, done.opset, tuple(run.applied), tuple(dict.fromkeys(notes)))
    asked = {
        "toolchain": toolchain, "soc": soc, "precision": precision,
        "shapes": {name: list(values) for name, values in sizes.items()}, "switches": chosen,
        "source_opset": info.opset, "samples": "synthetic" if samples is None else "given",
    }  # fmt: skip
    write_json(out / PREPARED_JSON, {**asked, **prepared.to_json()})
    return prepared


class _Run:
    """The graph on its way: the model in memory, the file of its last stage, and what was done."""

    def __init__(
        self, source: Path, folder: Path, info: GraphInfo, context: Context, samples: Mapping[str, Array] | None
    ) -> None:
        self.source, self.folder, self.context = source, folder, context
        self.model = read_ir(source)
        self.stage: Path | None = None
        self.applied: list[Applied] = []
        self.notes: list[str] = list(_quantised_notes(self.model))
        self._info, self._samples = info, samples
        self._proof: Proof | None = None
        self._count = 0

    def apply(self, rewrite: Rewrite, *, forced: bool) -> None:
        """Run one rewrite, write what came out, and prove it; again where new types let it go on."""
        context = replace(self.context, forced=forced)
        changes: Changes = rewrite.apply(self.model, context)
        nodes, again = list(changes.nodes), changes
        while again and (again.stuck or rewrite.name in _SHAPES_CHANGE):
            self._write()
            infer(self.model, self._staged())
            again = rewrite.apply(self.model, context) if again.stuck else Changes()
            nodes.extend(again.nodes)
        self.notes.extend((*changes.notes, *(again.stuck or ())))
        if not nodes:
            return
        self._write()
        figures = self._prove(rewrite)
        self.applied.append(Applied(rewrite.name, rewrite.equivalence, tuple(nodes), *figures))

    def _prove(self, rewrite: Rewrite) -> tuple[float | None, float | None]:
        if self._proof is None:  # nothing is run for a graph that needs no rewrite
            self._proof = Proof(self.source, self._info, self.context.shapes, self._samples)
            if self._proof.unproved:
                self.notes.append(f"rewrites are not proved, the graph does not run here: {self._proof.unproved}")
        difference = self._proof.check(rewrite.name, rewrite.equivalence, self._staged())
        return (None, None) if difference is None else (difference.max_abs, difference.worst_sqnr_db)

    def _write(self) -> None:
        """Write the model as it is now; the files that it was read from stay."""
        self._count += 1
        old, self.stage = self.stage, self.folder / f"{self._count}.onnx"
        write_ir(self.model, self.stage, self.source.parent)
        if old is not None:
            old.unlink()

    def _staged(self) -> Path:
        assert self.stage is not None
        return self.stage


def _is_on(rewrite: Rewrite, toolchain: str, switches: Mapping[str, bool]) -> bool:
    meant = rewrite.toolchains is None or toolchain in rewrite.toolchains
    return switches.get(rewrite.name, rewrite.default and meant)


def _opset(info: GraphInfo, chain: Toolchain) -> int:
    return info.opset if chain.maximum is None else min(info.opset, chain.maximum)


def _sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    for name, values in shapes.items():
        if not values or any(not 1 <= value <= LARGEST_SIZE for value in values):
            hint = f"give one or more numbers from 1 to {LARGEST_SIZE}"
            raise PlanError(f"dimension {name!r} has sizes {list(values)}", hint=hint)
    return {name: tuple(values) for name, values in shapes.items()}


def _check_switches(switches: Mapping[str, bool]) -> None:
    for name in switches:
        if name not in REWRITES:
            near = difflib.get_close_matches(name, REWRITES, 1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(REWRITES)}"
            raise PlanError(f"there is no rewrite {name!r}", hint=hint)


def _head_notes(info: GraphInfo, chain: Toolchain) -> list[str]:
    if info.opset < chain.minimum:
        return [
            f"opset {info.opset} is older than {chain.tool} reads ({chain.minimum} or newer): export the model again"
        ]
    return []


def _quantised_notes(model: ir.Model) -> list[str]:
    found = quantised(model)
    if not found:
        return []
    names = ", ".join(node.name or node.op_type for node in found[:3])
    return [
        f"{len(found)} quantised nodes ({names}{', …' if len(found) > 3 else ''}) are left as they are: "
        "export the float model and let the vendor's tool quantise it (AMCT or msModelSlim for ATC)"
    ]


def _install(stage: Path, out: Path) -> Path:
    """Put the graph and the external files that it names into `out`: moved from the work folder, copied from elsewhere."""
    target = out / MODEL_ONNX
    moved = stage.parent.parent == out and stage.parent.name.startswith(".prepare-")
    for name in (*inspect_onnx(stage).external_files, stage.name):
        goal = target if name == stage.name else out / name
        if moved:
            os.replace(stage.parent / name, goal)  # noqa: PTH105
        elif stage.parent / name != goal:
            goal.unlink(missing_ok=True)
            shutil.copyfile(stage.parent / name, goal)
    return target


__all__ = ["PREPARED_JSON", "Applied", "Prepared", "prepare"]
