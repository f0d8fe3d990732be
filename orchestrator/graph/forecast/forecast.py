"""The forecast of one graph on one SoC in one precision mode, from samples alone: no NPU, no vendor software."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from onnx import TensorProto

from orchestrator.ascend.precision import Policy
from orchestrator.core.errors import GateError, UserCodeError
from orchestrator.graph.forecast.batches import Batches, synthetic
from orchestrator.graph.forecast.cost import Prices
from orchestrator.graph.forecast.fused import fused_away
from orchestrator.graph.forecast.judge import answer, first_bad
from orchestrator.graph.forecast.keeping import Keeper
from orchestrator.graph.forecast.must import sensitive_tensors
from orchestrator.graph.forecast.pieces import Pieces, take_apart
from orchestrator.graph.forecast.predict import Evaluate, Model
from orchestrator.graph.forecast.propose import propose
from orchestrator.graph.forecast.ranges import Ranges, TensorRange, measure_ranges
from orchestrator.graph.forecast.reductions import inner_overflows
from orchestrator.graph.forecast.result import Forecast, KeepList, NodeView, Numbers
from orchestrator.graph.forecast.shadow import Damage, cumulative, inside, local
from orchestrator.graph.forecast.workspace import Workspace, open_workspace
from orchestrator.graph.parity import compare
from orchestrator.graph.read import inspect_onnx
from orchestrator.graph.twin.rounding import LARGEST
from orchestrator.graph.verdict import Thresholds, judge

Array = np.ndarray[Any, Any]
Progress = Callable[[float, str], None]

BATCH_BYTES: Final = 8 << 20
"""Largest tensor of a batch: small enough that its statistics find it in the cache."""
_MOST_AT_ONCE: Final = 16
_HALVES: Final = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


@dataclass(slots=True)
class _Run:
    """The state that the phases of one forecast share."""

    name: str
    policy: Policy
    asked: Thresholds
    limits: frozenset[str]
    space: Workspace
    batches: Batches
    evaluate: Evaluate | None
    progress: Progress
    timings: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def phase(self, name: str, done: float, text: str) -> Generator[None]:
        """Time a phase and tell of it."""
        self.progress(done, text)
        began = time.monotonic()
        yield
        self.timings[name] = time.monotonic() - began

    def task(self, predict: Model) -> dict[str, float]:
        """Return the user's metrics of a model; empty without `evaluate`."""
        if self.evaluate is None:
            return {}
        found = {str(name): float(value) for name, value in self.evaluate(predict).items()}
        bad = sorted(name for name, value in found.items() if not math.isfinite(value))
        if bad:
            raise GateError(f"metric {bad[0]} is {found[bad[0]]}", hint="the evaluation must survive wrong outputs")
        return found

    def numbers(
        self, prices: Prices, reference: Mapping[str, Array], keep: Collection[str], reference_task: Mapping[str, float]
    ) -> Numbers:
        """Run the twin with a keep list on all samples, and the user's metrics on it."""
        model = Model(self.space, self.batches, self.policy, keep)
        metrics = compare(reference, model(self.batches.samples))
        task = self.task(model)
        verdict = judge(
            metrics, self.asked, saturating=self.policy.saturating, reference_task=reference_task, candidate_task=task
        )
        return Numbers(metrics, task, verdict, prices.of(keep))


