"""`endpoint scale` and `endpoint delete` against a fake site: fenced, audited, idempotent, and killed anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.fake_site import DEVICE, FakeSite, make_bundle
from support.forked import fired, run_forked
from support.ledger_samples import digest

from orchestrator.core.errors import Conflict, ServingError, UsageError, Waiting
from orchestrator.ledger import Ledger, Owner
from orchestrator.rollout.deploy import deploy
from orchestrator.rollout.request import DeployRequest
from orchestrator.rollout.rollback import rollback
from orchestrator.rollout.scale import Deleted, Scaled, ScaleRequest, delete, scale
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_steps import Pause, SetWeight


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with Ledger.open(ledger_url) as opened:
        yield opened


@pytest.fixture
def site(tmp_path: Path, ledger: Ledger) -> FakeSite:
    make_bundle(tmp_path, "1")
    found = FakeSite(tmp_path, agents=3)
    run(ledger, found)
    return found


def run(ledger: Ledger, site: FakeSite) -> int:
    path = site.folder / "bundles" / "1"
    request = DeployRequest(
        endpoint="digits", pool="edge", bundle=digest("1"), path=path, runtime="onnx-cpu", device=DEVICE, actor="ada"
    )
    return deploy(ledger, site, request, Owner.here("test")).generation


def take(ledger: Ledger, site: FakeSite, slots: int | None, **more: Any) -> Scaled:
    request = ScaleRequest("digits", slots, "bob", timeout_s=1.0, **more)
    return scale(ledger, site, request, Owner.here("test"), tell=lambda _: None)


def remove(ledger: Ledger, site: FakeSite) -> Deleted:
    return delete(ledger, site, "digits", Owner.here("test"), actor="bob", drain_timeout_s=2.0)


def rows(ledger: Ledger) -> list[tuple[str, Any]]:
    return [(row.actor, row.detail["slots"]) for row in ledger.audit.rows() if row.action == "endpoint.scale"]


def test_scale_is_in_the_table_in_the_audit_and_idempotent(ledger: Ledger, site: FakeSite) -> None:
    assert take(ledger, site, 2) == Scaled("digits", 2, None, changed=True)
    assert site.table().endpoints["digits"].slots == 2
    assert take(ledger, site, 2) == Scaled("digits", 2, 2, changed=False)
    assert take(ledger, site, None, expected=2).changed
    assert site.table().endpoints["digits"].slots is None
    assert rows(ledger) == [("bob", 2), ("bob", None)]
    with pytest.raises(Conflict, match="takes all slots, not 2"):
        take(ledger, site, 1, expected=2)
    take(ledger, site, 1)
    assert run(ledger, site) == 1, "the number survives a deploy"
    assert site.table().endpoints["digits"].slots == 1
    ledger.audit.verify()


def test_scale_of_what_is_not_live_and_beside_a_rollout(ledger: Ledger, site: FakeSite) -> None:
    with pytest.raises(UsageError, match="'other' is live"):
        scale(ledger, site, ScaleRequest("other", 1, "bob"), Owner.here("test"), tell=lambda _: None)
    ledger.leases.acquire("endpoint/digits", Owner.here("another rollout"))
    for command in (partial(take, ledger, site, 1), partial(remove, ledger, site)):
        with pytest.raises(Conflict):
            command()
    assert rows(ledger) == []


def test_a_rollout_that_waits_for_a_person_is_not_deleted_under_their_eyes(ledger: Ledger, site: FakeSite) -> None:
    make_bundle(site.folder, "2")
    how = Strategy(kind="canary", steps=(SetWeight(30), Pause()))
    request = DeployRequest(
        endpoint="digits", pool="edge", bundle=digest("2"), path=site.folder / "bundles" / "2", runtime="onnx-cpu",
        device=DEVICE, actor="ada", strategy=how,
    )  # fmt: skip
    with pytest.raises(Waiting):
        deploy(ledger, site, request, Owner.here("test"))
    for change in (lambda: remove(ledger, site), lambda: take(ledger, site, 1)):
        with pytest.raises(Conflict, match="generation 2 is being rolled out"):
            change()
    assert ledger.rollouts.active("digits") is not None
    rollback(ledger, site, "digits", actor="bob")
    assert remove(ledger, site).generations == (1,)


def test_a_replica_that_fails_is_told(ledger: Ledger, site: FakeSite) -> None:
    site.broken[digest("1")] = "no memory"
    with pytest.raises(ServingError, match=r"does not serve from 2 slots: (.|\n)*no memory"):
        take(ledger, site, 2)
    site.broken.clear()
    assert take(ledger, site, 2) == Scaled("digits", 2, 2, changed=False)


def test_delete_drains_first_and_leaves_the_history(ledger: Ledger, site: FakeSite) -> None:
    take(ledger, site, 1)
    site.in_flight[1] = [3, 1]
    assert remove(ledger, site) == Deleted("digits", (1,))
    assert site.in_flight[1] == []
    shown = [[(g.state, g.weight) for e in t.endpoints.values() for g in e.generations] for t in site.tables()[-2:]]
    assert shown == [[("draining", 0)], []]
    assert [(g.number, str(g.state)) for g in ledger.generations.list("digits")] == [(1, "retired")]
    assert ledger.generations.slots("digits") is None
    assert remove(ledger, site) == Deleted("digits", ())
    assert [r.action for r in ledger.audit.rows()].count("endpoint.delete") == 1
    assert run(ledger, site) == 2, "a deploy brings it back, with the next number"


@pytest.mark.parametrize("where", ["delete.draining", "delete.hidden", "delete.retired"])
def test_a_killed_delete_is_finished_by_the_next(where: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    make_bundle(tmp_path, "1")
    site = FakeSite(tmp_path, agents=1)
    with Ledger.open(url) as ledger:
        run(ledger, site)

    def again() -> Deleted:
        with Ledger.open(url) as ledger:
            return remove(ledger, site)

    assert run_forked(again, fault=f"{where}:kill", log=tmp_path / "log") == -9
    assert fired(tmp_path / "log")
    again()
    assert site.table().endpoints == {}
    with Ledger.open(url) as ledger:
        assert [str(g.state) for g in ledger.generations.list("digits")] == ["retired"]
