"""What every runtime keeps: right numbers at every batch size, two batches under way, errors that stay with their batch."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support import fake_onnxruntime
from support.ascend_tools import (
    needs_mindspore_lite,
    needs_onnxruntime_cann,
    onnxruntime_cann_python,
)
from support.fake_acl import FakeAcl
from support.runtime_openers import (
    OPENERS,
    check,
    fake_npus,
    job,
    open_mindir,
    open_onnx_cann,
    open_torch,
    run,
)
from support.runtime_variants import (
    SOC,
    batch,
    cann_variant,
    expected,
    torch_variant,
    variant_of,
)
from support.serving_site import DEVICE

from orchestrator.bundle.golden import Golden
from orchestrator.bundle.variant import read_variant
from orchestrator.core.errors import DeviceError, OrchestratorError, ServingError, UserCodeError
from orchestrator.serving.protocol.tensors import from_array
from orchestrator.serving.replica.warm import warm_up
from orchestrator.serving.runtimes.api import ExecutionFailed, InputRejected, Session, runtime
from orchestrator.serving.runtimes.headroom import check_host


@pytest.fixture
def acl(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeAcl]]:
    with fake_npus(monkeypatch) as make:
        yield make


@pytest.fixture(params=list(OPENERS.values()), ids=list(OPENERS))
def session(request: pytest.FixtureRequest, tmp_path: Path, acl: Any) -> Iterator[Session]:
    opened: Session = request.param(tmp_path, acl)
    yield opened
    opened.close()


def test_every_number_of_rows_gives_the_right_rows(session: Session) -> None:
    assert [spec.name for spec in session.inputs] == ["x", "n"]
    assert [(spec.name, spec.datatype) for spec in session.outputs] == [("y", "FP32"), ("m", "INT64")]
    assert session.device in {SOC, DEVICE}
    assert session.max_batch in {4, 8, 32}
    for rows in range(1, min(session.max_batch, 8) + 1):
        inputs = batch(rows, seed=rows)
        check(run(session, inputs), inputs)


def test_two_batches_are_under_way_and_answers_are_their_own(session: Session) -> None:
    assert session.depth == 2
    first, second, third = (batch(rows, seed=rows) for rows in (2, 3, 1))
    a, b = session.submit(first), session.submit(second)
    found_a = {t.name: t.array() for t in session.collect(a)}
    c = session.submit(third)
    found_c = {t.name: t.array() for t in session.collect(c)}  # out of turn
    assert session.done(b, 1.0)
    found_b = {t.name: t.array() for t in session.collect(b)}
    for found, inputs in ((found_a, first), (found_b, second), (found_c, third)):
        check(found, inputs)


def test_every_bucket_runs_before_it_serves(session: Session) -> None:
    inputs = batch(3)
    golden = Golden({t.name: t.array() for t in inputs}, expected(inputs))
    assert warm_up(session, golden) == len(session.buckets)


def test_many_batches_take_no_more_memory(session: Session, acl: Any) -> None:
    run(session, batch(2))
    fake = sys.modules.get("acl")
    before = fake.live if isinstance(fake, FakeAcl) else {}
    for number in range(50):
        run(session, batch(1 + number % 4, seed=number))
    assert (fake.live if isinstance(fake, FakeAcl) else {}) == before


def test_the_cann_provider_gets_its_options_and_its_folder(tmp_path: Path) -> None:
    session = open_onnx_cann(tmp_path, None)
    session.close()
    (given,) = fake_onnxruntime.sessions(tmp_path / "cann")
    assert given["options"] == {"precision_mode": "force_fp16", "device_id": "0"}
    assert given["cwd"] == str(tmp_path / "onnx-cann.work")
    assert "g_1_0.om" in given["there"]


def test_a_cann_provider_that_falls_back_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(fake_onnxruntime.install(tmp_path / "cann", "silent")))
    variant = cann_variant(tmp_path / "variant")
    with pytest.raises(ServingError, match=r"asked for CANN.*the session runs on \['CPUExecutionProvider'\]"):
        runtime("onnx-cann").load(job(variant.folder, SOC, variant))
    fake_onnxruntime.install(tmp_path / "cann", soc="Ascend910B3")
    with pytest.raises(DeviceError, match="the device calls itself Ascend910B3"):
        runtime("onnx-cann").load(job(variant.folder, SOC, variant))


def test_an_onnxruntime_without_the_provider_is_named(tmp_path: Path) -> None:
    variant = cann_variant(tmp_path / "variant")
    with pytest.raises(ServingError, match="has no CANNExecutionProvider") as caught:
        runtime("onnx-cann").load(job(variant.folder, SOC, variant))
    assert "tools.onnxruntime_cann_python" in str(caught.value.hint)


@needs_onnxruntime_cann
def test_the_real_provider_without_cann_is_refused(tmp_path: Path) -> None:
    variant = cann_variant(tmp_path / "variant")
    tool = str(onnxruntime_cann_python())
    with pytest.raises(ServingError) as caught:
        runtime("onnx-cann").load(job(variant.folder, SOC, variant, onnxruntime_cann_python=tool))
    assert "CANN" in str(caught.value)


@needs_mindspore_lite
def test_a_mindir_says_what_it_cannot_take_and_outlives_it(tmp_path: Path) -> None:
    session = open_mindir(tmp_path, None)
    with pytest.raises(InputRejected, match="holds values that int32 cannot"):
        run(session, [batch(1)[0], from_array("n", np.array([[1 << 40]]))])
    inputs = batch(2)
    check(run(session, inputs), inputs)
    session.close()


@pytest.mark.parametrize("name", ["mindir", "onnx-cann"])
def test_a_tool_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    if name == "mindir":
        (tmp_path / "v").mkdir()
        (tmp_path / "v" / "model.mindir").write_bytes(b"x")
        facts = {"mindir": {"form": "general"}}
        variant = variant_of(tmp_path / "v", "mindir", fmt="mindir", gears=[{}], facts=facts, compiled=False)
        with pytest.raises(DeviceError, match=r"tools\.mindspore_lite_python` is not set"):
            runtime(name).load(job(variant.folder, DEVICE, variant))
        tools, device = {"mindspore_lite_python": "/nowhere/python"}, DEVICE
    else:
        variant = cann_variant(tmp_path / "v")
        tools, device = {"onnxruntime_cann_python": "/nowhere/python"}, SOC
    with pytest.raises(DeviceError, match="/nowhere/python does not start"):
        runtime(name).load(job(variant.folder, device, variant, **tools))
    other = SOC if device == DEVICE else DEVICE
    with pytest.raises(DeviceError, match="cannot serve as"):
        runtime(name).load(job(variant.folder, other, variant, **tools))


def test_a_child_that_dies_is_told_by_its_signal(tmp_path: Path) -> None:
    session = open_onnx_cann(tmp_path, None)
    (child,) = [p for p in psutil.Process().children() if "onnx_cann.py" in " ".join(p.cmdline())]
    child.send_signal(signal.SIGSEGV)
    with pytest.raises(DeviceError, match="onnxruntime-cann ended by signal 11"):
        [run(session, batch(2)) for _ in range(2)]
    session.close()


def test_large_batches_do_not_lock_parent_and_child(tmp_path: Path) -> None:
    """Both write more than the socket holds at the same time."""
    session = open_onnx_cann(tmp_path, None)
    inputs = [from_array("x", np.ones((8, 4), np.float32)), from_array("n", np.ones((8, 1), np.int64))]
    child: Any = session
    rows = [["x", "float32", [400_000, 4], 6_400_000], ["n", "int64", [400_000, 1], 3_200_000]]
    body = [np.ones(6_400_000, np.uint8).data, np.ones(3_200_000, np.uint8).data]
    numbers = [child._child.send({"inputs": rows}, body) for _ in range(4)]
    assert [len(child._child.receive(number)[1]) for number in numbers] == [9_600_000] * 4
    check(run(session, inputs), inputs)
    session.close()


def test_a_torch_package_leaves_its_folder_as_it_was(tmp_path: Path) -> None:
    session = open_torch(tmp_path, None)
    run(session, batch(1))
    session.close()
    assert read_variant(tmp_path / "torch").runtime == "torch"  # no bytecode, no caches
    with pytest.raises(ExecutionFailed, match="closed"):
        run(session, batch(1))


def test_an_error_of_the_users_network_stays_with_its_batch(tmp_path: Path) -> None:
    session = open_torch(tmp_path, None)
    bad = [batch(2)[0], from_array("n", np.array([[99], [1]]))]
    tickets = [session.submit(bad), session.submit(batch(2))]
    with pytest.raises(ExecutionFailed, match="this is not for me"):
        session.collect(tickets[0])
    assert len(session.collect(tickets[1])) == 2
    session.close()


@pytest.mark.parametrize(
    ("how", "device", "error", "text"),
    [
        ({"device": "npu", "soc": SOC}, SOC, DeviceError, "torch_npu cannot be imported here"),
        ({"device": "npu", "soc": SOC}, "Ascend910B3", DeviceError, "made for Ascend310P3"),
        ({}, "NVIDIA H200", DeviceError, "first CUDA device is"),
        ({"factory": "network:absent"}, DEVICE, UserCodeError, "absent"),
        ({"schema": 9}, DEVICE, ServingError, "has schema 9"),
    ],
)
def test_a_torch_package_that_cannot_run_says_why(
    tmp_path: Path, how: Any, device: str, error: type[OrchestratorError], text: str
) -> None:
    variant = torch_variant(tmp_path / "torch", **how)
    with pytest.raises(error, match=text):
        runtime("torch").load(job(variant.folder, device, variant))


class FakeAccelerator:
    """`torch.cuda` as far as it is used, on the CPU: events are done a while after they are recorded."""

    __name__ = "torch.cpu"
    free = 1 << 40

    class Event:
        def record(self) -> None:
            self.at = time.monotonic() + 0.02

        def query(self) -> bool:
            return time.monotonic() >= self.at

        def synchronize(self) -> None:
            time.sleep(max(0.0, self.at - time.monotonic()))

    def mem_get_info(self) -> tuple[int, int]:
        return self.free, 1 << 41

    def empty_cache(self) -> None:
        self.emptied = True


def test_torch_on_a_device_queues_and_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeAccelerator()
    monkeypatch.setattr("orchestrator.serving.runtimes.torch_module._accelerator", lambda open_torch, _device: backend)
    session = open_torch(tmp_path, None)
    first, second = batch(2, seed=1), batch(3, seed=2)
    tickets = [session.submit(first), session.submit(second)]
    bad = session.submit([batch(2)[0], from_array("n", np.array([[99], [1]]))])
    assert not session.done(tickets[0], 0)
    for ticket, inputs in zip(tickets, (first, second), strict=True):
        check({t.name: t.array() for t in session.collect(ticket)}, inputs)
    with pytest.raises(ExecutionFailed, match="not for me"):
        session.collect(bad)
    session.close()
    assert backend.emptied
    backend.free = 0
    with pytest.raises(DeviceError, match=r"needs 0 MiB on the device, 0 of 2097152 MiB are free"):
        runtime("torch").load(job(tmp_path / "torch", DEVICE))


def test_the_host_must_have_room(tmp_path: Path) -> None:
    model_folder = tmp_path / "model"
    model_folder.mkdir()
    (model_folder / "weights").write_bytes(bytes(1 << 20))
    check_host(model_folder)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9999999 kB\nMemAvailable: 102400 kB\n")
    with pytest.raises(DeviceError, match="needs 129 MiB of the host's memory, 100 MiB are free"):
        check_host(model_folder, meminfo=meminfo)
    group = tmp_path / "cgroup"
    group.mkdir()
    for name, text in {"max": "209715200", "current": "157286400", "stat": "anon 1\ninactive_file 31457280\n"}.items():
        (group / f"memory.{name}").write_text(text)
    with pytest.raises(DeviceError, match="80 MiB are free"):
        check_host(model_folder, cgroup=group)
    (group / "memory.max").write_text("max\n")
    check_host(model_folder, cgroup=group)
