"""kill -9 at every fault point of a deploy, then the same command again: the same end as without the kill."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from support.fake_site import DEVICE, FakeSite, make_bundle
from support.forked import fired, passings, run_forked
from support.ledger_samples import digest

from orchestrator.ledger import Ledger, Owner
from orchestrator.rollout.deploy import deploy
from orchestrator.rollout.reconcile import publish
from orchestrator.rollout.request import DeployRequest

STAGES = ["appended", "staged", "ready", "smoked", "live", "switched", "drained", "retired", "published"]


def run(folder: Path, letter: str, *, broken: bool = False) -> None:
    site = FakeSite(folder, broken={digest(letter): "does not load"} if broken else {})
    asked = DeployRequest(
        endpoint="digits",
        pool="edge",
        bundle=digest(letter),
        path=folder / "bundles" / letter,
        runtime="onnx-cpu",
        device=DEVICE,
        actor="ada",
    )
    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        deploy(ledger, site, asked, Owner.here("test"))


def prepared(folder: Path) -> Path:
    folder.mkdir()
    for letter in "012":
        make_bundle(folder, letter)
    run(folder, "0")
    run(folder, "1")
    return folder


def picture(folder: Path) -> dict[str, object]:
    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        assert ledger.audit.verify().count
        return {
            "generations": [(g.number, g.bundle, g.state) for g in ledger.generations.list("digits")],
            "holder": ledger.leases.holder("endpoint/digits"),
            "table": FakeSite(folder).table().to_json()["endpoints"].__repr__().replace(str(folder), "."),
        }


def check_history(folder: Path) -> None:
    """At every moment exactly one generation had all the weight, and it never went back."""
    tables = FakeSite(folder).tables()
    versions = [table.version for table in tables]
    assert versions == sorted(set(versions))
    serving = [
        [g.generation for e in table.endpoints.values() for g in e.generations if g.weight] for table in tables[1:]
    ]
    assert all(len(found) == 1 for found in serving)
    assert serving == sorted(serving)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], list[str]]:
    folder = prepared(tmp_path_factory.mktemp("calm") / "site")
    log = folder / "faults.log"
    assert run_forked(partial(run, folder, "2"), log=log) == 0
    check_history(folder)
    return picture(folder), passings(log)


def test_every_stage_is_a_fault_point(calm: tuple[dict[str, object], list[str]]) -> None:
    named = [point.removeprefix("deploy.").removesuffix("#1") for point in calm[1] if point.startswith("deploy.")]
    assert named == STAGES


def test_kill_anywhere_and_repeat(calm: tuple[dict[str, object], list[str]], tmp_path: Path) -> None:
    expected, points = calm
    assert len(points) > 25
    for number, point in enumerate(points):
        folder = prepared(tmp_path / str(number))
        log = folder / "faults.log"
        assert run_forked(partial(run, folder, "2"), fault=f"{point}:kill", log=log) == -9, point
        assert fired(log), point
        check_history(folder)
        assert run_forked(partial(run, folder, "2")) == 0, point
        check_history(folder)
        assert picture(folder) == expected, point


@pytest.mark.parametrize("stage", [*STAGES, "failed"])
def test_after_a_kill_the_reconcile_loop_alone_makes_the_router_follow_the_ledger(tmp_path: Path, stage: str) -> None:
    folder = prepared(tmp_path / "site")
    work = partial(run, folder, "2", broken=stage == "failed")
    assert run_forked(work, fault=f"deploy.{stage}:kill") == -9
    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        publish(ledger, FakeSite(folder))
        live = ledger.generations.live("digits")
    committed = stage in STAGES and STAGES.index(stage) >= STAGES.index("live")
    assert live is not None
    assert live.number == (3 if committed else 2)
    (endpoint,) = FakeSite(folder).table().endpoints.values()
    assert [g.generation for g in endpoint.generations if g.weight == 100] == [live.number]
    check_history(folder)


def test_a_killed_deploy_gives_way_to_another_one(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "site")
    make_bundle(folder, "3")
    assert run_forked(partial(run, folder, "2"), fault="deploy.smoked:kill") == -9
    run(folder, "3")
    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        found = [(g.number, g.bundle, str(g.state)) for g in ledger.generations.list("digits")]
    assert found == [
        (1, digest("0"), "retired"),
        (2, digest("1"), "warm"),
        (3, digest("2"), "failed"),
        (4, digest("3"), "live"),
    ]
