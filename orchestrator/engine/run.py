"""The engine: walks a plan in order, hands segments to workers, does the control plane's own steps, retries, records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from orchestrator.bundle.store import Store
from orchestrator.core import faults
from orchestrator.core.errors import Conflict, InfraError, Interrupted, OrchestratorError, Waiting
from orchestrator.engine.follow import SegmentRun
from orchestrator.engine.recorder import Recorder
from orchestrator.engine.retry import Budget
from orchestrator.engine.stop import Cancelled, StopRequests
from orchestrator.engine.transitions import ExecutionState, StepState
from orchestrator.plan.fingerprint import fingerprint_of, parts_of
from orchestrator.plan.gates import judge_result
from orchestrator.plan.model import Action, Draft, Plan, PlannedStep
from orchestrator.steps.segment import Segment, SegmentStep

LEASE_TTL_S: Final = 60.0
_RENEW_S: Final = LEASE_TTL_S / 4


class SiteGate(Protocol):
    """How the engine gets a site up while it already works on steps that do not need it."""

    def start(self, *, ray: bool, pool: bool) -> None:
        """Begin to bring the site up, in the background; returns at once."""
        ...

    @property
    def site_file(self) -> Path:
        """The file in which the worker finds the Ray address, as soon as it is known."""
        ...

    def wait_ready(self, tick: Any) -> None:
        """Return when router and agents are ready too; calls `tick` meanwhile."""
        ...


class ControlSteps(Protocol):
    """What the control plane does itself: `register` and `deploy`."""

    def perform(
        self, draft: Draft, inputs: Mapping[str, str], recorder: Recorder, tick: Callable[[], None]
    ) -> dict[str, Any]:
        """Do the step and return its result, as a worker would (`outputs`, `metrics`, `facts`).

        Args:
            draft: The step.
            inputs: Digests of its inputs.
            recorder: Hears how far it is.
            tick: Called while it waits: a canary may take hours, and the execution must stay ours; raises when asked to stop.

        Raises:
            Waiting: It waits for people; the step is `waiting`, and the same command goes on.
        """
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """An execution's surroundings: folders, site, code."""

    execution: str
    plan: Plan
    folder: Path
    store: Store
    work: Path
    recipe_dir: Path
    site_name: str
    site_state: Path
    allow_cpu: bool
    retry_delay_s: float = 1.0


