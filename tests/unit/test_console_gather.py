"""From a real ledger and the routers' words to what the pages show; what the buttons do to the ledger."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from support.ledger_samples import request

from orchestrator.app import rollouts
from orchestrator.app.rollouts import RollbackAsk
from orchestrator.app.top import Look
from orchestrator.app.wiring import Workplace, open_workplace
from orchestrator.console import actions, leading
from orchestrator.console.actions import Actions
from orchestrator.console.gather import Gather
from orchestrator.console.traffic import SiteView
from orchestrator.core.errors import Conflict, StoreError, UsageError, Waiting
from orchestrator.ledger import GenerationState, Lease, Ledger, Owner, Rollout, RolloutState
from orchestrator.rollout.evidence.rows import Counts, Delta
from orchestrator.rollout.evidence.spec import AnalysisSpec, MetricSpec
from orchestrator.rollout.identity import Identity, Role
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_steps import Analysis, Pause, SetWeight

SPEC = AnalysisSpec(metrics=(MetricSpec(name="error_rate", margin=0.05),), min_samples=50)
DIGITS: dict[str, Any] = {"endpoint": "digits", "site": "local", "pool": "edge"}
ADA = Identity("ada", frozenset[Role]({"promote", "approve"}))
STATUS: dict[str, Any] = {
    "boot": "1",
    "generations": [
        {"endpoint": "digits", "generation": n, "weight": w, "ready": 1, "queued": 0, "in_flight": n}
        for n, w in ((1, 90), (2, 10))
    ],
}


def _look(at: float, ended: int, faults: int) -> Look:
    labels = {"endpoint": "digits", "generation": "2", "stage": "model"}
    edges = (("0.01", ended), ("0.1", ended), ("+Inf", ended))
    return Look(
        at,
        STATUS,
        {
            "orchestrate_requests_total": [
                ({**labels, "status": "200", "kind": "ok"}, ended - faults),
                ({**labels, "status": "500", "kind": "execution_failed"}, faults),
            ],
            "orchestrate_request_duration_seconds_bucket": [({**labels, "le": le}, n) for le, n in edges],
        },
    )


class FakeSites:
    """Stands for the routers."""

    error = ""
    arms: tuple[dict[str, Any], ...] = (
        {"generation": 2, "traffic": "weighted", "weight": 5, "requests": 40, "errors": {"timeout": 2}, "fell_back": 2},
        {"generation": 2, "traffic": "weighted", "weight": 10, "requests": 60, "errors": {}, "refused": 1},
    )

    def view(self, name: str) -> SiteView:
        if self.error:
            return SiteView("", {"generations": []}, (), self.error)
        return SiteView("http://127.0.0.1:1", STATUS, (_look(0, 0, 0), _look(20, 200, 10)), "")

    def evidence(self, name: str, endpoint: str) -> Mapping[str, Any]:
        pairs = {"n": 10, "agree": 9, "top1": 8, "flips": 2, "dropped": 1, "failed": 0}
        return {"routers": [{"arms": [arm], "pairs": pairs} for arm in self.arms]}


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    file = tmp_path / "environment.yaml"
    file.write_text(
        f"environment: 1\nstate: {tmp_path}/state\nsites: {{local: {{kind: local}}}}\ntracking: {{uri: none}}\n"
    )
    return open_workplace(file)


@pytest.fixture
def ledger(workplace: Workplace) -> Iterator[Ledger]:
    with workplace.open_ledger() as found:
        yield found


@pytest.fixture
def lease(ledger: Ledger) -> Lease:
    lease = ledger.leases.acquire("endpoint/digits", Owner.here("test"))
    for number in (1, 2):
        ledger.generations.append(request(str(number), expected=number - 1), lease)
        if number == 1:
            ledger.generations.set_state("digits", 1, GenerationState.LIVE, lease, actor="ada")
    return lease


def _begin(ledger: Ledger, lease: Lease, strategy: Strategy, **changes: Any) -> Rollout:
    row = Rollout(**DIGITS, generation=2, stable=1, strategy=strategy.to_json(), actor="bea")
    return ledger.rollouts.save(replace(ledger.rollouts.begin(row, lease), **changes), lease)


def _gather(workplace: Workplace, ledger: Ledger, sites: FakeSites | None = None) -> Gather:
    return Gather(workplace, ledger, cast("Any", sites or FakeSites()))


def test_an_endpoint_with_a_rollout_in_the_middle(workplace: Workplace, ledger: Ledger, lease: Lease) -> None:
    strategy = Strategy(kind="canary", steps=(SetWeight(10), Analysis(SPEC), Pause()), approvals=1, sticky="x-user")
    header = {"name": "x-canary", "how": "exact", "value": "yes"}
    changes = {"step": 1, "weight": 10, "mirror": 50, "headers": (header,), "notes": {"step_seq": 5}}
    _begin(ledger, lease, strategy, waiting={"kind": "evidence", "text": "more", "since": 1.0}, **changes)
    rows = [
        Delta(
            t=1e9 + k,
            boot="b",
            traffic="weighted",
            weight=10,
            canary=Counts(requests=50 if k < 5 else 10),
            stable=Counts(requests=90),
        )
        for k in range(25)
    ]
    ledger.rollouts.add_evidence("digits", 2, [row.to_json() for row in rows], lease)
    gather = _gather(workplace, ledger)
    found = gather.endpoint("digits")
    assert found is not None
    assert (found.live, found.badge.text, found.rehearsal) == (1, "ready", True)
    assert [(g.number, g.part, g.weight) for g in found.split] == [(1, "stable", 90), (2, "canary", 10)]
    traffic = found.generations[0].traffic
    assert traffic is not None
    assert (traffic.requests_per_s, traffic.errors_per_s, traffic.window_s) == (10, 0.5, 20)
    assert [(a.traffic, a.requests, a.errors, a.fell_back, a.refused) for a in found.arms] == [
        ("by weight", 100, 2, 2, 1)
    ]
    assert found.pairs is not None
    assert (found.pairs.compared, found.pairs.agree) == (20, 18)
    rollout = found.rollout
    assert rollout is not None
    assert [(s.text, s.state) for s in rollout.steps] == [
        ("10 %", "done"),
        ("analysis (error_rate)", "now"),
        ("pause for a person", "next"),
        ("1 approval", "next"),
        ("live", "next"),
    ]
    assert (rollout.headers, rollout.sticky, rollout.waiting) == (("x-canary = yes",), "x-user", "more")
    (metric,) = rollout.metrics
    assert metric.canary.endswith("of 200")  # the rows before the step began are not of its analysis
    assert metric.bound is not None

    more = replace(rows[-1], canary=Counts(requests=100))
    ledger.rollouts.add_evidence("digits", 2, [more.to_json()], lease)
    again = gather.endpoint("digits")
    assert again is not None
    assert again.rollout is not None
    assert again.rollout.metrics[0].canary.endswith("of 300")
    (line,) = gather.endpoints()
    assert (line.name, line.rollout) == ("digits", "1 → 2 at 10 %")


def test_a_site_that_is_down_is_said_and_the_ledger_is_shown(
    workplace: Workplace, ledger: Ledger, lease: Lease
) -> None:
    sites = FakeSites()
    sites.error = "Site local does not answer"
    found = _gather(workplace, ledger, sites).endpoint("digits")
    assert found is not None
    assert (found.badge.text, found.site_error, found.split) == ("site down", "Site local does not answer", ())
    assert [g.number for g in found.generations] == [2, 1]
    assert found.rollout is None


def test_a_rollout_that_has_ended_keeps_its_reason_and_its_curves(
    workplace: Workplace, ledger: Ledger, lease: Lease
) -> None:
    strategy = Strategy(kind="canary", steps=(SetWeight(10), Analysis(SPEC), SetWeight(50)))
    error = {"message": "error_rate has failed"}
    _begin(ledger, lease, strategy, step=2, state=RolloutState.ABORTED, error=error, verdict={"state": "failed"})
    found = _gather(workplace, ledger).endpoint("digits")
    assert found is not None
    assert found.rollout is not None
    assert (found.rollout.active, found.rollout.error) == (False, "error_rate has failed")
    assert (found.rollout.badge.text, found.arms) == ("aborted", ())
    assert found.rollout.judged == "the last analysis, over the whole rollout"


def test_nothing_is_known_of_a_stranger(workplace: Workplace, ledger: Ledger) -> None:
    assert _gather(workplace, ledger).endpoint("nobody") is None
    assert _gather(workplace, ledger).endpoints() == []


def test_buttons_write_into_the_ledger_with_the_name(workplace: Workplace, ledger: Ledger, lease: Lease) -> None:
    begun = _begin(ledger, lease, Strategy(kind="canary", steps=(Pause(),), approvals=2))
    canary = ledger.generations.get("digits", 2)
    assert canary is not None
    buttons, form = Actions(workplace, ledger), {"generation": "2", "bundle": canary.bundle, "reason": "r"}
    assert "Asked to abort" in buttons.do("abort", "digits", form, ADA)
    assert "ada approves generation 2" in buttons.do("approve", "digits", form, ADA)
    active = ledger.rollouts.active("digits")
    assert active is not None
    assert (active.intent, [a["identity"] for a in active.approvals]) == ("abort", ["ada"])
    assert [row.actor for row in ledger.audit.rows()][-2:] == ["ada", "ada"]
    with pytest.raises(Conflict):
        buttons.do("reject", "digits", form, ADA)

    with pytest.raises(UsageError, match="bob may not approve"):
        buttons.do("approve", "digits", form, Identity("bob", frozenset[Role]({"promote"})))
    with pytest.raises(Conflict, match="no rollout of generation 7"):
        buttons.do("pause", "digits", {**form, "generation": "7"}, ADA)
    with pytest.raises(Conflict, match="another bundle"):
        buttons.do("approve", "digits", {**form, "bundle": "sha256:0"}, ADA)
    for number in ("", "x", "-1", "1" * 20, "²"):
        with pytest.raises(UsageError, match="generation must be a number"):
            buttons.do("pause", "digits", {**form, "generation": number}, ADA)
    with pytest.raises(UsageError, match="needs a reason"):
        buttons.do("rollback", "digits", {"to": "1", "expect": "1"}, ADA)
    ledger.rollouts.save(replace(begun, state=RolloutState.ABORTED), lease)
    with pytest.raises(Conflict, match="no rollout of generation 2"):
        buttons.do("pause", "digits", form, ADA)


def test_a_rollout_that_nobody_leads_is_led_on_after_a_button(
    workplace: Workplace, ledger: Ledger, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    _begin(ledger, lease, Strategy(kind="canary", steps=(Pause(),)))
    canary = ledger.generations.get("digits", 2)
    assert canary is not None
    led, done = [], threading.Event()

    def carry_on(_place: Workplace, endpoint: str, generation: int, _tell: object) -> None:
        led.append((endpoint, generation))
        done.set()
        raise Waiting("for a person")

    monkeypatch.setattr(leading, "carry_on", carry_on)
    buttons, form = Actions(workplace, ledger), {"generation": "2", "bundle": canary.bundle}
    buttons.do("pause", "digits", form, ADA)
    assert led == []  # we lead
    before = _gather(workplace, ledger).endpoint("digits")
    ledger.leases.release(lease)
    after = _gather(workplace, ledger).endpoint("digits")
    assert before is not None
    assert after is not None
    assert before.rollout is not None
    assert after.rollout is not None
    assert (f"process {os.getpid()}" in before.rollout.led_by, after.rollout.led_by) == (True, "")
    buttons.do("abort", "digits", form, ADA)
    assert done.wait(10)
    assert led == [("digits", 2)]


def test_a_rollback_says_what_it_did_or_why_not(
    workplace: Workplace, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RollbackAsk] = []

    def rollback(_place: Workplace, ask: RollbackAsk, _tell: object) -> dict[str, Any]:
        asked.append(ask)
        if ask.to == 9:
            raise StoreError("the files of generation 9 are gone")
        if ask.to == 8:
            slow.wait(10)
        return {"generation": 12}

    slow = threading.Event()
    monkeypatch.setattr(rollouts, "rollback", rollback)
    monkeypatch.setattr(actions, "_PATIENCE_S", 0.5)
    buttons, form = Actions(workplace, ledger), {"to": "7", "expect": "11", "reason": "wrong digits"}
    assert "generation 12 serves" in buttons.do("rollback", "digits", form, ADA)
    assert asked == [RollbackAsk(endpoint="digits", to=7, expect=11, actor="ada", reason="wrong digits")]
    with pytest.raises(StoreError, match="are gone"):
        buttons.do("rollback", "digits", {**form, "to": "9"}, ADA)
    assert "is under way" in buttons.do("rollback", "digits", {**form, "to": "8"}, ADA)
    slow.set()
