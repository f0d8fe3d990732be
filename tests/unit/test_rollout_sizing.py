"""Sizing of a pool from a measured curve: a bound that a simulated queue keeps, and no answer without a curve."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest

from orchestrator.rollout.curves import Curve, Point, find_curve, measured_devices, merged, save_curve
from orchestrator.rollout.sizing import bound_ms, decay, size

POINTS = (
    Point(1, 100, 1000.0, 1000.0, 1200.0),
    Point(4, 100, 1500.0, 1500.0, 1700.0),
    Point(16, 100, 4000.0, 4000.0, 4300.0),
)


def curve(*points: Point, device: str = "Ascend310P3", **more: object) -> Curve:
    fields: dict[str, object] = {
        "endpoint": "digits",
        "bundle": "sha256:b",
        "variant": "sha256:v",
        "device": device,
        "runtime": "om",
        "points": points or POINTS,
        "overhead_us": 300.0,
        "measured_at": 1.0,
    }
    return Curve(**fields | more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rps", "p99_ms", "slots", "batch"),
    [(500, 20, 1, 4), (5000, 20, 2, 16), (5000, 5, 5, 4), (100_000, 20, 36, 16), (1, 1000, 1, 1)],
)
def test_the_fewest_slots_that_hold_the_latency(rps: float, p99_ms: float, slots: int, batch: int) -> None:
    best = size(curve(), rps, p99_ms).best
    assert best is not None
    assert (best.slots, best.batch) == (slots, batch)
    assert best.p99_ms <= p99_ms
    assert best.utilisation <= 0.7


def test_a_latency_that_one_batch_alone_breaks_has_no_answer() -> None:
    found = size(curve(), 100, 2)
    assert found.best is None
    assert [plan.slots for plan in found.plans] == [0, 0, 0]
    assert min(plan.p99_ms for plan in found.plans) > 2


def test_what_the_endpoint_allows_bounds_batch_and_delay() -> None:
    assert [plan.batch for plan in size(curve(), 500, 20, most_rows=4).plans] == [1, 4]
    with_delay, without = size(curve(), 500, 20, delay_ms=5), size(curve(), 500, 20)
    assert with_delay.plans[0].p99_ms == pytest.approx(without.plans[0].p99_ms + 5)
    assert any("max_queue_delay_ms" in text for text in with_delay.assumptions)


def test_every_assumption_is_said_and_a_rehearsal_named() -> None:
    said = " ".join(size(curve(), 500, 20, utilisation=0.5).assumptions)
    assert "Ascend310P3: 300 batches of 3 sizes" in said
    assert "50%" in said
    assert "rehearsal" not in said
    assert "sizes rehearsal pools only" in " ".join(size(curve(device="cpu (rehearsal)"), 500, 20).assumptions)


@pytest.mark.parametrize("utilisation", [0.01, 0.3, 0.7, 0.95])
def test_the_decay_is_the_root_that_the_bound_needs(utilisation: float) -> None:
    found = decay(utilisation)
    assert found > 0
    assert utilisation * math.expm1(found) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize(("batch", "utilisation"), [(1, 0.3), (1, 0.7), (4, 0.7), (16, 0.7), (4, 0.9)])
def test_a_simulated_queue_of_batches_stays_below_the_bound(batch: int, utilisation: float) -> None:
    """Poisson arrivals, one slot, batches of at most `batch`, each takes as long as a full one."""
    chance = random.Random(7)
    service_s, wanted = 1.0, 20_000
    arrivals = list(itertools.accumulate(chance.expovariate(utilisation * batch / service_s) for _ in range(wanted)))
    free, taken, latencies = 0.0, 0, list[float]()
    while taken < wanted:
        free = max(free, arrivals[taken])
        end, first = free + service_s, taken
        while taken < wanted and taken - first < batch and arrivals[taken] <= free:
            latencies.append(end - arrivals[taken])
            taken += 1
        free = end
    p99_s = sorted(latencies)[int(wanted * 0.99)]
    point = Point(batch, 100, service_s * 1e6, service_s * 1e6, service_s * 1e6)
    bound_s = bound_ms(curve(point, overhead_us=0.0), point, utilisation) / 1000
    assert p99_s <= bound_s
    assert bound_s <= 2.5 * p99_s  # and it is not far off


def test_a_curve_is_kept_by_build_and_device(tmp_path: Path) -> None:
    one, rehearsal = curve(), curve(device="cpu (rehearsal)")
    save_curve(tmp_path, one)
    save_curve(tmp_path, rehearsal)
    assert find_curve(tmp_path, "sha256:b", "sha256:v", "Ascend310P3") == one
    assert find_curve(tmp_path, "sha256:b", "sha256:other", "Ascend310P3") is None
    assert find_curve(tmp_path, "sha256:b", "sha256:v", "Ascend910B4") is None
    assert measured_devices(tmp_path, "sha256:b") == ["Ascend310P3", "cpu (rehearsal)"]
    for path in (tmp_path / "curves").iterdir():
        path.write_text('{"curve": 99}')
    assert find_curve(tmp_path, "sha256:b", "sha256:v", "Ascend310P3") is None
    assert measured_devices(tmp_path, "sha256:b") == []


def test_sizes_that_a_new_measurement_lacks_stay() -> None:
    new = curve(Point(4, 10, 1.0, 1.0, 1.0))
    assert [point.batches for point in merged(curve(), new).points] == [100, 10, 100]
    assert merged(None, new) is new
