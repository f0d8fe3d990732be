"""Sessions of the console, and the geometry of its charts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from orchestrator.console.charts import HEIGHT, WIDTH, draw
from orchestrator.console.sessions import IDLE_S, LASTS_S, Sessions
from orchestrator.core.errors import UsageError
from orchestrator.rollout.identity import Identities, add_identity


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "approvers"


def test_a_session_lasts_as_long_as_it_is_used_and_its_token_is_valid(path: Path) -> None:
    token, clock = add_identity(path, "ada", ["approve"]), Clock()
    sessions = Sessions(Identities(path), clock)
    key = sessions.sign_in(token)
    session = sessions.find(key)
    assert session is not None
    assert (session.identity.id, session.same_form(session.csrf), session.same_form("x")) == ("ada", True, False)
    clock.now += IDLE_S - 1
    assert sessions.find(key) is not None
    clock.now += IDLE_S + 1
    assert sessions.find(key) is None

    key = sessions.sign_in(token)
    for _ in range(int(LASTS_S / IDLE_S * 2)):
        assert sessions.find(key) is not None
        clock.now += IDLE_S / 2 + 1
    assert sessions.find(key) is None

    key = sessions.sign_in(token)
    path.write_text("# taken back\n")
    assert sessions.find(key) is None
    assert sessions.find("other") is None
    assert sessions.find(None) is None


def test_signing_out_ends_it_and_others_stay(path: Path) -> None:
    token = add_identity(path, "ada", ["approve"])
    sessions = Sessions(Identities(path))
    one, other = sessions.sign_in(token), sessions.sign_in(token)
    sessions.sign_out(one)
    assert sessions.find(one) is None
    assert sessions.find(other) is not None


def test_guessing_is_slow(path: Path) -> None:
    token, clock = add_identity(path, "ada", ["approve"]), Clock()
    sessions = Sessions(Identities(path), clock)
    for _ in range(10):
        assert not sessions.blocked()
        with pytest.raises(UsageError, match="not valid"):
            sessions.sign_in("guess")
    assert sessions.blocked()
    clock.now += 61
    assert not sessions.blocked()
    assert sessions.sign_in(token)


def test_without_a_file_nobody_signs_in() -> None:
    sessions = Sessions(None)
    assert not sessions.open
    with pytest.raises(UsageError, match="nobody can sign in"):
        sessions.sign_in("x")


def test_a_chart_keeps_every_crossing_in_few_points() -> None:
    xs = [float(x) for x in range(5000)]
    ys = [0.01] * 5000
    ys[2345] = 0.5  # one spike among thousands of points
    chart = draw("t", xs, ys, 0.1, "margin", percent=True)
    assert chart is not None
    points = [tuple(map(float, point.split(","))) for point in chart.line.split()]
    assert len(points) < 400
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert min(y for _, y in points) < chart.limit_y < max(y for _, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert chart.y_ticks[0].text == "0%"


@pytest.mark.parametrize(
    ("xs", "ys", "limit"),
    [([], [], 1.0), ([1], [1], 1.0), ([1, 2], [math.nan, 1], 1.0), ([1, 2], [1, 2], math.inf)],
)
def test_what_cannot_be_drawn_is_not(xs: list[float], ys: list[float], limit: float) -> None:
    assert draw("t", xs, ys, limit, "l") is None


@pytest.mark.parametrize("values", [[0.0, 0.0], [-5.0, -5.0], [1e9, 2e9], [1e-9, 2e-9], [5.0, -5.0]])
def test_any_range_is_drawn(values: list[float]) -> None:
    chart = draw("t", [0.0, 0.0], values, 1.0, "l")
    assert chart is not None
    assert all(math.isfinite(tick.at) for tick in (*chart.x_ticks, *chart.y_ticks))


def test_a_session_ends_with_its_own_token_though_the_identity_has_another(path: Path) -> None:
    leaked = add_identity(path, "ada", ["approve"])
    first = path.read_text()
    sessions = Sessions(Identities(path), Clock())
    key = sessions.sign_in(leaked)
    fresh = add_identity(path, "ada", ["approve"])
    assert sessions.find(key) is not None
    path.write_text(path.read_text().replace(first, "", 1))
    assert sessions.find(key) is None
    assert sessions.find(sessions.sign_in(fresh)) is not None
