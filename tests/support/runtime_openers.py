"""Opens the small model of `runtime_variants` with every runtime, and checks what it answers."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.bundle.variant import Variant, read_variant
from orchestrator.serving.runtimes import acl_device
from orchestrator.serving.runtimes.api import Job, Session, runtime
from support import fake_onnxruntime
from support.ascend_tools import (
    mindspore_lite_python,
    needs_mindspore_lite,
)
from support.fake_acl import FakeAcl
from support.runtime_variants import (
    SOC,
    cann_variant,
    expected,
    mindir_variant,
    model,
    om_variant,
    torch_variant,
)
from support.serving_site import DEVICE


def job(folder: Path, device: str, variant: Variant | None = None, **tools: str) -> Job:
    work = folder.parent / f"{folder.name}.work"
    work.mkdir(exist_ok=True)
    return Job(folder, device, work, variant, tools)


@contextlib.contextmanager
def fake_npus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeAcl]]:
    """Give a maker of fakes of `acl`; at the end none may have seen a broken rule or hold anything."""
    made: list[FakeAcl] = []
    acl_device._contexts.clear()  # of a test that failed

    def make(**config: Any) -> FakeAcl:
        made.append(FakeAcl(**config))
        monkeypatch.setitem(sys.modules, "acl", made[-1])
        return made[-1]

    yield make
    for fake in made:
        assert fake.violations == []
        assert fake.live == {}, "not everything was freed"


def open_om(tmp_path: Path, kind: str = "batches", **more: Any) -> Session:
    variant = om_variant(tmp_path / "om", kind=kind, **more)
    return runtime("om").load(job(variant.folder, SOC, variant))


def open_onnx_cpu(tmp_path: Path, _acl: Any) -> Session:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(model().SerializeToString())
    return runtime("onnx-cpu").load(job(tmp_path / "onnx", DEVICE))


def _om(tmp_path: Path, acl: Any) -> Session:
    acl()
    return open_om(tmp_path)


def _om_fixed(tmp_path: Path, acl: Any) -> Session:
    acl(device_s=0.005)
    return open_om(tmp_path, "fixed")


def _om_ranges(tmp_path: Path, acl: Any) -> Session:
    acl(hbm=True)
    return open_om(tmp_path, "ranges")


def open_mindir(tmp_path: Path, _acl: Any) -> Session:
    python = mindspore_lite_python()
    assert python is not None
    shared = tmp_path.parent / "mindir"  # converting takes a second: once for all tests
    variant = read_variant(shared) if shared.is_dir() else mindir_variant(shared, python)
    place = job(tmp_path / "mindir", DEVICE, variant, mindspore_lite_python=str(python))
    return runtime("mindir").load(dataclasses.replace(place, folder=shared))


def open_onnx_cann(tmp_path: Path, _acl: Any) -> Session:
    fake_onnxruntime.install(tmp_path / "cann")
    variant = cann_variant(tmp_path / "onnx-cann")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path / "cann"))
        return runtime("onnx-cann").load(job(variant.folder, SOC, variant))


def open_torch(tmp_path: Path, _acl: Any) -> Session:
    variant = torch_variant(tmp_path / "torch")
    return runtime("torch").load(job(variant.folder, DEVICE, variant))


OPENERS: dict[str, Any] = {
    "onnx-cpu": open_onnx_cpu,
    "om": _om,
    "om-fixed": _om_fixed,
    "om-ranges": _om_ranges,
    "mindir": pytest.param(open_mindir, marks=needs_mindspore_lite),
    "onnx-cann": open_onnx_cann,
    "torch": open_torch,
}


def run(session: Session, inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: tensor.array() for tensor in session.collect(session.submit(inputs))}


def check(found: Any, inputs: Any) -> None:
    for name, wanted in expected(inputs).items():
        assert found[name].dtype == wanted.dtype
        np.testing.assert_array_equal(found[name], wanted)
