from __future__ import annotations

import math
from collections.abc import Iterator
from types import MappingProxyType

import numpy as np
import pytest
from support.ledger_samples import digest, execution, step

from orchestrator.core.errors import Conflict, LedgerError
from orchestrator.ledger import (
    ArtifactRow,
    AttemptRow,
    EventRow,
    ExecutionUpdate,
    Lease,
    Ledger,
    MetricRow,
    Owner,
)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with Ledger.open(ledger_url) as opened:
        yield opened


@pytest.fixture
def lease(ledger: Ledger) -> Lease:
    return ledger.leases.acquire("recipe/digits", Owner.here("test"))


def metric(number: int, value: float, name: str = "loss") -> MetricRow:
    return MetricRow(execution="x1", step="train", name=name, step_number=number, value=value, t=2.0)


def test_execution_and_rows_come_back_as_written(ledger: Ledger, lease: Lease) -> None:
    row = execution(recipe_text="grüße: 数字\n", plan={"nested": [1, 2.5, None, {"a": "b"}]})
    ledger.executions.create(row, lease)
    assert ledger.executions.get("x1") == row
    made = step(
        parts={"files": {"train.py": digest("1")}}, outputs={"checkpoint": digest("c")}, verdict={"passed": True}
    )
    attempt = AttemptRow(execution="x1", step="train", number=1, state="failed", retry_class="infra", started_at=1.5)
    ledger.executions.record(lease, steps=[made], attempts=[attempt])
    assert ledger.executions.steps("x1") == (made,)
    assert ledger.executions.attempts("x1") == (attempt,)
    assert ledger.executions.attempts("x1", "other") == ()


def test_state_changes_and_listing(ledger: Ledger, lease: Lease) -> None:
    for number in range(3):
        ledger.executions.create(execution(f"x{number}", created_at=float(number)), lease)
    ledger.executions.create(execution("y1", recipe="other", created_at=9.0), lease)
    ledger.executions.set_state("x1", "failed", lease, error={"message": "no"}, ended_at=5.0)
    found = ledger.executions.get("x1")
    assert (found.state, found.error, found.ended_at) == ("failed", {"message": "no"}, 5.0)
    assert [row.id for row in ledger.executions.list("digits", limit=2)] == ["x2", "x1"]
    latest = ledger.executions.latest()
    assert latest is not None
    assert latest.id == "y1"
    assert ledger.executions.latest("absent") is None


def test_unknown_execution_is_an_error_with_a_hint(ledger: Ledger, lease: Lease) -> None:
    with pytest.raises(LedgerError, match="no execution 'x9'"):
        ledger.executions.get("x9")
    with pytest.raises(LedgerError, match="no execution 'x9'"):
        ledger.executions.set_state("x9", "done", lease)


def test_creating_twice_keeps_the_first(ledger: Ledger, lease: Lease) -> None:
    ledger.executions.create(execution(), lease)
    ledger.executions.set_state("x1", "succeeded", lease)
    ledger.executions.create(execution(), lease)
    assert ledger.executions.get("x1").state == "succeeded"


def test_a_transition_is_all_or_nothing(ledger: Ledger, lease: Lease) -> None:
    ledger.executions.create(execution(), lease)
    with pytest.raises(LedgerError):
        ledger.executions.record(
            lease,
            execution=ExecutionUpdate(id="x1", state="succeeded"),
            steps=[step(state="succeeded")],
            events=[EventRow(execution="absent", type="step", t=1.0)],  # the foreign key refuses this one
        )
    assert ledger.executions.get("x1").state == "running"
    assert ledger.executions.steps("x1") == ()
    with pytest.raises(LedgerError, match="not JSON serializable"):
        ledger.executions.record(
            lease, steps=[step()], events=[EventRow(execution="x1", type="t", t=1.0, payload={"x": object()})]
        )
    assert ledger.executions.steps("x1") == ()


def test_steps_are_replaced_by_key_and_keep_the_order_of_the_plan(ledger: Ledger, lease: Lease) -> None:
    ledger.executions.create(execution(), lease)
    ledger.executions.record(
        lease, steps=[step(name="b", position=1), step(name="a", position=2), step(name="z", position=0)]
    )
    ledger.executions.record(lease, steps=[step(name="a", position=2, state="succeeded", attempt=3)])
    assert [(row.name, row.state, row.attempt) for row in ledger.executions.steps("x1")] == [
        ("z", "running", 0),
        ("b", "running", 0),
        ("a", "succeeded", 3),
    ]


def test_nan_and_infinity_survive(ledger: Ledger, lease: Lease) -> None:
    ledger.executions.create(execution(), lease)
    values = {"nan": math.nan, "inf": math.inf, "low": -math.inf, "one": 1.0}
    ledger.executions.record(lease, steps=[step(metrics=MappingProxyType(values))])
    ledger.executions.append_metrics([metric(i, v, name) for i, (name, v) in enumerate(values.items())])
    ledger.executions.append_metrics([metric(9, np.float32(0.5), "zz")])  # pyright: ignore[reportArgumentType]
    assert ledger.executions.metrics("x1")[-1] == metric(9, 0.5, "zz")
    kept = ledger.executions.steps("x1")[0].metrics
    points = {row.name: row.value for row in ledger.executions.metrics("x1", "train")}
    for found in (kept, points):
        assert math.isnan(found["nan"])
        assert (found["inf"], found["low"], found["one"]) == (math.inf, -math.inf, 1.0)


