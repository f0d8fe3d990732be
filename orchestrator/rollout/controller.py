"""The controller of a rollout: looks, decides, and moves one step; all it knows is in the ledger's row.

Whoever holds the endpoint's lease drives; any controller may die or be stopped at any instant and another goes on where the
ledger stands. One whose lease was taken finds out at its next write, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from orchestrator.core.errors import LedgerError, Unreachable
from orchestrator.core.faults import point
from orchestrator.ledger import Generation, GenerationState, Lease, Ledger, Rollout, RolloutState
from orchestrator.rollout.gathering import COUNTED, Gathering
from orchestrator.rollout.kills import reason_to_kill, restarts_beyond, restarts_of
from orchestrator.rollout.probe import Prober
from orchestrator.rollout.site import Site
from orchestrator.rollout.stage import Pace, Stage
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_steps import Analysis, Pause
from orchestrator.rollout.telling import line, outcome, waiting_for
from orchestrator.rollout.walk import BACKGROUND_SEQ, ENTERED, OBEYED, STEP_SEQ, Facts, Move, decide

_INTERVAL_S: Final = 1.0
_GLANCE_S: Final = 0.2
"""How often a controller that waits looks whether somebody has asked for something."""
_RESTARTS: Final = "restarts"


@dataclass(frozen=True, slots=True)
class Tick:
    """What a look led to; `next_in_s` until the next one is due."""

    rollout: Rollout
    next_in_s: float


class Controller:
    """Drives one rollout for the holder of the endpoint's lease.

    Args:
        ledger: The serve site's ledger.
        site: Where it is served.
        row: The rollout; also one that has ended and was not tidied up.
        lease: The endpoint's.
        tell: Hears one line per change.
        pace: Clock and sleep.
    """

    def __init__(
        self, ledger: Ledger, site: Site, row: Rollout, lease: Lease, *, tell: Callable[[str], None], pace: Pace
    ) -> None:
        self._ledger, self._site, self._lease, self._tell, self._pace = ledger, site, lease, tell, pace
        self._row = row
        self._strategy = Strategy.from_json(row.strategy)
        self._stage = Stage(ledger, site, lease, actor=row.actor, tell=tell, pace=pace)
        self._evidence = Gathering(ledger, site, row, self._strategy, lease)
        self._unread_since: float | None = None
        self._said = ""

    def run(self, *, stay: bool = False) -> Rollout:
        """Drive to the end, or until it waits for people.

        Args:
            stay: Wait for people too, instead of raising.

        Raises:
            Waiting: It is paused: for an approval, an operator, or because the evidence is inconclusive.
            GateError: It has ended and the canary was taken back.
            Conflict: Somebody else leads now; nothing was changed since.
            Unreachable: The router did not answer for the whole progress deadline; nothing is decided.
        """
        if not self._tidy():
            self._stage.publish()  # heals what a killed controller has saved and not shown
            with Prober(self._site, self._generations(), self._strategy.probe_rate) as prober:
                while self._row.ended_at is None:
                    tick = self.tick()
                    prober.active = self._probes()
                    if self._row.state == RolloutState.PAUSED and not stay:
                        raise waiting_for(self._row)
                    if self._row.ended_at is None:
                        self._wait(tick.next_in_s)
        return outcome(self._row)

    def tick(self) -> Tick:
        """Look once and make at most one move.

        Raises:
            Conflict: Somebody else leads now.
        """
        self._ledger.leases.check(self._lease)
        self._stage.renew()
        self._row = self._fresh()
        try:
            if self._row.notes.get(ENTERED) != self._row.step:
                self._enter()
            self._row = self._evidence.look(self._row, self._pace.now())
            facts = self._facts()
        except Unreachable as error:
            return self._unreadable(error)
        self._unread_since = None
        move = decide(self._row, self._strategy, facts)
        self._carry_out(move)
        return Tick(self._row, self._due_in())

    def _fresh(self) -> Rollout:
        row = self._ledger.rollouts.get(self._row.endpoint, self._row.generation)
        if row is None:
            raise LedgerError(f"the rollout of {self._row.endpoint!r} is gone", hint="is this the right ledger?")
        return row

    def _enter(self) -> None:
        """Show what the step wants, then note that it has begun: from here on its time and its requests count."""
        self._stage.publish()
        point("rollout.shown")
        now, notes = self._pace.now(), dict(self._row.notes)
        if self._row.stable and COUNTED not in notes:
            notes |= self._evidence.begin()
        beside = self._strategy.analysis
        if beside is not None and self._row.step >= beside.starting_step:
            notes.setdefault(BACKGROUND_SEQ, self._evidence.seq)
        notes |= {ENTERED: self._row.step, STEP_SEQ: self._evidence.seq}
        notes.setdefault(_RESTARTS, self._restarts())
        self._save(replace(self._row, step_started_at=now, progressed_at=now, notes=notes))
        point("rollout.entered")
        self._say()

    def _facts(self) -> Facts:
        row, canary = self._row, self._canary()
        restarts = restarts_beyond(row.notes.get(_RESTARTS, 0), **self._restarts())
        return Facts(
            now=self._pace.now(),
            bundle=canary.bundle,
            seq=self._evidence.seq,
            requests=self._evidence.requests(row),
            step=self._evidence.of_step(row),
            background=self._evidence.beside(row),
            kill=reason_to_kill(self._strategy.kill, self._evidence.rows, restarts),
            wish=self._ledger.rollouts.wish(row.endpoint, row.generation) if row.intent else "",
        )

    def _restarts(self) -> dict[str, dict[str, int]]:
        status, stable = self._site.status(), self._ledger.generations.get(self._row.endpoint, self._row.stable)
        return {"canary": restarts_of(status, self._canary()), "stable": restarts_of(status, stable)}

    def _carry_out(self, move: Move) -> None:
        if move.then == "lose":
            self._lose(move)
            return
        if move.row != self._row:
            self._save(move.row)
            point("rollout.saved")
        obeyed = str(self._row.notes.get(OBEYED, ""))
        if obeyed:
            self._ledger.rollouts.answered(self._row.endpoint, self._row.generation, obeyed, self._lease)
            point("rollout.answered")
            notes = {name: value for name, value in self._row.notes.items() if name != OBEYED}
            self._save(replace(self._row, notes=notes))
        self._say()
        if move.then == "live":
            self._go_live()

    def _go_live(self) -> None:
        canary = self._canary()
        if canary.state == GenerationState.STAGED:
            self._stage.set_state(canary, GenerationState.LIVE, former=GenerationState.WARM)
        point("rollout.live")
        self._row = self._fresh()
        if self._row.ended_at is None:
            over: dict[str, Any] = {"state": RolloutState.SUCCEEDED, "waiting": None, "ended_at": self._pace.now()}
            self._save(replace(self._row, weight=100, mirror=0, headers=(), **over))
        point("rollout.succeeded")
        self._tell(f"generation {canary.number} of {canary.endpoint!r} is live")
        self._stage.finish(canary)

    def _lose(self, move: Move) -> None:
        """Take the canary back: first out of the traffic, then out of the table."""
        over: dict[str, Any] = {"state": RolloutState.ABORTED, "waiting": None, "ended_at": self._pace.now()}
        self._save(replace(move.row, weight=0, mirror=0, headers=(), error=move.error, **over))
        point("rollout.lost")
        self._withdraw(self._canary())

    def _withdraw(self, canary: Generation) -> None:
        try:
            self._stage.publish()
        except Unreachable:
            self._tell("the router does not answer; it gets the new table when it does")
        point("rollout.withdrawn")
        self._stage.fail(canary, self._row.error or {"error": "GateError", "message": "taken back"})
        point("rollout.failed")

    def _tidy(self) -> bool:
        """Finish what a killed controller left of a rollout that has ended; returns whether it has."""
        canary = self._canary()
        if canary.state == GenerationState.LIVE:
            self._go_live()
        elif self._row.ended_at is not None and canary.state == GenerationState.STAGED:
            self._withdraw(canary)
        elif self._row.ended_at is not None:
            self._stage.publish()
        return self._row.ended_at is not None

    def _unreadable(self, error: Unreachable) -> Tick:
        """A router that does not answer decides nothing; but it is not waited for without end."""
        now = self._pace.now()
        if self._unread_since is None:
            self._unread_since = now
            self._tell(f"{error.message}; waiting for it")
        if now - self._unread_since > self._strategy.progress_deadline_s:
            raise error
        return Tick(self._row, _INTERVAL_S)

    def _due_in(self) -> float:
        """Return when something may have changed: counts after the interval, a pause at its end, a new step at once."""
        row, steps = self._row, self._strategy.steps
        if row.notes.get(ENTERED) != row.step:
            return 0.0
        step = steps[row.step] if row.step < len(steps) else None
        analysis = step.spec if isinstance(step, Analysis) else self._strategy.analysis
        due_s = analysis.interval_s if analysis is not None else _INTERVAL_S
        if isinstance(step, Pause) and step.duration_s is not None:
            left_s = row.step_started_at + step.duration_s - self._pace.now()
            due_s = min(due_s, left_s) if left_s > 0 else due_s
        return max(0.0, due_s)

    def _wait(self, seconds: float) -> None:
        """Wait, but not past a wish or an approval."""
        until = self._pace.now() + seconds
        while (left_s := until - self._pace.now()) > 0:
            self._stage.pause(min(left_s, _GLANCE_S))
            row = self._fresh()
            if (row.intent, row.approvals, row.ended_at) != (self._row.intent, self._row.approvals, None):
                return

    def _probes(self) -> bool:
        row = self._row
        return bool(row.stable) and row.state == RolloutState.PROGRESSING and row.ended_at is None

    def _save(self, row: Rollout) -> None:
        self._row = self._ledger.rollouts.save(row, self._lease)

    def _canary(self) -> Generation:
        found = self._ledger.generations.get(self._row.endpoint, self._row.generation)
        if found is None:
            raise LedgerError(
                f"generation {self._row.generation} of {self._row.endpoint!r} is gone", hint="see the audit"
            )
        return found

    def _generations(self) -> tuple[Generation, ...]:
        numbers = (self._row.stable, self._row.generation)
        return tuple(g for g in self._ledger.generations.list(self._row.endpoint) if g.number in numbers)

    def _say(self) -> None:
        text = line(self._row, self._strategy)
        if text != self._said:
            self._said = text
            self._tell(text)
