"""Follows one running segment: reads the worker's events and turns them into recorded changes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any, Final

from orchestrator.core.errors import InfraError, Interrupted, OrchestratorError, UserCodeError, error_from_json
from orchestrator.engine.events import Event
from orchestrator.engine.recorder import Recorder
from orchestrator.engine.transitions import StepState
from orchestrator.engine.worker_process import WorkerProcess
from orchestrator.steps.events import EventReader
from orchestrator.steps.segment import Segment, SegmentStep

_POLL_S: Final = 0.02


class StepTimeout(OrchestratorError):
    """A step ran longer than its recipe allows; not tried again, since it would most likely do the same."""

    exit_code = 3


class SegmentRun:
    """One worker process at work on one segment.

    Args:
        segment: What to run.
        recorder: Told of every change.
        tick: Called again and again meanwhile; raises when we are to stop.
        mark: Names the recipe's processes, see `WorkerProcess`.
    """

    def __init__(self, segment: Segment, recorder: Recorder, tick: Callable[[], None], mark: str) -> None:
        self._items: dict[str, SegmentStep] = {item.draft.name: item for item in segment.steps}
        self._recorder = recorder
        self._tick = tick
        self._reader = EventReader(segment.events)
        self._worker = WorkerProcess(segment, mark)
        self._running = ""
        self._began = 0.0
        self.failed: tuple[str, OrchestratorError] | None = None

    def follow(self) -> None:
        """Return when the worker has ended; `failed` then says what went wrong, if anything did.

        Raises:
            Interrupted: We were asked to stop; the worker is stopped and its step is pending again.
            Conflict: Another process took the recipe over; the worker is stopped.
        """
        try:
            code = self._until_end()
        except StepTimeout as error:
            self._stop()
            if self._running:  # else it has ended after all, just before it was stopped
                self._fail(error)
        except BaseException:
            self._stop()
            self._put_back()
            raise
        else:
            self._account_for(code)

    def _until_end(self) -> int:
        while True:
            code = self._worker.poll()
            for event in self._reader.read():
                self._apply(event)
            if code is not None:
                return self._worker.ended()
            self._tick()
            self._check_time()
            self._recorder.flush()
            time.sleep(_POLL_S)

    def _stop(self) -> None:
        """End the worker, and take in what it said last: a step that ended well just before stays ended."""
        self._worker.stop()
        for event in self._reader.read():
            if event["event"] in {"finished", "reused", "metric"}:
                self._apply(event)

    def _put_back(self) -> None:
        if self._running and self._recorder.state(self._running) is StepState.RUNNING:
            self._recorder.put_back(self._running)
        self._running = ""

    def _account_for(self, code: int) -> None:
        """Name the step that a worker died on, which said nothing of it."""
        if self.failed is not None:
            return
        if self._running:
            self._fail(self._died(code))
            return
        left = (name for name in self._items if self._recorder.state(name) is not StepState.SUCCEEDED)
        self._running = next(left, "")
        if self._running:
            self._fail(self._never_began(code))

    def _check_time(self) -> None:
        if not self._running:
            return
        limit_s = self._items[self._running].draft.timeout_s
        if limit_s and time.monotonic() - self._began > limit_s:
            raise StepTimeout(
                f"step {self._running} ran longer than its time-out of {limit_s:g} s",
                place=self._running,
                hint="raise the step's `timeout` in the recipe",
            )

    def _apply(self, event: dict[str, Any]) -> None:
        kind, step, recorder = event["event"], event["step"], self._recorder
        if kind == "started":
            self._running, self._began = step, time.monotonic()
            recorder.started(step, event["attempt"], event["fingerprint"], event["parts"], event["log"])
        elif kind == "finished":
            self._running = ""
            recorder.finished(step, event["result"], event["verdict"])
            self._note_verdict(step, event)
        elif kind == "reused":
            recorder.reused(step, event["fingerprint"], event["parts"], event["result"], event["verdict"])
            self._note_verdict(step, event)
        elif kind == "failed":
            self._running = step
            self._fail(error_from_json(event["error"]))
        elif kind == "metric":
            recorder.metric(step, event["name"], event["value"], event["at"], event["t"])
        elif kind in {"progress", "message"}:
            payload = {key: value for key, value in event.items() if key not in {"event", "step", "t"}}
            recorder.say(Event(kind, step, payload, event["t"]))

    def _note_verdict(self, step: str, event: dict[str, Any]) -> None:
        if event["verdict"] is not None:
            self.failed = (step, error_from_json(event["verdict"]))

    def _fail(self, error: OrchestratorError) -> None:
        step, self._running = self._running, ""
        self._recorder.failed(step, error)
        self.failed = (step, error)

    def _died(self, code: int) -> OrchestratorError:
        step, details = self._running, {"exit_code": code, "tail": self._worker.tail()}
        see = f"see `orchestrate logs --step {step}`"
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return InfraError(
                f"the worker process was killed by signal {-code} ({name}) in the middle of step {step}",
                place=step,
                hint=f"memory that ran out often ends so; {see}" if code == -signal.SIGKILL else see,
                details=details,
            )
        message = f"the worker process ended with code {code} in the middle of step {step}"
        if code in {InfraError.exit_code, Interrupted.exit_code}:
            return InfraError(message, place=step, hint=see, details=details)
        hint = f"the step's code ended the process itself (os._exit?): return or raise instead; {see}"
        return UserCodeError(message, place=step, hint=hint, details=details)

    def _never_began(self, code: int) -> InfraError:
        tail = self._worker.tail()
        last = f": {tail.splitlines()[-1]}" if tail else ""
        return InfraError(
            f"the worker process ended with code {code} before step {self._running}{last}",
            place=self._running,
            hint="see `orchestrate doctor`, and the disk's free space",
            details={"exit_code": code, "tail": tail},
        )
