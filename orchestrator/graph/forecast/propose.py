"""Scalings for what cannot be kept, each proved by running the changed graph in fp32 and as a twin."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from orchestrator.ascend.precision import Policy
from orchestrator.core.errors import GateError
from orchestrator.graph.forecast.batches import Batches
from orchestrator.graph.forecast.predict import Model
from orchestrator.graph.forecast.ranges import Ranges, measure_ranges
from orchestrator.graph.forecast.result import KeepList, worst_db
from orchestrator.graph.forecast.scaled import scaled
from orchestrator.graph.forecast.scaling import NoWay, Proposal, Scaling
from orchestrator.graph.forecast.workspace import Workspace
from orchestrator.graph.parity import compare
from orchestrator.graph.twin.rounding import LARGEST

_FP32_SQNR_DB: Final = 100.0
"""What the changed graph must reach in fp32; powers of two alone change nothing but what was subnormal."""


def propose(
    space: Workspace, policy: Policy, batches: Batches, keep: KeepList, seen: Ranges, sqnr_db_before: float
) -> Iterator[Proposal]:
    """Yield one proposal for all stuck units that a scaling saves, and a `blocked` one for each that none does.

    Raises:
        GateError: The runtime fails on the original graph.
    """
    stuck = [one for one in keep.cannot if one.cause in {"overflow", "near_overflow"}]
    for one in keep.cannot:
        if one.cause not in {"overflow", "near_overflow"}:
            yield Proposal((one.tensor,), "blocked", f"no scaling cures it: {one.text}")
    largest = LARGEST[policy.low]
    each, why = _spread(space, seen, largest, [one.tensor for one in stuck], None)
    if why:  # factors that meet must be equal: the largest that is needed, for all
        probe = Scaling(space, seen.tensors, largest)
        finite = [one.tensor for one in stuck if math.isfinite(seen.tensors[one.tensor].absmax)]
        uniform = min((probe.needed(name) for name in finite), default=0)
        again, reasons = _spread(space, seen, largest, [one.tensor for one in stuck], uniform)
        if len(reasons) < len(why):
            each, why = again, reasons
    for tensor, reason in why.items():
        yield Proposal((tensor,), "blocked", f"no scaling: {reason}")
    saved = tuple(one.tensor for one in stuck if one.tensor not in why)
    if saved and each is not None:
        yield _prove(space, policy, batches, keep, seen, each, saved, sqnr_db_before)


def _spread(
    space: Workspace, seen: Ranges, largest: float, tensors: list[str], uniform: int | None
) -> tuple[Scaling | None, dict[str, str]]:
    """Scale one tensor after the other; return the scaling of all that went together, and why the others did not."""
    scaling: Scaling | None = None
    saved: list[str] = []
    why: dict[str, str] = {}
    for tensor in tensors:
        attempt = Scaling(space, seen.tensors, largest, uniform)
        try:
            for name in (*saved, tensor):
                attempt.spread(name)
        except NoWay as reason:
            why[tensor] = str(reason)
            continue
        scaling = attempt
        saved.append(tensor)
    return scaling, why


def _prove(
    space: Workspace,
    policy: Policy,
    batches: Batches,
    keep: KeepList,
    seen: Ranges,
    scaling: Scaling,
    saved: tuple[str, ...],
    before: float,
) -> Proposal:
    changed = scaled(space, scaling)
    try:
        changed.measure_shapes(batches.piece(0, batches.size))
        ranges = measure_ranges(changed, batches)
        twin = Model(changed, batches, policy, keep.nodes)(batches.samples)
    except GateError as error:
        return Proposal(saved, "blocked", f"the scaled graph does not run: {error.message}", scaling.changes)
    fp32, low = compare(seen.outputs, ranges.outputs), compare(seen.outputs, twin)
    difference = max(metric.max_abs for metric in fp32.values())
    after = worst_db(low)
    computed = [name for name in saved if name not in space.weights]
    still = [name for name in computed if not ranges.tensors[name].absmax <= LARGEST[policy.low]]
    same = all(not m.problem and (m.worst_sqnr_db >= _FP32_SQNR_DB or not m.is_float) for m in fp32.values())
    if still or not same or not after > before:
        why = f"{still} still overflow" if still else f"fp32 differs by {difference:.3g}, twin {after:.1f} dB"
        return Proposal(saved, "blocked", f"a scaling was tried and not proved: {why}", scaling.changes)
    text = f"{len(scaling.changes)} nodes change by powers of two; the same in fp32, and the twin goes from {before:.1f} to {after:.1f} dB"
    return Proposal(saved, "proved", text, scaling.changes, difference, before, after)
