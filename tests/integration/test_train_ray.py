"""Training on a real Ray cluster: two DDP workers, one of them killed; the user's errors; a torchrun-style script."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.ray_head import private_ray

from orchestrator.core.manifest import MANIFEST_NAME
from orchestrator.steps.api import SiteInfo

CHILD = Path(__file__).parent.parent / "support" / "step_child.py"

CODE = """
import os, pathlib, signal
import torch
from orchestrator import user

def build():
    return torch.nn.Linear(4, 1)

def main(run: user.Run) -> None:
    torch.manual_seed(3)
    data = torch.utils.data.TensorDataset(torch.rand(32, 4), torch.rand(32, 1))
    loader = torch.utils.data.DataLoader(data, batch_size=8, sampler=run.sampler(data))
    model = run.prepare(build())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    log = pathlib.Path(run.params.log)
    for epoch in run.epochs(run.params.epochs, model=model, optimizer=optimizer):
        if epoch == run.params.get("raise_in"):
            raise LookupError("the label file has no column 'digit'")
        for x, y in loader:
            optimizer.zero_grad()
            loss = ((model(x) - y) ** 2).mean()
            loss.backward()
            if epoch == run.params.get("kill_in") and run.rank == 1 and not (log / "killed").exists():
                (log / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.step()
        with (log / f"epochs-{run.rank}").open("a") as file:
            file.write(f"{epoch}\\n")
        run.log(loss=run.mean(loss))
"""

SCRIPT = """
import json, os, pathlib, sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor(float(dist.get_rank() + 1))
dist.all_reduce(total)
params = json.loads(os.environ["ORCHESTRATE_PARAMS"])
if dist.get_rank() == 0:
    with open(os.environ["ORCHESTRATE_METRICS_FILE"], "a") as file:
        file.write(json.dumps({"metric": "sum", "value": float(total), "step": 0}) + "\\n")
    torch.save({"weight": torch.full((2,), params["fill"])}, pathlib.Path(os.environ["ORCHESTRATE_CHECKPOINT_DIR"]) / "last.pt")
dist.destroy_process_group()
if params.get("fail"):
    sys.exit("no data in the folder")
"""


@pytest.fixture(scope="module")
def site() -> Iterator[SiteInfo]:
    with private_ray() as found:
        yield found


class Training:
    def __init__(self, folder: Path, site: SiteInfo) -> None:
        self.folder, self._site, self._count = folder, site, 0
        self.recipe = folder / "recipe"
        self.recipe.mkdir()
        (self.recipe / "train.py").write_text(CODE)
        (self.recipe / "script.py").write_text(SCRIPT)
        (folder / "work").mkdir()

    def start(
        self, params: dict[str, Any], *, gpu: int = 0, allow_cpu: bool = True, **spec: Any
    ) -> subprocess.Popen[str]:
        self._count += 1
        out = self.folder / f"out-{self._count}"
        out.mkdir()
        site = dataclasses.asdict(dataclasses.replace(self._site, allow_cpu=allow_cpu)) | {"state": str(self.folder)}
        spec = {"entrypoint": "train:main", "workers": 2} | spec
        spec |= {"params": params, "resources": {"gpu": gpu, "cpu": 1}, "retries": {"infra": 2}}
        context = {"kind": "train", "spec": spec, "recipe_dir": str(self.recipe), "work": str(self.folder / "work")}
        path = self.folder / f"context-{self._count}.json"
        path.write_text(json.dumps(context | {"out": str(out), "site": site}))
        log = (self.folder / f"log-{self._count}").open("w")
        return subprocess.Popen([sys.executable, str(CHILD), str(path)], stdout=subprocess.PIPE, stderr=log, text=True)

    def run(self, params: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
        output, _ = self.start(params, **more).communicate(timeout=120)
        return [json.loads(line) for line in output.splitlines()]

    def epochs(self, rank: int) -> list[int]:
        return [int(line) for line in (self.folder / f"epochs-{rank}").read_text().split()]


@pytest.fixture
def training(tmp_path: Path, site: SiteInfo) -> Training:
    return Training(tmp_path, site)


def of(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]


def test_a_killed_worker_costs_no_committed_epoch(training: Training) -> None:
    events = training.run({"epochs": 4, "log": str(training.folder), "kill_in": 2}, gpu=1)
    assert (training.folder / "killed").exists(), "the fault did not fire"
    (done,) = of(events, "finished")
    assert done["facts"]["restarts"] == 1
    assert done["facts"]["device"] == "cpu (asked: cuda)"
    assert any("NO GPU" in event["text"] for event in of(events, "message"))
    assert any("worker 1 died" in event["text"] for event in of(events, "message"))
    for rank in (0, 1):
        assert training.epochs(rank) == [0, 1, 2, 3]
    losses = [event["at"] for event in of(events, "metric") if event["name"] == "loss"]
    assert losses == [0, 1, 2, 3]
    assert done["metrics"]["loss"] > 0
    folder = Path(done["outputs"]["checkpoint"])
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert json.loads((folder / "state.json").read_text())["epoch"] == 3
    kept = sorted(p.name for p in (training.folder / "work" / "checkpoints").glob("epoch-*"))
    assert kept == ["epoch-000002", "epoch-000003"]
    assert all((training.folder / "work" / "checkpoints" / name / MANIFEST_NAME).exists() for name in kept)


def test_the_users_exception_is_not_tried_again(training: Training) -> None:
    events = training.run({"epochs": 3, "log": str(training.folder), "raise_in": 1}, workers=1)
    (failed,) = of(events, "failed")
    error = failed["error"]
    assert error["error"] == "UserCodeError"
    assert "LookupError: the label file has no column 'digit'" in error["message"]
    assert error["place"].startswith(f"{training.recipe}/train.py:")
    assert "LookupError" in error["details"]["traceback"]
    assert training.epochs(0) == [0]
    assert not of(events, "message")


def test_a_killed_orchestrator_resumes_where_it_was(training: Training) -> None:
    params = {"epochs": 60, "log": str(training.folder)}
    first = training.start(params, workers=1)
    assert first.stdout is not None
    for line in first.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event["done"] >= 3:
            break
    first.kill()
    first.wait()
    events = training.run(params, workers=1)
    (done,) = of(events, "finished")
    assert done["facts"]["resumed_from_epoch"] >= 2
    epochs = training.epochs(0)
    assert epochs == sorted(epochs)
    assert set(epochs) == set(range(60))
    assert len(epochs) <= 61, "only the epoch that was being committed at the kill may be trained again"
    assert [event["at"] for event in of(events, "metric") if event["name"] == "loss"] == list(range(60))


def test_a_torchrun_style_script_runs_unchanged(training: Training) -> None:
    from safetensors.numpy import load_file

    events = training.run({"fill": 7.0}, entrypoint=None, command="python script.py")
    (done,) = of(events, "finished")
    assert done["metrics"] == {"sum": 3.0}
    weights = load_file(Path(done["outputs"]["checkpoint"]) / "model.safetensors")
    assert weights["weight"].tolist() == [7.0, 7.0]


def test_a_script_that_fails_says_why(training: Training) -> None:
    events = training.run({"fill": 7.0, "fail": True}, entrypoint=None, workers=1, command=["python", "script.py"])
    (failed,) = of(events, "failed")
    assert failed["error"]["error"] == "UserCodeError"
    assert "exit code 1: no data in the folder" in failed["error"]["message"]


def test_an_absent_gpu_is_refused_before_anything_starts(training: Training) -> None:
    (failed,) = of(training.run({"epochs": 1}, gpu=1, allow_cpu=False), "failed")
    assert failed["error"]["error"] == "DeviceError"
    assert "asks for 1 GPU per worker" in failed["error"]["message"]
    assert "allow_cpu: true" in failed["error"]["hint"]
    assert not os.listdir(training.folder / "work" / "checkpoints")
