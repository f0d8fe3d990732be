"""Random walks over generations with repeats, races, crashes on both sides of a commit and restarts, against a model."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from support.ledger_samples import request, rollout

from orchestrator.core.errors import Conflict
from orchestrator.ledger import GenerationState, Lease, Ledger, Owner, RolloutState
from orchestrator.ledger import database as database_module
from orchestrator.ledger.generations import ROUTED, TRANSITIONS

BUNDLES = "1234"
STAGED, LIVE, WARM, DRAINING = (
    GenerationState.STAGED,
    GenerationState.LIVE,
    GenerationState.WARM,
    GenerationState.DRAINING,
)


class Crash(BaseException):
    """The process is gone: nothing of ours may handle it."""


class Generations(RuleBasedStateMachine):
    new_url = staticmethod(lambda folder: f"sqlite:///{folder}/ledger.db")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-machine-"))
        self.url = self.new_url(self.folder)
        self.crash_at = ""
        self.model: list[tuple[str, str, GenerationState]] = []  # (bundle, request id, state), number = index + 1
        self.rollouts: dict[int, tuple[RolloutState, int, str]] = {}  # generation -> (state, weight, intent)
        self.evidence: dict[int, int] = {}
        self.versions: list[int] = []
        self.ledger = Ledger.open(self.url)
        self.lease = self.take()
        self.original = database_module.point
        database_module.point = self.point  # pyright: ignore[reportPrivateImportUsage]

    def teardown(self) -> None:
        database_module.point = self.original
        self.ledger.close()
        shutil.rmtree(self.folder)

    def point(self, name: str) -> None:
        if name == self.crash_at:
            self.crash_at = ""
            raise Crash

    def take(self, *, seize: bool = False) -> Lease:
        dead = Owner(user="u", host="h", machine=Owner.here().machine, pid=2**22 + 1, started_ticks=1)
        return self.ledger.leases.acquire("endpoint/digits", dead, seize=seize)

    def live(self) -> int:
        states = [state for _, _, state in self.model]
        return states.index(GenerationState.LIVE) + 1 if GenerationState.LIVE in states else 0

    def staged(self) -> int:
        states = [state for _, _, state in self.model]
        return states.index(GenerationState.STAGED) + 1 if GenerationState.STAGED in states else 0

    def active(self) -> int:
        return next((number for number, (state, _, _) in self.rollouts.items() if state.active), 0)

    def end(self, number: int) -> None:
        if number:
            self.rollouts[number] = (RolloutState.ABORTED, 0, "")

    def become(self, number: int, state: GenerationState) -> None:
        self.model[number - 1] = (*self.model[number - 1][:2], state)

    def attempt(self, crash: str, call: object) -> bool:
        """Run a mutation, perhaps with a crash; tells whether it was committed. A crash means a new process."""
        self.crash_at = crash
        try:
            call()  # type: ignore[operator]
        except Crash:
            self.ledger.close()
            self.ledger = Ledger.open(self.url)
            self.lease = self.take()
            return crash == "ledger.after_commit"
        finally:
            self.crash_at = ""
        return True

    crashes = st.sampled_from(["", "", "", "ledger.before_commit", "ledger.after_commit"])

    @rule(bundle=st.sampled_from(BUNDLES), lag=st.integers(0, 1), salt=st.integers(0, 2), crash=crashes)
    def append(self, bundle: str, lag: int, salt: int, crash: str) -> None:
        expected = max(0, self.live() - lag)
        wanted = request(bundle, expected=expected, request_id=f"{bundle}/{expected}/{salt}")
        known = [index for index, (_, name, _) in enumerate(self.model) if name == wanted.request_id]
        if known:
            assert self.ledger.generations.append(wanted, self.lease).number == known[0] + 1
        elif expected != self.live() or self.staged() or self.active():
            with pytest.raises(Conflict):
                self.ledger.generations.append(wanted, self.lease)
        elif self.attempt(crash, lambda: self.ledger.generations.append(wanted, self.lease)):
            self.model.append((bundle, wanted.request_id, GenerationState.STAGED))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def the_same_id_for_another_bundle(self, data: st.DataObject) -> None:
        bundle, name, _ = data.draw(st.sampled_from(self.model))
        other = next(letter for letter in BUNDLES if letter != bundle)
        with pytest.raises(Conflict):
            self.ledger.generations.append(request(other, request_id=name, expected=self.live()), self.lease)

    @rule(bundle=st.sampled_from(BUNDLES), lag=st.integers(0, 1), salt=st.integers(0, 1), crash=crashes)
    def roll_back(self, bundle: str, lag: int, salt: int, crash: str) -> None:
        expected = max(0, self.live() - lag)
        wanted = request(bundle, expected=expected, request_id=f"back/{bundle}/{expected}/{salt}", kind="rollback")
        known = [index for index, (_, name, _) in enumerate(self.model) if name == wanted.request_id]
        if known:
            assert self.ledger.generations.roll_back(wanted, self.lease).number == known[0] + 1
        elif expected != self.live():
            with pytest.raises(Conflict) as caught:
                self.ledger.generations.roll_back(wanted, self.lease)
            assert caught.value.details["live"] == self.live()
        elif self.attempt(crash, lambda: self.ledger.generations.roll_back(wanted, self.lease)):
            after = {STAGED: GenerationState.FAILED, LIVE: DRAINING, WARM: DRAINING}
            self.model = [(one, name, after.get(state, state)) for one, name, state in self.model]
            self.model.append((bundle, wanted.request_id, LIVE))
            self.end(self.active())

    @precondition(lambda self: self.model)
    @rule(
        data=st.data(),
        to=st.sampled_from(list(GenerationState)),
        former=st.sampled_from([WARM, WARM, DRAINING]),
        crash=crashes,
    )
    def move(self, data: st.DataObject, to: GenerationState, former: GenerationState, crash: str) -> None:
        number = data.draw(st.integers(max(1, len(self.model) - 3), len(self.model)))
        current = self.model[number - 1][2]
        call = lambda: self.ledger.generations.set_state(  # noqa: E731
            "digits", number, to, self.lease, actor="ada", former=former
        )
        if current == to:
            assert call().state == to
        elif to not in TRANSITIONS[current]:
            with pytest.raises(Conflict):
                call()
        elif self.attempt(crash, call):
            if to == LIVE:
                after = {LIVE: former, WARM: DRAINING}
                self.model = [(one, name, after.get(state, state)) for one, name, state in self.model]
            self.become(number, to)
            if to == LIVE and self.active() != number:
                self.end(self.active())
            if to == GenerationState.FAILED and self.active() == number:
                self.end(number)

    @precondition(lambda self: self.staged())
    @rule(weight=st.integers(0, 100), crash=crashes)
    def begin(self, weight: int, crash: str) -> None:
        number = self.staged()
        call = lambda: self.ledger.rollouts.begin(  # noqa: E731
            rollout(number, stable=self.live(), weight=weight), self.lease
        )
        if number in self.rollouts:
            assert call().weight == self.rollouts[number][1]
        elif self.active():
            with pytest.raises(Conflict):
                call()
        elif self.attempt(crash, call):
            self.rollouts[number] = (RolloutState.PROGRESSING, weight, "")

    @precondition(lambda self: self.rollouts)
    @rule(data=st.data(), to=st.sampled_from(list(RolloutState)), weight=st.integers(0, 100), crash=crashes)
    def save(self, data: st.DataObject, to: RolloutState, weight: int, crash: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.rollouts)))
        state, _, intent = self.rollouts[number]
        row = self.ledger.rollouts.get("digits", number)
        assert row is not None
        wanted = replace(row, state=to, weight=weight)
        if state.active:
            if self.attempt(crash, lambda: self.ledger.rollouts.save(wanted, self.lease)):
                self.rollouts[number] = (to, weight, intent if to.active else "")
        elif wanted != row:
            with pytest.raises(Conflict):
                self.ledger.rollouts.save(wanted, self.lease)

    @rule(intent=st.sampled_from(["pause", "resume", "abort"]), crash=crashes)
    def ask(self, intent: str, crash: str) -> None:
        call = lambda: self.ledger.rollouts.ask("digits", intent, actor="bob")  # type: ignore[arg-type]  # noqa: E731
        number = self.active()
        if not number:
            with pytest.raises(Conflict):
                call()
        elif self.rollouts[number][2] == intent:
            assert call().intent == intent
        elif self.rollouts[number][2] == "abort":
            with pytest.raises(Conflict):
                call()
        elif self.attempt(crash, call):
            self.rollouts[number] = (*self.rollouts[number][:2], intent)

    @precondition(lambda self: self.active())
    @rule(answer=st.sampled_from(["pause", "resume", "abort"]), rows=st.integers(1, 3), crash=crashes)
    def work(self, answer: str, rows: int, crash: str) -> None:
        number = self.active()
        state, weight, intent = self.rollouts[number]
        self.ledger.rollouts.answered("digits", number, answer, self.lease)
        self.rollouts[number] = (state, weight, "" if intent == answer else intent)
        counted = [{"n": index} for index in range(rows)]
        if self.attempt(crash, lambda: self.ledger.rollouts.add_evidence("digits", number, counted, self.lease)):
            self.evidence[number] = self.evidence.get(number, 0) + rows

    @rule(crash=crashes)
    def stamp(self, crash: str) -> None:
        stamps: list[object] = []
        committed = self.attempt(crash, lambda: stamps.append(self.ledger.generations.stamp("local", self.lease)))
        if committed:
            self.versions.append(len(self.versions) + 1)
        for found in stamps:
            assert found.version == len(self.versions)
            shown = [n + 1 for n, (_, _, state) in enumerate(self.model) if state in ROUTED]
            assert [g.number for g in found.generations] == shown
            assert [r.generation for r in found.rollouts.values()] == ([self.active()] if self.active() else [])

    @precondition(lambda self: self.model)
    @rule()
    def a_fenced_zombie_changes_nothing(self) -> None:
        old = self.lease
        self.lease = self.take(seize=True)
        assert self.lease.token == old.token + 1
        for call in (
            lambda: self.ledger.generations.append(request("4", expected=self.live(), request_id="zombie"), old),
            lambda: self.ledger.generations.set_state("digits", 1, GenerationState.RETIRED, old, actor="zombie"),
            lambda: self.ledger.generations.roll_back(request("4", expected=self.live(), request_id="zombie"), old),
            lambda: self.ledger.rollouts.begin(rollout(len(self.model)), old),
            lambda: self.ledger.rollouts.add_evidence("digits", 1, [{"n": 1}], old),
        ):
            with pytest.raises(Conflict):
                call()

    @invariant()
    def ledger_equals_model(self) -> None:
        found = self.ledger.generations.list("digits")
        assert [(g.number, g.bundle[-1], g.request_id, g.state) for g in found] == [
            (index + 1, bundle, name, state) for index, (bundle, name, state) in enumerate(self.model)
        ]
        for state in (STAGED, LIVE, WARM):
            assert sum(g.state == state for g in found) <= 1
        rows = {r.generation: (r.state, r.weight, r.intent) for r in self.ledger.rollouts.list("digits")}
        assert rows == self.rollouts
        for number in self.rollouts:
            seqs = [row.seq for row in self.ledger.rollouts.evidence("digits", number)]
            assert seqs == list(range(1, self.evidence.get(number, 0) + 1))
        assert self.ledger.audit.verify().count >= len(self.model)


def test_random_walks_on_sqlite() -> None:
    run_state_machine_as_test(
        Generations,
        settings=settings(
            max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_random_walks_on_postgres(request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("postgres_server")
    machine = type("OnPostgres", (Generations,), {"new_url": staticmethod(lambda folder: server.database())})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