class Engine:
    """Runs one plan to its end. Use it from the main thread."""

    def __init__(self, job: Job, recorder: Recorder, stop: StopRequests, site: SiteGate, control: ControlSteps) -> None:
        self._job = job
        self._recorder = recorder
        self._stop = stop
        self._site = site
        self._control = control
        self._outputs: dict[str, Mapping[str, str]] = {}
        self._budgets: dict[str, Budget] = {}
        self._renewed_at = time.monotonic()
        self._segments = 0
        self._began_at = time.time()
        self._attempts_before: dict[str, int] = {}

    def run(self) -> None:
        """Run the plan.

        Raises:
            OrchestratorError: The first failure that no retry budget covered; recorded before it is raised.
            Interrupted: Asked to stop; the execution is `interrupted` (or `cancelled`) and can be continued.
        """
        try:
            with self._stop.listening():
                self._walk()
        except Cancelled as error:
            self._put_rest_back(StepState.CANCELLED)
            self._recorder.end(ExecutionState.CANCELLED, error)
            raise
        except Interrupted as error:
            self._recorder.end(ExecutionState.INTERRUPTED, error)
            raise
        except Conflict:
            raise  # fenced: the ledger belongs to another process now, and so does the execution's state
        except OrchestratorError as error:
            state = ExecutionState.WAITING if error.exit_code == 5 else ExecutionState.FAILED
            self._recorder.end(state, error)
            raise
        except OSError as error:  # the disk is full, a folder is gone
            failure = InfraError(
                f"{type(error).__name__}: {error}", hint="check free space and permissions of the state folder"
            )
            self._recorder.end(ExecutionState.FAILED, failure)
            raise failure from error
        self._recorder.end(ExecutionState.SUCCEEDED)

    def _walk(self) -> None:
        recorder, plan = self._recorder, self._job.plan
        recorder.begin(plan)
        to_do = [step for step in plan.steps if not step.is_done]
        ray = any(s.draft.about.needs_ray for s in to_do)
        pool = any(s.draft.kind == "deploy" for s in to_do)
        if ray or pool:
            self._site.start(ray=ray, pool=pool)
        batch: list[PlannedStep] = []
        for step in plan.steps:
            in_segment = step.draft.about.place == "worker" and not step.is_done
            if in_segment:
                batch.append(step)
                continue
            self._run_batch(batch)
            batch = []
            self._tick()
            self._run_alone(step)
        self._run_batch(batch)

    def _run_alone(self, step: PlannedStep) -> None:
        if step.action is Action.REUSE:
            self._reuse(step)
        elif step.action is not Action.SKIP:
            self._perform(step)

    def _reuse(self, step: PlannedStep) -> None:
        assert step.result is not None
        assert step.fingerprint is not None
        self._outputs[step.name] = step.outputs
        if self._recorder.state(step.name) is StepState.SUCCEEDED:
            return
        miss = judge_result(step.name, step.draft.spec, step.result)
        verdict = miss.to_json() if miss else None
        self._recorder.reused(step.name, step.fingerprint, step.parts or {}, step.result, verdict)
        if miss is not None:
            raise miss

    def _perform(self, step: PlannedStep) -> None:
        draft, recorder = step.draft, self._recorder
        inputs = {i.name: self._outputs[i.step][i.output] for i in draft.inputs}
        parts = parts_of(draft, inputs)
        fingerprint = fingerprint_of(parts)
        while True:
            attempt = recorder.row(step.name).attempt + 1
            recorder.started(step.name, attempt, fingerprint, parts)
            try:
                if draft.kind == "deploy":
                    self._site.wait_ready(self._tick)
                result = self._control.perform(draft, inputs, recorder, self._tick)
            except Interrupted:
                recorder.put_back(step.name)
                raise
            except Waiting as error:
                recorder.waiting(step.name, error)
                raise
            except OrchestratorError as error:
                recorder.failed(step.name, error)
                self._retry_or_raise(draft, error)
                continue
            break
        record = {**result, "inputs": inputs, "fingerprint": fingerprint, "execution": self._job.execution}
        faults.point(f"engine.{draft.kind}.done")
        recorder.finished(step.name, record)
        if draft.kind != "deploy":
            self._job.store.put_result(fingerprint, record)
        self._outputs[step.name] = {}

    def _run_batch(self, batch: Iterable[PlannedStep]) -> None:
        left = list(batch)
        while left:
            failed = self._run_segment(left)
            for step in list(left):
                if self._recorder.state(step.name) is StepState.SUCCEEDED:
                    self._outputs[step.name] = self._recorder.row(step.name).outputs
                    left.remove(step)
            if failed is not None:
                draft = next(step.draft for step in left if step.name == failed[0])
                self._retry_or_raise(draft, failed[1])

    def _run_segment(self, steps: list[PlannedStep]) -> tuple[str, OrchestratorError] | None:
        job = self._job
        self._segments += 1
        segment = Segment(
            execution=job.execution,
            folder=job.folder / f"segment-{int(time.time() * 1000):x}-{self._segments}",
            store=job.store.root,
            work=job.work,
            recipe_dir=job.recipe_dir,
            site_name=job.site_name,
            site_state=job.site_state,
            allow_cpu=job.allow_cpu,
            site_file=self._site.site_file,
            known=dict(self._outputs),
            steps=tuple(self._handed_over(step) for step in steps),
        )
        faults.point("engine.segment.before")
        run = SegmentRun(segment, self._recorder, self._tick, f"{job.site_state}:{job.plan.recipe}")
        run.follow()
        faults.point("engine.segment.after")
        return run.failed

    def _handed_over(self, step: PlannedStep) -> SegmentStep:
        """A refresh means: in this run once. Its retries keep the work folder, and no older result counts for them."""
        done = self._recorder.row(step.name).attempt
        if not step.refresh:
            return SegmentStep(step.draft, done + 1)
        first = self._attempts_before.setdefault(step.name, done) == done
        return SegmentStep(step.draft, done + 1, newer_than=self._began_at, clean=first)

    def _retry_or_raise(self, draft: Draft, error: OrchestratorError) -> None:
        budget = self._budgets.setdefault(draft.name, Budget(draft.retries, self._job.retry_delay_s))
        delay_s = budget.spend(error.retry, int(str(error.details.get("restarts", 0))))
        if delay_s is None:
            raise error
        self._recorder.retrying(draft.name, error, delay_s, budget.describe(error.retry))
        until = time.monotonic() + delay_s
        while time.monotonic() < until:
            self._tick()
            time.sleep(0.02)

    def _put_rest_back(self, state: StepState) -> None:
        for step in self._job.plan.steps:
            if self._recorder.state(step.name) in {StepState.PENDING, StepState.RUNNING, StepState.WAITING}:
                self._recorder.put_back(step.name, state)

    def _tick(self) -> None:
        self._stop.check()
        if time.monotonic() - self._renewed_at > _RENEW_S:
            self._recorder.ledger.leases.renew(self._recorder.lease, ttl_s=LEASE_TTL_S)
            self._renewed_at = time.monotonic()
