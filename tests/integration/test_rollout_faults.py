"""A sample of `benchmarks/rollout_faults.py`: kill -9 of a controller, one that was stopped, a canary that dies; under traffic."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.rollout_deaths import dead_canary, stopped_controller
from support.rollout_drills import ABORT, PROMOTE, ROLLBACK, Plan, killed_at
from support.rollout_site import RolloutSite

POINTS = (
    (PROMOTE, "deploy.staged#1"),
    (PROMOTE, "rollout.counted#1"),
    (PROMOTE, "rollout.live#1"),
    (ROLLBACK, "rollout.back_recorded#1"),
    (ABORT, "rollout.lost#1"),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutSite]:
    found = RolloutSite(tmp_path_factory.mktemp("rollout"), request_timeout_s=20.0)
    yield found
    found.stop()


@pytest.mark.parametrize(("plan", "point"), POINTS, ids=[point for _, point in POINTS])
def test_a_killed_command_given_again_comes_to_the_same_end(site: RolloutSite, plan: Plan, point: str) -> None:
    with site.traffic():
        fired, wrong = killed_at(site, plan, point, site.folder / "faults.log")
    drill = site.judge(point, fired, wrong)
    assert (drill.violations, drill.fired) == ([], 1)
    assert drill.answers[200] > 0


def test_a_controller_that_slept_through_a_rollback_is_refused(site: RolloutSite) -> None:
    assert stopped_controller(site).violations == []


def test_a_canary_that_dies_is_taken_back_and_stable_answers_everything(site: RolloutSite) -> None:
    drill = dead_canary(site)
    assert drill.violations == []
    assert drill.fired >= 1
