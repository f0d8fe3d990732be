"""Why a training ended: whose fault it was decides whether it is tried again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from orchestrator.core.errors import InfraError, NoCapacity, OrchestratorError, Preempted, error_from_json


def read_failures(folder: Path) -> dict[int, dict[str, Any]]:
    """Return what the workers of one try wrote down before they failed, by rank."""
    found: dict[int, dict[str, Any]] = {}
    for path in folder.glob("rank-*.json"):
        record = cast("dict[str, Any]", json.loads(path.read_bytes()))
        found[int(record["rank"])] = record
    return found


def explain_failure(error: Exception, failures: Mapping[int, Mapping[str, Any]]) -> OrchestratorError:
    """Return the cause of a failed `fit()`.

    A worker that Ray reports as failed and that wrote nothing down has died: that is the cause, whatever the others
    say. Otherwise it is the first failure that is no mere loss of a peer.

    Args:
        error: What Ray Train raised.
        failures: From `read_failures`.
    """
    by_rank = cast("Mapping[int, Exception]", getattr(error, "worker_failures", {}))
    dead = {rank: reason for rank, reason in by_rank.items() if rank not in failures}
    if dead:
        return _death(dead)
    causes = sorted((f for f in failures.values() if not f["collateral"]), key=lambda f: float(f["t"]))
    if causes:
        return error_from_json(causes[0]["error"])
    if failures:
        first = min(failures.values(), key=lambda f: float(f["t"]))
        return InfraError(
            f"the workers lost each other: {first['error']['message']}",
            hint="a worker or the network between them failed; the step's log has more",
        )
    if "Startup" in type(getattr(error, "controller_failure", None)).__name__:
        return NoCapacity(f"the workers did not start: {_first_line(error)}", hint="see what holds the train site")
    return InfraError(f"Ray Train failed: {_first_line(error)}", hint="the step's log has the trace")


def _death(dead: Mapping[int, Exception]) -> OrchestratorError:
    ranks = ", ".join(str(rank) for rank in sorted(dead))
    reason = next(iter(dead.values()))
    reason = getattr(reason, "health_check_failure", reason)
    if getattr(reason, "preempted", False):
        return Preempted(f"the machine of worker {ranks} was taken away", hint="training goes on when there is another")
    return InfraError(
        f"worker {ranks} died: {_first_line(reason)}",
        hint="killed from outside, or out of memory (see dmesg); training goes on from the last checkpoint",
        details={"ranks": sorted(dead)},
    )


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
