"""Every legal change of state, in one table. A final state is never overwritten except by an explicit new attempt."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from orchestrator.core.errors import Conflict, InternalError


class StepState(StrEnum):
    """Where a step stands."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ExecutionState(StrEnum):
    """Where an execution stands; `interrupted` was stopped by Ctrl-C and goes on with the same command."""

    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"


STEP: Final[dict[StepState, frozenset[StepState]]] = {
    # pending -> succeeded: a stored result is reused; pending -> failed: reused, but a gate now says no
    StepState.PENDING: frozenset(
        {StepState.RUNNING, StepState.SUCCEEDED, StepState.WAITING, StepState.CANCELLED, StepState.FAILED}
    ),
    # running -> pending: interrupted, or lost with its process; the next attempt starts from here
    StepState.RUNNING: frozenset(
        {StepState.SUCCEEDED, StepState.FAILED, StepState.WAITING, StepState.CANCELLED, StepState.PENDING}
    ),
    StepState.WAITING: frozenset({StepState.PENDING, StepState.RUNNING, StepState.FAILED, StepState.CANCELLED}),
    StepState.FAILED: frozenset({StepState.PENDING}),
    StepState.CANCELLED: frozenset({StepState.PENDING}),
    StepState.SUCCEEDED: frozenset(),
}

EXECUTION: Final[dict[ExecutionState, frozenset[ExecutionState]]] = {
    ExecutionState.RUNNING: frozenset(set(ExecutionState) - {ExecutionState.RUNNING}),
    ExecutionState.WAITING: frozenset({ExecutionState.RUNNING, ExecutionState.CANCELLED}),
    ExecutionState.INTERRUPTED: frozenset({ExecutionState.RUNNING, ExecutionState.CANCELLED}),
    ExecutionState.FAILED: frozenset({ExecutionState.RUNNING}),
    ExecutionState.CANCELLED: frozenset({ExecutionState.RUNNING}),
    ExecutionState.SUCCEEDED: frozenset(),
}


def check_step(step: str, old: StepState, new: StepState) -> None:
    """Refuse an illegal change of a step.

    Raises:
        InternalError: The table has no such change.
    """
    if new not in STEP[old]:
        raise InternalError(f"step {step} is {old} and cannot become {new}", hint="this is a bug; please report it")


def check_execution(execution: str, old: ExecutionState, new: ExecutionState) -> None:
    """Refuse an illegal change of an execution.

    Raises:
        Conflict: The table has no such change.
    """
    if new not in EXECUTION[old]:
        raise Conflict(f"execution {execution} is {old} and cannot become {new}", hint="start a new one with `run`")