def forecast(  # noqa: PLR0913  keyword-only, each a thing of its own
    path: Path,
    *,
    policy: Policy,
    samples: Mapping[str, Array] | None,
    thresholds: Thresholds,
    limits: Collection[str] = (),
    evaluate: Evaluate | None = None,
    keep: Literal["auto", "none"] | Sequence[str] = "auto",
    scratch: Path | None = None,
    threads: int = 0,
    progress: Progress | None = None,
    name: str = "",
) -> Forecast:
    """Say what a target will make of a graph.

    Args:
        path: An fp32 ONNX graph, as the toolchain would read it.
        policy: What the target does to each operator.
        samples: Input -> array, axis 0 = sample; None makes synthetic ones, and the verdict can then only warn.
        thresholds: What is asked of the outputs, and of the task metrics.
        limits: Fields of `thresholds` that the user set; to miss one is a no, to miss a default nearly a warning.
        evaluate: The user's metrics of a model.
        keep: `auto` finds a keep list, `none` keeps nothing, names keep exactly those.
        scratch: Folder for a private temporary one; the system's when not given.
        threads: Of the runtime; 0 takes all cores.
        progress: Told the share that is done and what goes on.
        name: What to call the model; its file's name when not given.

    Raises:
        GateError: The graph is refused, or does not run on the samples.
        UserCodeError: The samples are not those that the graph declares.
        PlanError: `keep` names nodes that are not there or cannot be kept.
    """
    info = inspect_onnx(path)
    given = synthetic(info.inputs) if samples is None else samples
    told = progress or _quiet
    with tempfile.TemporaryDirectory(prefix="forecast-", dir=scratch) as folder:
        space = _opened(path, Path(folder), threads)
        batches = choose_size(space, Batches(info.inputs, given, size=1))
        run = _Run(name or path.name, policy, thresholds, frozenset(limits), space, batches, evaluate, told)
        return _forecast(run, keep, synthetic_samples=samples is None)


def _opened(path: Path, folder: Path, threads: int) -> Workspace:
    """Open the graph; refuse a file in 16 bits, and one without any float: nothing there would be rounded."""
    space = open_workspace(path, folder, threads=threads)
    made = [space.types.get(output) for node in space.graph.node for output in node.output if output]
    if TensorProto.FLOAT in made:
        return space
    low = next((text for kind, text in _HALVES.items() if kind in made), None)
    if low is not None:
        raise GateError(
            f"{path.name} is in {low} already; a forecast needs the same model in fp32",
            hint="export it in fp32: the precision mode decides what becomes 16 bits",
        )
    raise GateError(f"{path.name} computes nothing in fp32", hint="there is nothing that a precision mode would round")


def _quiet(_done: float, _text: str) -> None:
    """Tell nobody."""


