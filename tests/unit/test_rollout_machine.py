"""Random verbs, crashes and evidence against the controller: whatever happens, what must hold holds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.rollout_world import ENDPOINT, World, error_rate, strategy

from orchestrator.core import faults
from orchestrator.core.errors import Conflict, OrchestratorError, UsageError
from orchestrator.ledger import GenerationState, Owner, Rollout
from orchestrator.rollout.lead import drive
from orchestrator.rollout.rollback import rollback

POINTS = (
    "begun", "shown", "entered", "counted", "added", "saved", "answered", "live", "succeeded", "lost", "withdrawn",
    "failed", "back_seized", "back_recorded", "back_published", "back_appended",
)  # fmt: skip
CRASHES = st.one_of(
    st.just(""), st.sampled_from(POINTS).map(lambda name: f"rollout.{name}"), st.just("ledger.after_commit#7")
)
STEPS = st.lists(
    st.sampled_from(
        [
            {"set_weight": 10},
            {"set_weight": 60},
            {"set_weight": 100},
            {"set_mirror": {"percent": 50}},
            {"set_header_route": {"match": [{"header": "x-a", "exact": "1"}]}},
            {"pause": {}},
            {"pause": {"duration_s": 5.0}},
            {"pause": {"min_requests": 20}},
            {"analysis": error_rate()},
        ]
    ),
    max_size=4,
)


class Crash(BaseException):
    """Stands for a kill: nothing of ours catches it, and no `finally` of the controller's may tidy up."""


class Machine(RuleBasedStateMachine):
    """One endpoint, many commands; each may die at a fault point."""

    def __init__(self) -> None:
        super().__init__()
        self._home = tempfile.TemporaryDirectory()
        self.world = World(Path(self._home.name))
        self.ended: dict[int, Rollout] = {}
        self.bad = 0

    def teardown(self) -> None:
        self._disarm()
        self.world.ledger.close()
        self._home.cleanup()

    @initialize()
    def begin(self) -> None:
        self.world.deploy("1")

    @rule(letter=st.sampled_from("123"), steps=STEPS, crash=CRASHES, approvals=st.integers(0, 1), beside=st.booleans())
    def promote(self, letter: str, steps: list[dict[str, Any]], crash: str, approvals: int, beside: bool) -> None:
        how = strategy(steps, approvals=approvals, progress_deadline_s=8.0, analysis=error_rate() if beside else None)
        self._try(lambda: self.world.deploy(letter, how, drain_timeout_s=0.0), crash)

    @precondition(lambda self: self.world.ledger.rollouts.active(ENDPOINT) is not None)
    @rule(verb=st.sampled_from(["pause", "resume", "abort", "promote"]))
    def ask(self, verb: Any) -> None:
        row = self.world.ledger.rollouts.active(ENDPOINT)
        assert row is not None
        try:
            self.world.ledger.rollouts.ask(ENDPOINT, verb, actor="bob")
        except Conflict:
            assert row.intent == "abort", "nothing else is refused"
            assert verb != "abort"
        else:
            assert row.intent != "abort" or verb == "abort", "no wish takes an abort back"

    @precondition(lambda self: self.world.ledger.rollouts.active(ENDPOINT) is not None)
    @rule(who=st.sampled_from(["ada", "bob"]), decision=st.sampled_from(["approve", "approve", "reject"]))
    def decide(self, who: str, decision: str) -> None:
        row = self.world.ledger.rollouts.active(ENDPOINT)
        assert row is not None
        canary = self.world.ledger.generations.get(ENDPOINT, row.generation)
        assert canary is not None
        said = {"identity": who, "decision": decision, "step": row.step, "bundle": canary.bundle, "reason": ""}
        self._try(lambda: self.world.ledger.rollouts.decide(ENDPOINT, row.generation, said, actor=who))

    @rule(crash=CRASHES)
    def carry_on(self, crash: str) -> None:
        world = self.world
        self._try(lambda: drive(world.ledger, world.site, ENDPOINT, Owner.here("t"), pace=world.clock.pace), crash)

    @rule(crash=CRASHES, to=st.one_of(st.none(), st.integers(1, 3)))
    def roll_back(self, crash: str, to: int | None) -> None:
        world = self.world
        self._try(lambda: rollback(world.ledger, world.site, ENDPOINT, to, actor="bob", drain_timeout_s=0.0), crash)

    @rule(bad=st.sampled_from([0, 0, 40]))
    def traffic(self, bad: int) -> None:
        self.bad = bad

    @rule()
    def router_is_away(self) -> None:
        self.world.site.down = not self.world.site.down

    def _try(self, work: Any, crash: str = "") -> None:
        """Run a command; errors of ours and crashes are part of the game, anything else is not."""
        self.world.clock.sleeps = 0
        self.world.clock.each = self._serve
        name, _, count = crash.partition("#")
        try:
            if crash:
                self._arm(name, int(count or 1))
            work()
        except OrchestratorError:
            pass
        except Crash:
            self._disarm()
            self._reborn()
        finally:
            self._disarm()

    def _serve(self) -> None:
        if not self.world.site.down:
            self.world.site.traffic(100, canary_errors=self.bad)

    def _arm(self, name: str, count: int) -> None:
        seen: list[str] = []

        def passed(point: str) -> None:
            if point == name:
                seen.append(point)
                if len(seen) == count:
                    raise Crash

        faults._ACTIVE, self._was = True, faults._pass
        faults._pass = passed

    def _disarm(self) -> None:
        if hasattr(self, "_was"):
            faults._pass, faults._ACTIVE = self._was, False
            del self._was

    def _reborn(self) -> None:
        """A crash takes the memory with it, not the lease of a dead process, which is free at once."""
        each = self.world.clock.each
        self.world.ledger.close()
        down = self.world.site.down
        self.world = World(self.world.folder, clock=self.world.clock)
        self.world.site.down, self.world.clock.each = down, each

    @invariant()
    def at_most_one_is_live(self) -> None:
        states = list(self.world.states().values())
        assert states.count("live") <= 1
        assert states.count("staged") <= 1
        assert states.count("warm") <= 1

    @invariant()
    def the_table_is_whole(self) -> None:
        for table in self.world.site.tables()[-3:]:
            for endpoint in table.endpoints.values():
                assert sum(g.weight for g in endpoint.generations) in (0, 100)

    @invariant()
    def what_has_ended_never_moves(self) -> None:
        for row in self.world.ledger.rollouts.list(ENDPOINT):
            if row.ended_at is not None:
                assert self.ended.setdefault(row.generation, row) == row
                if str(row.state) == "aborted":
                    assert (row.weight, row.mirror, row.headers) == (0, 0, ())

    @invariant()
    def a_failed_canary_gets_nothing_once_the_router_has_heard(self) -> None:
        if self.world.site.down:
            return
        try:
            live = self.world.ledger.generations.live(ENDPOINT)
            drive(self.world.ledger, self.world.site, ENDPOINT, Owner.here("t"), pace=self.world.clock.pace)
        except (UsageError, Conflict):
            return
        except OrchestratorError:
            pass
        del live
        failed = {n for n, state in self.world.states().items() if state == "failed"}
        shown = {g.generation for e in self.world.site.table().endpoints.values() for g in e.generations}
        assert not failed & shown
        for generation in self.world.ledger.generations.list(ENDPOINT):
            if generation.state == GenerationState.FAILED:
                assert generation.error is not None


Machine.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=14,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestMachine = Machine.TestCase
