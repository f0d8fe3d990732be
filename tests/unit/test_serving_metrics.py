"""Metrics: what is counted, how it is written, and what is not shown."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.serving.agent.device_figures import (
    DeviceFigures,
    DevicePoll,
    Received,
    figure_families,
    look,
    read_figures,
)
from orchestrator.serving.link.frames import Frame, Kind
from orchestrator.serving.observe import metrics as metrics_module
from orchestrator.serving.observe.exposition import Family, write
from orchestrator.serving.observe.gauges import Pulse
from orchestrator.serving.observe.record import Recorder
from orchestrator.serving.router.peers import merge_metrics
from orchestrator.serving.table import Generation
from tests.support import npu_smi_texts

DEVICE = "cpu (rehearsal)"
LIVE = Generation(3, "sha256:" + "0" * 64, "/bundle", "onnx-cpu", 100, "live", DEVICE)
PLACE = ("digits", 3, "model")


def values(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, by Prometheus' own parser."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def one(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    (value,) = [v for (n, have), v in found.items() if n == name and labels.items() <= dict(have).items()]
    return value


def filled() -> Recorder:
    recorder = Recorder()
    for i in range(10):
        total_s = 0.0002 if i else 20.0
        recorder.record("digits", LIVE, 200, "", queue_s=0.00005, total_s=total_s, synthetic=False, batch_size=4)
    recorder.record("digits", LIVE, 200, "", queue_s=1.0, total_s=1.0, synthetic=True)
    recorder.record("digits", None, 400, "invalid", queue_s=0.1, total_s=0.1, synthetic=False)
    return recorder


def batch(recorder: Recorder, replica: str, compute_us: int, copy_us: int = -1) -> None:
    lane = SimpleNamespace(endpoint="digits", generation=LIVE, stage="model")
    request = SimpleNamespace(lane=lane, fitted=SimpleNamespace(size_bytes=16))
    recorder.batch(
        SimpleNamespace(name=replica, device=DEVICE),  # type: ignore[arg-type]
        SimpleNamespace(requests=[request, request], rows=[1, 2]),  # type: ignore[arg-type]
        SimpleNamespace(compute_us=compute_us, copy_us=copy_us),  # type: ignore[arg-type]
        12,
    )


def test_outcomes_and_times_are_counted_and_probes_are_not() -> None:
    found = values(write(filled().metrics.families("0", {("digits", 3)})))
    assert one(found, "orchestrate_requests_total", kind="ok", status="200", generation="3", stage="model") == 10
    assert one(found, "orchestrate_requests_total", kind="invalid", status="400", generation="0") == 1
    name = "orchestrate_request_duration_seconds"
    assert one(found, f"{name}_count", generation="3") == 10
    assert one(found, f"{name}_sum", generation="3") == pytest.approx(20.0018)
    assert [one(found, f"{name}_bucket", generation="3", le=le) for le in ("0.0001", "0.00025", "10", "+Inf")] == [
        0,
        9,
        9,
        10,
    ]
    assert one(found, "orchestrate_request_queue_seconds_bucket", generation="3", le="5e-05") == 10


def test_batches_have_replica_and_device_and_restarts_make_no_new_label() -> None:
    recorder = Recorder()
    batch(recorder, "edge-0.digits.0123456789.0", 300)
    batch(recorder, "edge-0.digits.0123456789.1", 300, copy_us=100)
    batch(recorder, "edge-1.digits.0123456789.0", 300)
    found = values(write(recorder.metrics.families("0", {("digits", 3)})))
    same = {"replica": "edge-0", "device": DEVICE, "stage": "model"}
    assert one(found, "orchestrate_batch_rows_count", **same) == 2
    assert one(found, "orchestrate_batch_rows_sum", **same) == 6
    assert one(found, "orchestrate_batch_compute_seconds_sum", **same) == pytest.approx(0.0006)
    assert one(found, "orchestrate_batch_copy_seconds_count", **same) == 1
    assert one(found, "orchestrate_input_bytes_total", **same) == 64
    assert one(found, "orchestrate_output_bytes_total", **same) == 24
    assert not [key for key in found if "copy" in key[0] and ("replica", "edge-1") in key[1]]


def test_what_left_the_table_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = filled()
    batch(recorder, "edge-0.digits.0.0", 1)
    assert b"digits" in write(recorder.metrics.families("0", set()))
    monkeypatch.setattr(metrics_module, "_FORGET_S", -1.0)
    assert b"digits" in write(recorder.metrics.families("0", {("digits", 3)}))
    assert b"digits" not in write(recorder.metrics.families("0", set()))


def test_events_are_those_of_the_requests_in_order() -> None:
    recorder = filled()
    read = recorder.events.read(0, 5)
    rows: Any = read["events"]
    assert [row["batch_size"] for row in rows] == [4] * 5
    assert rows[0]["queue_us"] == 50
    assert rows[0]["total_us"] == 20_000_000
    rest: Any = recorder.events.read(rows[-1]["seq"], 100)
    assert [row["seq"] for row in rest["events"]] == list(range(rows[-1]["seq"] + 1, rows[-1]["seq"] + 8))
    assert rest["events"][-1]["error"] == "invalid"
    assert rest["events"][-1]["bundle"] == ""
    assert recorder.events.read(rest["last"], 100) == {
        "boot": read["boot"],
        "events": [],
        "last": rest["last"],
        "lost": 0,
    }


def test_old_events_are_lost_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import deque

    recorder = Recorder()
    monkeypatch.setattr(recorder._events, "_ring", deque(maxlen=3))
    for _ in range(5):
        recorder.record("digits", LIVE, 200, "", queue_s=0, total_s=0, synthetic=False)
    read: Any = recorder.events.read(0, 10)
    assert (len(read["events"]), read["lost"]) == (3, 2)


def test_what_several_routers_show_is_one_text() -> None:
    own, other = (write(filled().metrics.families(number, set())) for number in ("0", "1"))
    merged = merge_metrics(own, {1: other})
    assert merged.count(b"# TYPE orchestrate_requests_total counter") == 1
    found = values(merged)
    assert [one(found, "orchestrate_requests_total", router=number, kind="ok") for number in "01"] == [10, 10]
    assert len(found) == 2 * len(values(own))


def test_texts_in_labels_are_escaped() -> None:
    family = Family("orchestrate_queued_requests", "gauge", "Requests that wait.")
    family.add({"router": "0", "endpoint": 'od"d\n\\'}, 3)
    assert one(values(write([family])), "orchestrate_queued_requests", endpoint='od"d\n\\') == 3


def test_the_loop_s_lag_is_measured() -> None:
    pulse = Pulse(0.05)
    for now in (1.0, 1.05, 1.30):
        pulse.beat(now)
    found = values(write([pulse.family("0")]))
    assert one(found, "orchestrate_router_loop_lag_seconds_count") == 2
    assert one(found, "orchestrate_router_loop_lag_seconds_sum") == pytest.approx(0.2)


# --- device figures ---

FIGURES = DeviceFigures(0, 0.34, 100 << 20, 200 << 20, 51.0, 12.5, 1)


def agent(received: Received | None) -> Any:
    return SimpleNamespace(agent=SimpleNamespace(pool="edge", slot=0, device="Ascend310P3"), figures=received)


def test_figures_go_over_the_link_and_stale_ones_vanish() -> None:
    poll = DevicePoll({})
    assert poll.head() == {}
    poll.latest = FIGURES
    received = read_figures(Frame(Kind.REPORT, 0, poll.head(), memoryview(b"")))
    assert received is not None
    assert received.figures == FIGURES
    found = values(write(figure_families("0", [agent(received)])))
    assert one(found, "orchestrate_npu_utilization_ratio", pool="edge", slot="0", npu="0", device="Ascend310P3") == 0.34
    assert len(found) == 6
    assert values(write(figure_families("0", [agent(Received(FIGURES, time.monotonic() - 61)), agent(None)]))) == {}


def test_figures_that_are_no_numbers_are_left_out() -> None:
    head = {"figures": {"npu": "x", "used_ratio": True, "power_w": 3.5, "more": 1}}
    received = read_figures(Frame(Kind.REPORT, 0, head, memoryview(b"")))
    assert received is not None
    assert [name for (name, _) in values(write(figure_families("0", [agent(received)])))] == [
        "orchestrate_npu_power_watts"
    ]
    assert read_figures(Frame(Kind.REPORT, 0, {}, memoryview(b""))) is None


def test_npu_smi_is_asked_for_the_slot_s_own_chip(tmp_path: Path) -> None:

    program = tmp_path / "npu-smi"
    program.write_text(f"#!/bin/sh\n/bin/cat <<'E'\n{npu_smi_texts.ONE_CHIP_PER_NPU}\nE\n")
    program.chmod(0o755)
    assert look({"PATH": str(tmp_path)}) is None
    assert look({"PATH": str(tmp_path), "ASCEND_RT_VISIBLE_DEVICES": "9"}) is None
    found = look({"PATH": str(tmp_path), "ASCEND_RT_VISIBLE_DEVICES": "0"})
    assert found is not None
    assert found.healthy == 1
    assert found.memory_bytes
    changes: list[int] = []

    async def main() -> None:
        poll = DevicePoll({"PATH": str(tmp_path), "ASCEND_RT_VISIBLE_DEVICES": "0"}, 0.01)
        task = asyncio.create_task(poll.run(lambda: changes.append(1)))
        while poll.latest is None:
            await asyncio.sleep(0.01)
        program.unlink()
        while poll.latest is not None:
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(main())
    assert len(changes) >= 2
