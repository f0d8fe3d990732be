"""The only code that changes the state of an execution: one change = one ledger transaction + one event."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from orchestrator.core import faults
from orchestrator.core.errors import OrchestratorError
from orchestrator.engine.events import Event, Observer
from orchestrator.engine.transitions import ExecutionState, StepState, check_execution, check_step
from orchestrator.ledger import ArtifactRow, AttemptRow, EventRow, ExecutionUpdate, Lease, Ledger, MetricRow, StepRow
from orchestrator.plan.model import Action, Plan, PlannedStep

_FLUSH_S: Final = 0.5


class Recorder:
    """Keeps the rows of one execution and writes every change of them.

    Args:
        ledger: Where to write.
        lease: Proof that we are the one who runs this recipe; a fenced one makes every write raise `Conflict`.
        execution: The execution's id; its row exists.
        observer: Told after the ledger knows.
    """

    def __init__(self, ledger: Ledger, lease: Lease, execution: str, observer: Observer) -> None:
        self.ledger = ledger
        self.lease = lease
        self.execution = execution
        self._observer = observer
        self._rows = {row.name: row for row in ledger.executions.steps(execution)}
        self._state = ExecutionState(ledger.executions.get(execution).state)
        self._metrics: list[MetricRow] = []
        self._flushed_at = time.monotonic()

    def begin(self, plan: Plan) -> None:
        """Lay out the plan's steps; what an earlier, cut-off try of this execution finished stays as it is."""
        now = time.time()
        lost = [row for row in self._rows.values() if row.state == StepState.RUNNING]
        attempts = [self._ended_attempt(row, StepState.CANCELLED, now) for row in lost]
        rows = [self._laid_out(position, step) for position, step in enumerate(plan.steps)]
        self._rows = {row.name: row for row in rows}
        self.ledger.executions.record(self.lease, steps=rows, attempts=attempts)
        faults.point("engine.begun")

    def state(self, step: str) -> StepState:
        """Return where a step stands."""
        return StepState(self._rows[step].state)

    def row(self, step: str) -> StepRow:
        """Return a step's row."""
        return self._rows[step]

    def started(self, step: str, attempt: int, fingerprint: str, parts: Mapping[str, Any], log: str = "") -> None:
        """A step's attempt began."""
        now = time.time()
        row = replace(self._rows[step], attempt=attempt, fingerprint=fingerprint, parts=parts, started_at=now)
        row = replace(row, action=_settled(row.action), ended_at=None, error=None, verdict=None)
        attempt_row = AttemptRow(
            execution=self.execution, step=step, number=attempt, state=StepState.RUNNING, started_at=now
        )
        self._change(row, StepState.RUNNING, attempts=[attempt_row], log=log)

    def finished(self, step: str, result: Mapping[str, Any], verdict: Mapping[str, Any] | None = None) -> None:
        """A step left a result; a missed gate makes it failed all the same."""
        now, old = time.time(), self._rows[step]
        state = StepState.SUCCEEDED if verdict is None else StepState.FAILED
        outputs = {name: ref["digest"] for name, ref in result["outputs"].items()}
        row = replace(
            old,
            outputs=outputs,
            metrics=result["metrics"],
            facts=result["facts"],
            verdict={"passed": verdict is None},
            error=verdict,
            ended_at=now,
        )
        artifacts = [
            ArtifactRow(
                digest=ref["digest"],
                media_type=ref["media_type"],
                kind=_artifact_kind(ref["media_type"]),
                size_bytes=ref["size_bytes"],
                execution=self.execution,
                step=step,
                output=name,
                created_at=now,
            )
            for name, ref in result["outputs"].items()
        ]
        edges = [(child, parent) for child in outputs.values() for parent in result.get("inputs", {}).values()]
        if "bundle" in result["facts"] and "bundle" in outputs:
            edges.append((result["facts"]["bundle"], outputs["bundle"]))  # the name that clients see leads back too
        attempts = [self._ended_attempt(row, state, now)] if old.state == StepState.RUNNING else []
        self._change(row, state, attempts=attempts, artifacts=artifacts, edges=edges)

    def reused(
        self,
        step: str,
        fingerprint: str,
        parts: Mapping[str, Any],
        result: Mapping[str, Any],
        verdict: Mapping[str, Any] | None,
    ) -> None:
        """A stored result serves; if this very execution made it before a crash, the step counts as run."""
        own = result.get("execution") == self.execution
        old = self._rows[step]
        reason = old.reason if own else f"same inputs as in {result.get('execution', 'an earlier execution')}"
        row = replace(old, action=_settled(old.action) if own else Action.REUSE, reason=reason)
        started = float(result.get("started_at", time.time())) if own else time.time()
        self._rows[step] = replace(row, fingerprint=fingerprint, parts=parts, started_at=started)
        self.finished(step, result, verdict)

    def failed(self, step: str, error: OrchestratorError) -> None:
        """A step failed."""
        now = time.time()
        row = replace(self._rows[step], error=error.to_json(), ended_at=now)
        attempts = [self._ended_attempt(row, StepState.FAILED, now, error)] if row.attempt else []
        self._change(row, StepState.FAILED, attempts=attempts)

    def waiting(self, step: str, error: OrchestratorError) -> None:
        """A step waits for people; its attempt is over, and the same command begins another that goes on from there."""
        now = time.time()
        row = replace(self._rows[step], error=error.to_json(), ended_at=now)
        self._change(row, StepState.WAITING, attempts=[self._ended_attempt(row, StepState.WAITING, now)])

    def put_back(self, step: str, state: StepState = StepState.PENDING) -> None:
        """A step is to run again, or was cancelled."""
        row = self._rows[step]
        attempts: list[AttemptRow] = []
        if row.state == StepState.RUNNING:
            attempts = [self._ended_attempt(row, StepState.CANCELLED, time.time())]
        self._change(row, state, attempts=attempts)

    def retrying(self, step: str, error: OrchestratorError, delay_s: float, budget: str) -> None:
        """A failed step gets another attempt."""
        self._tell(Event("retry", step, {"delay_s": delay_s, "budget": budget, "error": error.to_json()}))
        self.put_back(step)

    def metric(self, step: str, name: str, value: float, at: int, t: float) -> None:
        """Keep one value; written with the next change, or after half a second."""
        self._metrics.append(
            MetricRow(execution=self.execution, step=step, name=name, step_number=at, value=value, t=t)
        )
        self._observer(Event("metric", step, {"name": name, "value": value, "at": at}))

    def say(self, event: Event) -> None:
        """Pass on progress or a message; not kept in the ledger."""
        self._observer(event)

    def flush(self, *, force: bool = False) -> None:
        """Write kept metrics when it is time."""
        if self._metrics and (force or time.monotonic() - self._flushed_at > _FLUSH_S):
            self.ledger.executions.append_metrics(self._metrics)
            self._metrics, self._flushed_at = [], time.monotonic()

    def end(self, state: ExecutionState, error: OrchestratorError | None = None) -> None:
        """Set the execution's state."""
        if state is self._state:
            return
        check_execution(self.execution, self._state, state)
        now = time.time()
        ended_at = None if state is ExecutionState.RUNNING else now
        body = error.to_json() if error else None
        event = EventRow(execution=self.execution, type="execution", t=now, payload={"state": state})
        self.flush(force=True)
        update = ExecutionUpdate(id=self.execution, state=state, error=body, ended_at=ended_at)
        self.ledger.executions.record(self.lease, execution=update, events=[event])
        self._state = state
        faults.point(f"engine.execution.{state}")
        self._observer(Event("execution", "", {"execution": self.execution, "state": state, "error": body}))

    def _laid_out(self, position: int, step: PlannedStep) -> StepRow:
        old = self._rows.get(step.name)
        same = old is not None and old.fingerprint == step.fingerprint
        if old is not None and same and old.state == StepState.SUCCEEDED and step.action is Action.REUSE:
            return replace(old, position=position)  # any other action: it runs again, refreshed or its artifact gone
        return StepRow(
            execution=self.execution,
            name=step.name,
            kind=step.draft.kind,
            position=position,
            action=step.action if old is None or step.action is not Action.REUSE else old.action,
            reason=step.reason,
            state=StepState.PENDING,
            fingerprint=step.fingerprint,
            parts=step.parts or {},
            attempt=old.attempt if old else 0,
        )

    def _change(
        self,
        row: StepRow,
        state: StepState,
        *,
        attempts: Sequence[AttemptRow] = (),
        artifacts: Sequence[ArtifactRow] = (),
        edges: Sequence[tuple[str, str]] = (),
        log: str = "",
    ) -> None:
        check_step(row.name, StepState(row.state), state)
        row = replace(row, state=state)
        payload: dict[str, Any] = {"state": state, "action": row.action, "reason": row.reason, "attempt": row.attempt}
        if row.error:
            payload["error"] = row.error
        event = EventRow(execution=self.execution, step=row.name, type="step", t=time.time(), payload=payload)
        self.flush(force=True)
        faults.point(f"engine.step.{state}.before")
        self.ledger.executions.record(
            self.lease, steps=[row], attempts=attempts, events=[event], artifacts=artifacts, edges=edges
        )
        self._rows[row.name] = row
        faults.point(f"engine.step.{state}.after")
        extra = {"metrics": row.metrics, "facts": row.facts, "started_at": row.started_at, "ended_at": row.ended_at}
        self._observer(Event("step", row.name, {**payload, **extra, "log": log}))

    def _tell(self, event: Event) -> None:
        row = EventRow(execution=self.execution, step=event.step, type=event.type, t=event.t, payload=event.payload)
        self.ledger.executions.append_events([row])
        self._observer(event)

    def _ended_attempt(
        self, row: StepRow, state: StepState, now: float, error: OrchestratorError | None = None
    ) -> AttemptRow:
        return AttemptRow(
            execution=self.execution,
            step=row.name,
            number=row.attempt,
            state=state,
            retry_class=error.retry if error else None,
            error=row.error if state is StepState.FAILED else None,
            started_at=row.started_at or now,
            ended_at=now,
        )


def _settled(action: str) -> str:
    """Its inputs are known by now, so `RUN*` has become `RUN`."""
    return Action.RUN if action == Action.RUN_LATER else action


def _artifact_kind(media_type: str) -> str:
    return media_type.removeprefix("application/vnd.orchestrate.").removesuffix(".v1")
