"""Looks at a site: seldom, over a minute, and through a restart of its router."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.app.top import Look
from orchestrator.app.wiring import Workplace, open_workplace
from orchestrator.console import traffic
from orchestrator.console.traffic import Sites
from orchestrator.core.errors import Unreachable

LABELS = {"endpoint": "digits", "generation": "1", "stage": "model"}


class World:
    """A clock, a site that is up or down, and a router that counts."""

    def __init__(self, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.ended, self.boot, self.asked, self.connected = 0.0, 0, "a", 0, 0
        self.up, self.broken = True, deque[bool]()
        monkeypatch.setattr(traffic, "connect", self.connect)
        monkeypatch.setattr(traffic, "look", self.look)
        self.sites = Sites(workplace, lambda: self.now)

    def connect(self, _workplace: Workplace, name: str) -> Any:
        self.connected += 1
        if not self.up:
            raise Unreachable(f"site {name} is down")
        return SimpleNamespace(url="http://127.0.0.1:1", admin=self)

    def look(self, _admin: Any) -> Look:
        self.asked += 1
        if not self.up or (self.broken and self.broken.popleft()):
            raise Unreachable("the router does not answer")
        status = {"boot": self.boot, "generations": [{"endpoint": "digits", "generation": 1}]}
        series = {"orchestrate_requests_total": [({**LABELS, "status": "200", "kind": "ok"}, float(self.ended))]}
        return Look(self.now, status, series)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    file = tmp_path / "environment.yaml"
    file.write_text("environment: 1\nsites: {local: {kind: local}}\n")
    return World(open_workplace(file), monkeypatch)


def test_many_who_look_cost_one_question_a_second(world: World) -> None:
    for _ in range(50):
        assert world.sites.view("local").row("digits", 1) is not None
    assert (world.asked, world.connected) == (1, 1)
    assert world.sites.view("local").traffic("digits", 1) is None


def test_rates_are_of_the_last_minute(world: World) -> None:
    for _ in range(200):
        world.sites.view("local")
        world.now += 2
        world.ended += 20
    found = world.sites.view("local").traffic("digits", 1)
    assert found is not None
    assert found.requests_per_s == pytest.approx(10)
    assert 60 <= found.window_s <= 64
    assert world.connected == 1


def test_another_router_counts_from_zero(world: World) -> None:
    world.ended = 1000
    world.sites.view("local")
    world.now, world.boot, world.ended = 10, "b", 5
    assert world.sites.view("local").traffic("digits", 1) is None
    world.now, world.ended = 20, 25
    found = world.sites.view("local").traffic("digits", 1)
    assert found is not None
    assert found.requests_per_s == 2


def test_a_site_that_goes_says_so_and_comes_back(world: World) -> None:
    world.sites.view("local")
    world.now, world.up = 10, False
    view = world.sites.view("local")
    assert (view.row("digits", 1), "does not answer" in view.error) == (None, True)
    assert world.sites.evidence("local", "digits") == {}
    world.now, world.up = 20, True
    assert world.sites.view("local").error == ""
    world.now = 30
    world.broken.append(True)  # it has come up elsewhere: connected again at once
    assert world.sites.view("local").error == ""
    assert "no site 'other'" in world.sites.view("other").error