def test_metrics_are_idempotent_and_the_last_value_wins(ledger: Ledger, lease: Lease) -> None:
    ledger.executions.create(execution(), lease)
    ledger.executions.append_metrics([metric(1, 0.5), metric(2, 0.4)])
    ledger.executions.append_metrics([metric(2, 0.3), metric(3, 0.2)])
    assert [(row.step_number, row.value) for row in ledger.executions.metrics("x1")] == [(1, 0.5), (2, 0.3), (3, 0.2)]
    assert ledger.executions.metrics("x1", "evaluate") == ()


def test_events_are_numbered_in_order_and_read_with_a_cursor(ledger: Ledger, lease: Lease) -> None:
    ledger.executions.create(execution(), lease)
    ledger.executions.create(execution("x2"), lease)
    last = ledger.executions.append_events([EventRow(execution="x1", type=f"e{i}", t=float(i)) for i in range(3)])
    ledger.executions.append_events([EventRow(execution="x2", step="s", type="other", t=9.0, payload={"k": [1]})])
    first = ledger.executions.events("x1", limit=2)
    assert [row.type for row in first] == ["e0", "e1"]
    rest = ledger.executions.events("x1", after_seq=first[-1].seq)
    assert [row.type for row in rest] == ["e2"]
    assert rest[0].seq == last
    assert [row.payload for row in ledger.executions.events(after_seq=last)] == [{"k": [1]}]


def test_previous_step_is_the_newest_with_a_fingerprint(ledger: Ledger, lease: Lease) -> None:
    for number, fingerprint in ((1, digest("1")), (2, digest("2")), (3, None)):
        ledger.executions.create(execution(f"x{number}", created_at=float(number)), lease)
        ledger.executions.record(lease, steps=[step(f"x{number}", fingerprint=fingerprint)])
    ledger.executions.create(execution("y", recipe="other", created_at=9.0), lease)
    ledger.executions.record(lease, steps=[step("y", fingerprint=digest("9"))])
    found = ledger.executions.previous_step("digits", "train")
    assert found is not None
    assert found.fingerprint == digest("2")
    assert ledger.executions.previous_step("digits", "export") is None


def test_artifacts_keep_their_first_origin_and_edges_their_direction(ledger: Ledger, lease: Lease) -> None:
    ledger.executions.create(execution(), lease)
    checkpoint = ArtifactRow(
        digest=digest("c"), media_type="m", kind="checkpoint", size_bytes=3 << 40, created_at=1.0, step="train"
    )
    again = ArtifactRow(digest=digest("c"), media_type="m", kind="checkpoint", size_bytes=3 << 40, created_at=2.0)
    onnx = ArtifactRow(digest=digest("d"), media_type="m", kind="onnx", size_bytes=1, created_at=3.0)
    edge = (digest("d"), digest("c"))
    ledger.executions.record(lease, artifacts=[checkpoint, onnx], edges=[edge])
    ledger.executions.record(lease, artifacts=[again], edges=[edge])
    assert ledger.artifacts.get(digest("c")) == checkpoint
    assert ledger.artifacts.get(digest("0")) is None
    assert ledger.artifacts.parents(digest("d")) == (digest("c"),)
    assert ledger.artifacts.children(digest("c")) == (digest("d"),)
    assert [row.kind for row in ledger.artifacts.list()] == ["onnx", "checkpoint"]
    assert ledger.artifacts.list("onnx") == (onnx,)


def test_a_fenced_writer_writes_nothing(ledger: Ledger, lease: Lease) -> None:
    ledger.executions.create(execution(), lease)
    ledger.leases.release(lease)
    ledger.leases.acquire("recipe/digits", Owner.here())
    for call in (
        lambda: ledger.executions.create(execution("x2"), lease),
        lambda: ledger.executions.record(lease, steps=[step()]),
        lambda: ledger.executions.set_state("x1", "failed", lease),
    ):
        with pytest.raises(Conflict, match="no longer ours"):
            call()
    assert [row.state for row in ledger.executions.list()] == ["running"]
    assert ledger.executions.steps("x1") == ()


def test_projections_map_and_list_by_literal_prefix(ledger: Ledger) -> None:
    ledger.projections.put("run/x1", "abc")
    ledger.projections.put("run/x1", "def")
    ledger.projections.put("run/x2", "ghi")
    ledger.projections.put("run_x3", "jkl")
    ledger.projections.put("runs%", "mno")
    assert ledger.projections.get("run/x1") == "def"
    assert ledger.projections.get("run/x9") is None
    assert ledger.projections.list("run/") == {"run/x1": "def", "run/x2": "ghi"}
    assert ledger.projections.list("run_") == {"run_x3": "jkl"}
