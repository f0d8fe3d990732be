"""kill -9 at every fault point of a walk and of a rollback, then the same command again: the same end as without the kill."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.forked import fired, passings, run_forked
from support.rollout_world import ENDPOINT, World, error_rate, strategy

from orchestrator.core.errors import GateError, Waiting
from orchestrator.ledger import Owner
from orchestrator.rollout.lead import drive
from orchestrator.rollout.rollback import rollback
from orchestrator.serving.table import RoutingTable

HOW = strategy(
    [{"set_weight": 20}, {"analysis": error_rate()}, {"set_mirror": {"percent": 10}}, {"pause": {"min_requests": 30}}],
    analysis=error_rate(),
)


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A site with one, with two and with three generations."""
    made = [tmp_path_factory.mktemp("template") / "0"]
    made[0].mkdir()
    for letter in "123":
        made.append(made[-1].with_name(letter))
        shutil.copytree(made[-2], made[-1])
        in_world(made[-1], lambda world, letter=letter: world.deploy(letter))
    return made


def in_world(folder: Path, work: Callable[[World], object], *, errors: int = 0) -> None:
    world = World(folder)
    world.clock.each = lambda: world.site.traffic(2000, canary_errors=errors)
    try:
        work(world)
    finally:
        world.ledger.close()


def promote(folder: Path) -> None:
    in_world(folder, lambda world: world.deploy("2", HOW))


def lose(folder: Path) -> None:
    """A bad canary; what a command left is gone on with by its generation, as `rollout resume` does."""

    def work(world: World) -> None:
        if world.ledger.rollouts.get(ENDPOINT, 2) is None:
            with pytest.raises(GateError):
                world.deploy("2", HOW)
            return
        with pytest.raises(GateError):
            drive(world.ledger, world.site, ENDPOINT, Owner.here("t"), generation=2, pace=world.clock.pace)

    in_world(folder, work, errors=150)


def resume(folder: Path) -> None:
    """A gate, a person who says go on once, another gate: one word opens one gate."""
    how = strategy([{"set_weight": 10}, {"pause": {}}, {"set_weight": 30}, {"pause": {}}])

    def work(world: World) -> None:
        with pytest.raises(Waiting):
            world.deploy("2", how)
        if not (folder / "asked").exists():
            (folder / "asked").touch()
            world.ledger.rollouts.ask(ENDPOINT, "resume", actor="bob")
        with pytest.raises(Waiting):
            world.deploy("2", how)

    in_world(folder, work)


def back(folder: Path) -> None:
    in_world(folder, lambda world: rollback(world.ledger, world.site, ENDPOINT, expect=2, actor="bob"))


def back_cold(folder: Path) -> None:
    in_world(folder, lambda world: rollback(world.ledger, world.site, ENDPOINT, to=1, expect=3, actor="bob"))


def picture(folder: Path) -> dict[str, object]:
    world = World(folder)
    try:
        assert world.ledger.audit.verify().count
        rows = [world.ledger.rollouts.get(ENDPOINT, number) for number in world.states()]
        check_counted(world)
        return {
            "generations": world.states(),
            "rollouts": [row and (str(row.state), row.step, row.weight, row.mirror, row.intent) for row in rows],
            "holder": world.ledger.leases.holder(f"endpoint/{ENDPOINT}"),
            "table": re.sub(r"/[^']*/bundles/", "bundles/", repr(world.site.table().to_json()["endpoints"])),
        }
    finally:
        world.ledger.close()


def check_counted(world: World) -> None:
    """Every request of the canary that a router told of is in the evidence once."""
    row = world.ledger.rollouts.get(ENDPOINT, 2)
    if row is None or "counted" not in row.notes:
        return
    arms = row.notes["counted"]["routers"][0]["arms"]
    found = world.ledger.rollouts.evidence(ENDPOINT, 2)
    kept = sum(r.body["canary"].get("requests", 0) for r in found)
    assert kept == sum(arm["requests"] for arm in arms if arm["generation"] == 2)


def check_tables(tables: list[RoutingTable]) -> None:
    versions = [table.version for table in tables]
    assert versions == sorted(set(versions))
    for table in tables[1:]:
        assert sum(g.weight for g in table.endpoints[ENDPOINT].generations) == 100


def chosen(log: Path) -> list[str]:
    """The first and the last passing of each point of a rollout; those of a deploy have a test of their own."""
    found: dict[str, list[str]] = {}
    for passing in passings(log):
        name = passing.partition("#")[0]
        if name.startswith("rollout."):
            found.setdefault(name, []).append(passing)
    return [p for each in found.values() for p in dict.fromkeys((each[0], each[-1]))]


EXPECTED = {
    promote: {"begun", "shown", "entered", "counted", "added", "saved", "live", "succeeded"},
    lose: {"begun", "shown", "entered", "counted", "added", "lost", "withdrawn", "failed"},
    resume: {"begun", "shown", "entered", "saved", "answered"},
    back: {"back_seized", "back_recorded", "back_published"},
    back_cold: {"back_seized", "back_appended", "back_recorded", "back_published"},
}


@pytest.mark.parametrize("work", EXPECTED, ids=lambda work: work.__name__)
def test_kill_anywhere_and_repeat(work: Callable[[Path], None], templates: list[Path], tmp_path: Path) -> None:
    template = templates[{back: 2, back_cold: 3}.get(work, 1)]

    def made(name: str) -> Path:
        return Path(shutil.copytree(template, tmp_path / name))

    calm, log = made("calm"), tmp_path / "calm.log"
    assert run_forked(partial(work, calm), log=log) == 0
    expected, points = picture(calm), chosen(log)
    named = {point.partition("#")[0].removeprefix("rollout.") for point in points if point.startswith("rollout.")}
    assert named >= EXPECTED[work]
    for number, point in enumerate(points):
        folder, own = made(str(number)), tmp_path / f"{number}.log"
        assert run_forked(partial(work, folder), fault=f"{point}:kill", log=own) == -9, point
        assert fired(own), point
        assert run_forked(partial(work, folder)) == 0, point
        assert picture(folder) == expected, point
        check_tables(World(folder).site.tables())
