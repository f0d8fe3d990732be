"""The parts of the train step that need no cluster: device choice, causes of failure, the stream, foreign checkpoints."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from orchestrator.cluster.capacity import NodeCapacity
from orchestrator.core.errors import DeviceError, InfraError, Unreachable, UserCodeError
from orchestrator.steps.api import SiteInfo
from orchestrator.steps.train_cluster import choose_placement, connected
from orchestrator.steps.train_failure import explain_failure
from orchestrator.steps.train_records import RecordTail, append_records, metric_record
from orchestrator.steps.train_torchrun import collect_foreign
from orchestrator.steps.train_worker import command_of

SITE = SiteInfo("local", False, Path("/nowhere"))
BARE = [NodeCapacity("a", {"CPU": 4})]
GPUS = [NodeCapacity("a", {"CPU": 4}), NodeCapacity("b", {"CPU": 8, "GPU": 2})]


def test_the_device_is_what_was_asked_or_a_refusal() -> None:
    asked = {"gpu": 1, "cpu": 2}
    found = choose_placement(asked, GPUS, SITE)
    assert (found.device, found.text, dict(found.per_worker)) == ("cuda", "cuda", {"CPU": 2.0, "GPU": 1.0})
    with pytest.raises(
        DeviceError, match=r"asks for 1 GPU per worker; site 'local' has none \(GPU: 0 on 1 node\(s\)\)"
    ) as e:
        choose_placement(asked, BARE, SITE)
    assert "`allow_cpu: true`" in e.value.hint
    allowed = choose_placement(asked, BARE, dataclasses.replace(SITE, allow_cpu=True))
    assert (allowed.text, dict(allowed.per_worker)) == ("cpu (asked: cuda)", {"CPU": 2.0})
    assert choose_placement({"gpu": 0, "cpu": 1}, GPUS, SITE).text == "cpu"
    assert choose_placement(asked, GPUS, dataclasses.replace(SITE, allow_cpu=True)).device == "cuda"


def test_a_site_without_ray_is_told_apart_from_one_that_does_not_answer() -> None:
    with pytest.raises(InfraError, match="has no Ray cluster"), connected(SITE):
        pass
    with (
        pytest.raises(Unreachable, match="does not answer"),
        connected(dataclasses.replace(SITE, ray_address="127.0.0.1:9")),
    ):
        pass


class GroupFailed(Exception):
    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("Training failed due to worker errors")
        self.worker_failures = failures


def said(rank: int, error: Exception, t: float, *, collateral: bool = False) -> dict[str, Any]:
    assert isinstance(error, InfraError | UserCodeError)
    return {"rank": rank, "error": error.to_json(), "t": t, "collateral": collateral}


def test_a_dead_worker_is_the_cause_whatever_the_others_say() -> None:
    lost = said(0, UserCodeError("train:main failed: Connection closed by peer"), 1.0, collateral=True)
    found = explain_failure(GroupFailed({0: RuntimeError(), 1: RuntimeError("actor died\nmore")}), {0: lost})
    assert isinstance(found, InfraError)
    assert found.message == "worker 1 died: actor died"


def test_the_first_real_failure_is_the_cause() -> None:
    errors = {0: RuntimeError(), 1: RuntimeError()}
    lost = said(0, UserCodeError("Connection closed by peer"), 1.0, collateral=True)
    real = said(1, UserCodeError("train:main failed: KeyError: 'x'", place="train.py:7"), 2.0)
    found = explain_failure(GroupFailed(errors), {0: lost, 1: real})
    assert isinstance(found, UserCodeError)
    assert found.place == "train.py:7"
    assert isinstance(explain_failure(GroupFailed({0: RuntimeError()}), {0: lost}), InfraError)


class Heard:
    def __init__(self) -> None:
        self.metrics: list[tuple[str, float, int]] = []
        self.done: list[tuple[float, float]] = []

    def progress(self, done: float, total: float, text: str = "") -> None:
        self.done.append((done, total))

    def metric(self, name: str, value: float, step: int = 0) -> None:
        self.metrics.append((name, value, step))

    def message(self, text: str) -> None:
        raise AssertionError(text)


def test_the_stream_survives_torn_lines_and_repetitions(tmp_path: Path) -> None:
    path, heard = tmp_path / "metrics.ndjson", Heard()
    append_records(path, [metric_record("loss", 0.5, 0), {"epoch": 0, "of": 2}])
    with path.open("a") as file:
        file.write('{"metric": "loss", "val')  # killed here
    append_records(path, [metric_record("loss", 0.5, 0), {"epoch": 0, "of": 2}, metric_record("loss", 0.25, 1)])
    with path.open("a") as file:
        file.write('[1]\n{"metric": "x"}\n{"metric": "y", "value": "NaN", "step": 0}\n{"epoch": 1, "of": 2}\n')
    with RecordTail(path, heard) as tail:
        pass
    assert heard.metrics == [("loss", 0.5, 0), ("loss", 0.25, 1)]
    assert heard.done == [(1, 2), (2, 2)]
    assert (tail.last, tail.epochs) == ({"loss": 0.25}, 2)


def test_a_command_is_one_process_per_worker() -> None:
    assert command_of("python train.py --name 'a b'") == (sys.executable, "train.py", "--name", "a b")
    assert command_of(["./run.sh", "x"]) == ("./run.sh", "x")
    with pytest.raises(UserCodeError, match="starts torchrun, but the workers are started for you"):
        command_of("torchrun --nproc-per-node 2 train.py")


def test_the_newest_weights_of_a_script_become_the_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    with pytest.raises(UserCodeError, match="left no weights"):
        collect_foreign(root, tmp_path / "none")
    torch.save({"model": {"module.w": torch.ones(2)}}, root / "step-1.pt")
    found = collect_foreign(root, tmp_path / "a")
    assert load_file(found / "model.safetensors")["w"].tolist() == [1.0, 1.0]
    save_file({"w": torch.zeros(2)}, root / "step-2.safetensors")
    save_file({"m": torch.zeros(2)}, root / "optimizer.safetensors")
    found = collect_foreign(root, tmp_path / "b")
    assert load_file(found / "model.safetensors")["w"].tolist() == [0.0, 0.0]
    assert json.loads((found / "state.json").read_text())["source"] == "step-2.safetensors"
    torch.save({"model": Heard()}, root / "object.pt")
    (root / "step-2.safetensors").unlink()
    with pytest.raises(UserCodeError, match="Python objects"):
        collect_foreign(root, tmp_path / "c")