def choose_size(space: Workspace, single: Batches) -> Batches:
    """Measure shapes, and choose how many samples go through at once."""
    space.measure_shapes(single.piece(0, single.size))
    weights = space.weights
    largest = max((4 * math.prod(shape) for name, shape in space.shapes.items() if name not in weights), default=1)
    batches = single.sized(max(1, min(_MOST_AT_ONCE, BATCH_BYTES // max(1, largest))))
    if batches.size != single.size and batches.count > 1:
        space.measure_shapes(batches.piece(0, batches.size))
    return batches


def _forecast(run: _Run, keep: Literal["auto", "none"] | Sequence[str], *, synthetic_samples: bool) -> Forecast:
    space, policy, batches = run.space, run.policy, run.batches
    sensitive = sensitive_tensors(space)
    with run.phase("range", 0.0, "range: what each tensor reaches in fp32"):
        seen = measure_ranges(space, batches, sensitive=sensitive)
    pieces = take_apart(space, policy)
    with run.phase("local", 0.15, "local: each node alone, rounded"):
        damages = local(space, batches, pieces, seen.tensors)
    with run.phase("cumulative", 0.3, "cumulative: the twin beside the graph"):
        grown, _ = cumulative(space, batches, pieces, seen.tensors)
    with run.phase("reductions", 0.4, "sums inside reductions"):
        sums = inner_overflows(space, batches, policy, seen.tensors)
    prices = Prices(space, policy)
    with run.phase("before", 0.45, "the twin without a keep list"):
        reference_task = run.task(Model(space, batches, None)) if run.evaluate is not None else {}
        before = run.numbers(prices, seen.outputs, (), reference_task)
    with run.phase("keep", 0.5, "keep list"):
        kept = _keep(run, keep, pieces, seen, damages, grown, before, prices)
    with run.phase("after", 0.9, "the twin with the keep list"):
        after = run.numbers(prices, seen.outputs, kept.nodes, reference_task) if kept.nodes else before
    with run.phase("proposals", 0.95, "scalings where nothing can be kept"):
        kept = replace(kept, proposals=tuple(propose(space, policy, batches, kept, seen, after.sqnr_db)))
    verdict, reasons = answer(
        after, asked=run.asked, limits=run.limits, low=policy.low, saturating=policy.saturating, reference_task=reference_task,
        cannot=kept.cannot, proposals=kept.proposals, synthetic=synthetic_samples,
    )  # fmt: skip
    overflow = _overflow(pieces, seen.tensors)
    hidden = fused_away(space)
    run.progress(1.0, "")
    return Forecast(
        model=run.name, policy=policy, thresholds=run.asked, samples=batches.count, synthetic=synthetic_samples,
        nodes=_views(space, seen, damages, grown), ranges=seen.tensors, exponents=seen.exponents,
        before=before, after=after, reference_task=reference_task, keep=kept,
        overflow=overflow, fused_overflow=tuple(name for name in overflow if name not in hidden),
        saturated=tuple(name for name, one in grown.items() if one.saturated),
        underflow=_underflow(pieces, seen.tensors, sensitive) if policy.low == "fp16" else {},
        reductions=tuple(sums),
        first_bad_local=first_bad(damages, run.asked), first_bad_cumulative=first_bad(grown, run.asked),
        verdict=verdict, reasons=reasons, inside=inside(pieces),
        notes=_notes(space, batches, inside(pieces)), timings_s=run.timings,
    )  # fmt: skip


def _keep(
    run: _Run,
    keep: Literal["auto", "none"] | Sequence[str],
    pieces: Pieces,
    seen: Ranges,
    damages: Mapping[str, Damage],
    grown: Mapping[str, Damage],
    before: Numbers,
    prices: Prices,
) -> KeepList:
    keeper = Keeper(
        run.space, run.policy, run.batches, seen.outputs, seen.tensors, damages, grown, before.outputs, run.asked,
        prices,
        lambda text: run.progress(0.6, text),
    )  # fmt: skip
    if keep == "auto":
        return keeper.keep_list(pieces)
    units = tuple(keeper.units(pieces))
    cannot = tuple(one for one in units if one.stuck)
    if keep == "none" or isinstance(keep, str):
        if keep != "none":
            raise UserCodeError(f"keep is {keep!r}", hint="auto, none, or a list of node names")
        return KeepList("none", units=units, cannot=cannot)
    wanted = {name for one in units for name in one.kept}
    lines = [keeper.kept(name, "must" if name in wanted else "should", ("asked for",)) for name in keep]
    return KeepList(
        "given",
        must=tuple(line for line in lines if line.level == "must"),
        should=tuple(line for line in lines if line.level == "should"),
        units=units,
        cannot=cannot,
    )


def _views(
    space: Workspace, seen: Ranges, damages: Mapping[str, Damage], grown: Mapping[str, Damage]
) -> tuple[NodeView, ...]:
    weights = space.weights
    return tuple(
        NodeView(node.name, node.op_type, _source(node), name, seen.tensors[name], damages.get(name), grown.get(name))
        for node in space.graph.node
        for name in node.output
        if name in seen.tensors and name not in weights
    )


def _source(node: Any) -> str:
    return next((entry.value for entry in node.metadata_props if entry.key == "source"), "")


def _overflow(pieces: Pieces, ranges: Mapping[str, TensorRange]) -> tuple[str, ...]:
    """Return the tensors that the low format holds somewhere and that reach beyond it."""
    largest, found = LARGEST[pieces.edges.low], list[str]()
    for wire in pieces.edges.in_scope(""):
        low = wire.low or wire.already or any(reader.low for reader in wire.readers)
        if low and wire.name in ranges and not ranges[wire.name].absmax <= largest:
            found.append(wire.name)
    return tuple(found)


def _underflow(
    pieces: Pieces, ranges: Mapping[str, TensorRange], sensitive: Mapping[str, list[str]]
) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name, users in sensitive.items():
        wire = pieces.wire(name)
        low = wire is not None and (wire.low or wire.already or any(reader.low for reader in wire.readers))
        if low and name in ranges and ranges[name].flushed_share > 0:
            found[name] = tuple(dict.fromkeys(users))
    return found


def _notes(space: Workspace, batches: Batches, subgraphs: Mapping[str, int]) -> tuple[str, ...]:
    found = [
        f"{count} nodes inside {name!r} are emulated but not shown one by one; its results are"
        for name, count in subgraphs.items()
    ]
    if batches.count < 16:
        found.append(f"{batches.count} samples: tails of the distributions are not seen; give more")
    if space.unnamed:
        found.append(f"{space.unnamed} nodes have no name of their own: no keep list can name them")
    return tuple(found)
