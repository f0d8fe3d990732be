"""Faults under load: every answer is that of its own request, none is a 500, and each fault is seen to have fired."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import fault_drills as drills
from support import process_drills
from support.fault_drills import Drill
from support.serving_site import ServingSite


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    site = ServingSite(tmp_path_factory.mktemp("faults") / "site", **drills.SETTINGS)
    try:
        site.start_router()
        drills.table(site, *drills.ENDPOINTS)
        yield site
    finally:
        site.stop()
    assert "Traceback" not in (site.folder / "router.log").read_text()


def check(drill: Drill, *statuses: int) -> None:
    assert drill.fired > 0, "the fault did not fire"
    assert drill.wrong == []
    assert set(drill.answers) <= {200, *statuses}, (drill.answers, drill.errors)
    assert drill.answers[200] > 20
    print(f"{drill.name}: fired {drill.fired}, recovered in {drill.recovery_s * 1e3:.0f} ms, {drill.figures}")


def test_a_wedged_replica_costs_what_it_holds_and_its_death_nothing(site: ServingSite) -> None:
    drill = drills.wedged(site)
    check(drill, 504)
    assert drill.fired <= 2 * 8  # two batches of at most all clients
    assert drill.figures == {"lost_by_the_kill": 0}


def test_a_replica_that_answers_garbage_spoils_no_answer(site: ServingSite) -> None:
    drill = drills.garbage(site)
    check(drill)
    assert drill.fired >= 7


def test_a_full_queue_says_when_to_come_again_and_loses_nothing(site: ServingSite) -> None:
    drill = drills.full_queue(site)
    check(drill, 429)
    assert drill.figures == {"without_retry": 0}


def test_clients_that_vanish_leave_nothing_behind(site: ServingSite) -> None:
    drill = drills.vanishing(site)
    check(drill)
    assert drill.figures is not None
    assert drill.figures["left"] == 0


def test_slow_clients_slow_down_nobody(site: ServingSite) -> None:
    check(drills.slow_loris(site))


def test_a_killed_router_gives_no_wrong_answer_and_comes_back(site: ServingSite) -> None:
    drill = drills.killed_router(site)
    check(drill, 0, 503)
    assert drill.recovery_s < 10


def test_overload_is_refused_at_the_door(site: ServingSite) -> None:
    drill = drills.overload(site)
    if drill.figures is not None and drill.figures["ratio"] > 2:  # a busy machine: once more, longer
        drill = drills.overload(site, seconds=3)
    check(drill, 429)
    assert drill.figures is not None
    assert drill.figures["ratio"] <= 2, drill.figures
    assert drill.figures["without_retry"] == 0


def test_the_death_of_whole_processes_costs_time_and_no_answer(tmp_path: Path) -> None:
    site = process_drills.site_of(tmp_path)
    try:
        check(process_drills.killed_one_of_the_routers(site), 0)
        drill = process_drills.killed_agent(site)
        check(drill, 503)
        assert drill.figures == {"replicas": drill.fired}
    finally:
        site.stop()
