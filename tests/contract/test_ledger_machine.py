"""Random walks over generations with repeats, races, crashes on both sides of a commit and restarts, against a model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from support.ledger_samples import request

from orchestrator.core.errors import Conflict
from orchestrator.ledger import GenerationState, Lease, Ledger, Owner
from orchestrator.ledger import database as database_module
from orchestrator.ledger.generations import TRANSITIONS

BUNDLES = "1234"


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

    def take(self) -> Lease:
        dead = Owner(user="u", host="h", machine=Owner.here().machine, pid=2**22 + 1, started_ticks=1)
        return self.ledger.leases.acquire("endpoint/digits", dead)

    def live(self) -> int:
        states = [state for _, _, state in self.model]
        return states.index(GenerationState.LIVE) + 1 if GenerationState.LIVE in states else 0

    def staged(self) -> int:
        states = [state for _, _, state in self.model]
        return states.index(GenerationState.STAGED) + 1 if GenerationState.STAGED in states else 0

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
        elif expected != self.live() or self.staged():
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

    @precondition(lambda self: self.model)
    @rule(data=st.data(), to=st.sampled_from(list(GenerationState)), crash=crashes)
    def move(self, data: st.DataObject, to: GenerationState, crash: str) -> None:
        number = data.draw(st.integers(max(1, len(self.model) - 3), len(self.model)))
        bundle, name, current = self.model[number - 1]
        call = lambda: self.ledger.generations.set_state("digits", number, to, self.lease, actor="ada")  # noqa: E731
        if current == to:
            assert call().state == to
        elif to not in TRANSITIONS[current]:
            with pytest.raises(Conflict):
                call()
        else:
            former = self.live()
            if self.attempt(crash, call):
                if to == GenerationState.LIVE and former:
                    self.model[former - 1] = (*self.model[former - 1][:2], GenerationState.DRAINING)
                self.model[number - 1] = (bundle, name, to)

    @rule(crash=crashes)
    def stamp(self, crash: str) -> None:
        stamps: list[object] = []
        committed = self.attempt(crash, lambda: stamps.append(self.ledger.generations.stamp("local", self.lease)))
        if committed:
            self.versions.append(len(self.versions) + 1)
        for found in stamps:
            assert found.version == len(self.versions)
            routed = {GenerationState.STAGED, GenerationState.LIVE, GenerationState.DRAINING}
            shown = [n + 1 for n, (_, _, state) in enumerate(self.model) if state in routed]
            assert [g.number for g in found.generations] == shown

    @precondition(lambda self: self.model)
    @rule()
    def a_fenced_zombie_changes_nothing(self) -> None:
        old = self.lease
        self.lease = self.take()
        for call in (
            lambda: self.ledger.generations.append(request("4", expected=self.live(), request_id="zombie"), old),
            lambda: self.ledger.generations.set_state("digits", 1, GenerationState.RETIRED, old, actor="zombie"),
        ):
            with pytest.raises(Conflict):
                call()

    @invariant()
    def ledger_equals_model(self) -> None:
        found = self.ledger.generations.list("digits")
        assert [(g.number, g.bundle[-1], g.request_id, g.state) for g in found] == [
            (index + 1, bundle, name, state) for index, (bundle, name, state) in enumerate(self.model)
        ]
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
