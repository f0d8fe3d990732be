"""Follows one running segment: reads the worker's events and turns them into recorded changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from orchestrator.core.errors import Conflict, InfraError, Interrupted, OrchestratorError, error_from_json
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
    """One worker process at work on one segment."""

    def __init__(self, segment: Segment, recorder: Recorder, tick: Callable[[], None]) -> None:
        self._items: dict[str, SegmentStep] = {item.draft.name: item for item in segment.steps}
        self._recorder = recorder
        self._tick = tick
        self._reader = EventReader(segment.events)
        self._worker = WorkerProcess(segment)
        self._running = ""
        self._began = 0.0
        self.failed: tuple[str, OrchestratorError] | None = None

    def follow(self) -> None:
        """Return when the worker has ended; `failed` then says what went wrong, if anything did.

        Raises:
            Interrupted: We were asked to stop; the worker is stopped and its step is pending again.
            Conflict: Another process took the recipe over; the worker is stopped.
        """
        code = 0
        try:
            code = self._until_end()
        except (Interrupted, Conflict, KeyboardInterrupt):
            self._stop(put_back=True)
            raise
        except StepTimeout as error:
            self._stop(put_back=False)
            self._fail(error)
        if self._running and self.failed is None:
            self._fail(self._died(code))

    def _until_end(self) -> int:
        while True:
            code = self._worker.poll()
            for event in self._reader.read():
                self._apply(event)
            if code is not None:
                return code
            self._tick()
            self._check_time()
            self._recorder.flush()
            time.sleep(_POLL_S)

    def _stop(self, *, put_back: bool) -> None:
        self._worker.stop()
        for event in self._reader.read():
            if event["event"] in {"finished", "reused", "metric"}:
                self._apply(event)
        if put_back and self._running and self._recorder.state(self._running) is StepState.RUNNING:
            self._recorder.put_back(self._running)
        if put_back:
            self._running = ""

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

    def _died(self, code: int) -> InfraError:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return InfraError(
            f"the worker process {how} in the middle of step {self._running}",
            place=self._running,
            hint="signal 9 often means that memory ran out; see the step's log: `orchestrate logs`",
            details={"exit_code": code, "tail": self._worker.tail()},
        )
