"""What only runtime om has to keep: gears, overlap, codes, memory, the right device; and that its fake notices broken rules."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_acl import FakeAcl, Violation
from support.runtime_openers import (
    check,
    fake_npus,
    job,
    open_om,
    run,
)
from support.runtime_variants import (
    GEARS,
    batch,
    om_variant,
)
from support.serving_site import DEVICE

from orchestrator.core.errors import DeviceError, OrchestratorError, ServingError
from orchestrator.serving.runtimes.api import ExecutionFailed, Holding, InputRejected, runtime


@pytest.fixture
def acl(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeAcl]]:
    with fake_npus(monkeypatch) as make:
        yield make


def test_the_smallest_gear_runs(tmp_path: Path, acl: Any) -> None:
    fake = acl()
    session = open_om(tmp_path)
    for rows in range(1, 9):
        run(session, batch(rows))
    assert fake.gears == [1, 4, 4, 4, 8, 8, 8, 8]
    assert [bucket["x"] for bucket in session.buckets] == [(size, 4) for size in GEARS]
    session.close()


def test_gears_of_dimensions_take_what_was_compiled(tmp_path: Path, acl: Any) -> None:
    fake = acl()
    session = open_om(tmp_path, "dims")
    assert session.max_batch == 4
    assert len(session.buckets) == 4
    for rows, width in ((1, 4), (3, 6), (4, 4)):
        inputs = batch(rows, width)
        check(run(session, inputs), inputs)
    assert fake.gears == [[1, 4, 1], [4, 6, 4], [4, 4, 4]]
    with pytest.raises(InputRejected, match=r"not compiled for .*'width': 5.*it takes"):
        run(session, batch(1, 5))
    inputs = batch(2, 6)
    check(run(session, inputs), inputs)
    session.close()


def test_submit_returns_before_the_device_is_done(tmp_path: Path, acl: Any) -> None:
    acl(device_s=0.3)
    session = open_om(tmp_path)
    begun = time.monotonic()
    tickets = [session.submit(batch(1, seed=seed)) for seed in (1, 2)]
    assert not session.done(tickets[0], 0)
    assert session.done(tickets[0], 5.0)
    assert time.monotonic() - begun > 0.25
    assert not session.done(tickets[1], 0), "one after the other"
    for ticket in tickets:
        session.collect(ticket)
    session.close()


def test_the_next_batch_is_copied_in_while_the_device_works(tmp_path: Path, acl: Any) -> None:
    fake = acl(device_s=0.2)
    session = open_om(tmp_path)
    ticket = session.submit(batch(4))
    for number in range(2, 5):
        copied = len(fake.copies)
        following = session.submit(batch(4))
        assert len(fake.copies) == copied + 2
        assert not session.done(ticket, 0), f"batch {number} lies on the device before the one in front is done"
        session.collect(ticket)
        ticket = following
    session.collect(ticket)
    assert len(fake.copies) == 8
    session.close()


@pytest.mark.parametrize(
    ("call", "code", "kind", "text"),
    [
        ("init", 100039, DeviceError, "acl.init failed with 100039"),
        ("rt.set_device", 107001, DeviceError, "ordered for rt.set_device"),
        ("rt.set_device", 507033, DeviceError, "507033"),
        ("rt.create_context", 507899, DeviceError, "ordered for"),
        ("rt.malloc", 207001, ServingError, "207001"),
        ("mdl.query_size", 145002, ServingError, "145002"),
        ("mdl.load_from_file", 100012, ServingError, "100012"),
        ("mdl.load_from_file", 545001, DeviceError, "545001"),
        ("mdl.get_desc", 100011, ServingError, "100011"),
    ],
)
def test_a_load_that_fails_names_the_call_and_frees_all(
    tmp_path: Path, acl: Any, call: str, code: int, kind: type[OrchestratorError], text: str
) -> None:
    fake = acl(fail={call: [code, 0]})
    with pytest.raises(kind) as caught:
        open_om(tmp_path)
    assert text in str(caught.value)
    assert "EZ9999" in str(caught.value)  # ACL's own words
    assert fake.calls[call] == 1


@pytest.mark.parametrize(
    ("call", "code", "kind"),
    [
        ("mdl.execute_async", 507015, DeviceError),
        ("mdl.execute_async", 145000, ExecutionFailed),
        ("rt.synchronize_event", 507014, DeviceError),
        ("rt.memcpy", 107000, ExecutionFailed),
        ("rt.query_event_status", 507053, DeviceError),
    ],
)
def test_a_code_while_running_is_explained(
    tmp_path: Path, acl: Any, call: str, code: int, kind: type[OrchestratorError]
) -> None:
    fake = acl(fail={call: [code, 1]})
    session = open_om(tmp_path)
    with pytest.raises(kind, match=rf"acl\.{call} failed with {code}.*EZ9999"):
        [run(session, batch(2)) for _ in range(3)]
    fake.fail.clear()
    if kind is ExecutionFailed:  # the error was that batch's alone
        inputs = batch(2)
        check(run(session, inputs), inputs)
    session.close()


def test_no_room_is_said_before_the_load(tmp_path: Path, acl: Any) -> None:
    fake = acl(free_bytes=1 << 30, total_bytes=24 << 30)
    with pytest.raises(DeviceError, match=r"the model needs 1256 MiB on the device, 1024 of 24576 MiB are free"):
        open_om(tmp_path, weight_bytes=900 << 20, work_bytes=100 << 20)
    assert "mdl.load_from_file" not in fake.calls


def test_another_device_is_refused(tmp_path: Path, acl: Any) -> None:
    acl(soc="Ascend910B3")
    with pytest.raises(DeviceError, match="this slot is Ascend310P3, the device calls itself Ascend910B3"):
        open_om(tmp_path)
    variant = om_variant(tmp_path / "second")
    with pytest.raises(DeviceError, match="cannot serve as 'cpu"):
        runtime("om").load(job(variant.folder, DEVICE, variant))


def test_no_pyacl_says_what_to_install(tmp_path: Path) -> None:
    assert "acl" not in sys.modules
    with pytest.raises(DeviceError) as caught:
        open_om(tmp_path)
    assert "set_env.sh" in str(caught.value.hint)


def test_the_fake_notices_broken_rules(tmp_path: Path) -> None:
    """The proof of the tests above: leak, use after free, wrong size, wrong thread, wrong context."""
    fake = FakeAcl()
    fake.init()
    fake.rt.set_device(0)
    context, _ = fake.rt.create_context(0)
    pointer, _ = fake.rt.malloc(8, 0)
    host = np.zeros(16, np.uint8)
    for breaks in (
        lambda: fake.rt.memcpy(pointer, 16, host.ctypes.data, 16, 1),
        lambda: fake.rt.memcpy(pointer, 8, host.ctypes.data, 16, 1),
        lambda: fake.rt.free(pointer + 1),
        lambda: fake.mdl.unload(7),
        fake.finalize,
    ):
        with pytest.raises(Violation):
            breaks()
    fake.rt.free(pointer)
    with pytest.raises(Violation):
        fake.rt.memset(pointer, 8, 0, 8)
    fake.rt.destroy_context(context)
    with pytest.raises(Violation, match="no context"):
        fake.rt.malloc(8, 0)
    assert len(fake.violations) == 7


@pytest.mark.parametrize("first", [0, 1])
def test_models_of_one_process_share_its_context_until_the_last_has_gone(tmp_path: Path, acl: Any, first: int) -> None:
    fake = acl()
    sessions = [open_om(tmp_path / str(place)) for place in range(2)]
    inputs = [batch(2, seed=seed) for seed in (1, 2)]
    tickets = [session.submit(given) for session, given in zip(sessions, inputs, strict=True)]
    for session, ticket, given in zip(sessions, tickets, inputs, strict=True):
        check({tensor.name: tensor.array() for tensor in session.collect(ticket)}, given)
    assert (fake.calls["init"], fake.calls["rt.create_context"], fake.calls["rt.create_stream"]) == (1, 1, 2)
    sessions[first].close()
    check(run(sessions[1 - first], inputs[0]), inputs[0])
    third = open_om(tmp_path / "third")
    check(run(third, inputs[1]), inputs[1])
    sessions[1 - first].close()
    third.close()
    assert fake.live == {}
    again = open_om(tmp_path / "again")  # a context of its own
    check(run(again, inputs[0]), inputs[0])
    again.close()
    assert fake.calls["rt.create_context"] == 2


def test_a_model_that_does_not_load_leaves_its_neighbour_alone(tmp_path: Path, acl: Any) -> None:
    fake = acl(fail={"mdl.load_from_file": [145000, 1]})
    good = open_om(tmp_path / "good")
    with pytest.raises(ServingError, match="cannot be loaded"):
        open_om(tmp_path / "bad")
    inputs = batch(1)
    check(run(good, inputs), inputs)
    good.close()
    assert fake.live == {}


def test_a_session_knows_what_it_holds_of_the_device(tmp_path: Path, acl: Any) -> None:
    acl()
    session = open_om(tmp_path)
    buffers = 2 * sum(8 * 4 * 4 for _ in ("x", "y"))
    assert isinstance(session, Holding)
    assert session.held_bytes > buffers
    session.close()
