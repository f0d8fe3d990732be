"""`rollout watch`: looks again and again; drives what nobody drives, follows aliases where a strategy says so, reports drift.

Level-triggered: it may be killed, run twice, or not run at all. What it has seen of MLflow it keeps in the ledger.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from orchestrator.app.rollout_lead import leader
from orchestrator.app.watch_aliases import AliasWatch
from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import Conflict, GateError, OrchestratorError, Unreachable, Waiting
from orchestrator.ledger import Ledger, Owner

Event = Mapping[str, Any]

_BACK_OFF_MAX_S: Final = 60.0
_TICK_S: Final = 0.05


def watch(workplace: Workplace, tell: Callable[[Event], None], *, interval_s: float = 5.0, once: bool = False) -> None:
    """Watch until interrupted.

    Args:
        workplace: Whose endpoints.
        tell: Hears `{event, t, endpoint, text, ...}`, from several threads, one at a time.
        interval_s: How often it looks.
        once: Look once, finish what that starts, and return.
    """
    with workplace.open_ledger() as ledger:
        watcher = _Watcher(workplace, ledger, tell, once=once)
        if once:
            watcher.look()
            watcher.finish()
            if watcher.acted and workplace.tracking_uri:
                watcher.look()  # MLflow sees what this has led to
                watcher.finish()
            watcher.tell("result", "", "looked once", acted=watcher.acted)
            return
        while True:
            watcher.look()
            time.sleep(interval_s)


class _Watcher:
    """One process's watching: a thread per thing that takes time, so that none waits for another."""

    def __init__(self, workplace: Workplace, ledger: Ledger, tell: Callable[[Event], None], *, once: bool) -> None:
        self._workplace, self._ledger, self._once = workplace, ledger, once
        self._told = tell
        self._lock = threading.Lock()
        self._jobs: dict[str, threading.Thread] = {}
        self._not_before: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._said: dict[str, str] = {}
        self.acted = False
        self._aliases = AliasWatch(workplace, ledger, self.tell, self._start)

    def tell(self, event: str, endpoint: str, text: str, **more: Any) -> None:
        """Say something, one thread at a time."""
        with self._lock:
            self._told({"event": event, "t": time.time(), "endpoint": endpoint, "text": text, **more})

    def look(self) -> None:
        """Look once and start what is to be done."""
        try:
            for row in self._ledger.rollouts.all_active():
                if leader(self._ledger, row.endpoint) is None:
                    self._start(
                        f"drive {row.endpoint}", row.endpoint, partial(self._drive, row.endpoint, row.generation)
                    )
        except Unreachable as error:
            self.tell("error", "", error.message)
        if self._workplace.tracking_uri:
            self._start("mlflow", "", self._mlflow)

    def finish(self) -> None:
        """Wait until everything that was started is over; a job may start others."""
        while living := [job for job in list(self._jobs.values()) if job.is_alive()]:
            living[0].join(_TICK_S)

    def _start(self, name: str, endpoint: str, work: Callable[[], None]) -> None:
        """Run a job unless it runs already or has failed a moment ago."""
        running = self._jobs.get(name)
        if (running is not None and running.is_alive()) or time.monotonic() < self._not_before.get(name, 0.0):
            return
        self.acted = self.acted or bool(endpoint)
        self._jobs[name] = threading.Thread(target=self._guarded, args=(name, endpoint, work), name=name, daemon=True)
        self._jobs[name].start()

    def _guarded(self, name: str, endpoint: str, work: Callable[[], None]) -> None:
        try:
            work()
        except OrchestratorError as error:
            failures = self._failures[name] = self._failures.get(name, 0) + 1
            self._not_before[name] = time.monotonic() + min(_BACK_OFF_MAX_S, 2.0 ** (failures - 1))
            if self._said.get(name) != error.message:  # once, not at every attempt
                self._said[name] = error.message
                self.tell("error", endpoint, error.message, error=error.code)
        else:
            self._failures.pop(name, None)
            self._said.pop(name, None)

    def _drive(self, endpoint: str, generation: int) -> None:
        from orchestrator.app.serve_site import connect
        from orchestrator.rollout.lead import drive

        row = self._ledger.rollouts.get(endpoint, generation)
        site = connect(self._workplace, row.site if row is not None else "")
        owner = Owner.here(f"watch {endpoint}")
        say = partial(self.tell, "message", endpoint)
        try:
            ended = drive(self._ledger, site, endpoint, owner, generation=generation, stay=not self._once, tell=say)
        except Waiting as error:
            self.tell("waiting", endpoint, error.message, generation=generation)
        except GateError as error:
            self.tell("rollout", endpoint, error.message, generation=generation, state="aborted")
        except Conflict as error:
            self.tell("message", endpoint, error.message)
        else:
            text = f"generation {ended.generation} is live"
            self.tell("rollout", endpoint, text, generation=ended.generation, state=ended.state.value)

    def _mlflow(self) -> None:
        """Show MLflow what the ledger says, then look at its aliases.

        Raises:
            Unreachable: It does not answer.
        """
        from orchestrator.app.projection import catch_up
        from orchestrator.app.rollout_projection import catch_up_rollouts

        catch_up(self._workplace, self._ledger)
        pending = catch_up_rollouts(self._workplace, self._ledger)
        self._aliases.look()
        if pending:
            raise Unreachable(
                "projection pending: " + "; ".join(sorted({text for found in pending.values() for text in found}))
            )
