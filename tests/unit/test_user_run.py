"""`user.Run` in one process: resuming, checkpoints that are whole or absent, metrics, parameters."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forked import run_forked

from orchestrator import user
from orchestrator.core.errors import InfraError
from orchestrator.steps.train_checkpoint import Checkpoints, lock_exclusively
from orchestrator.steps.train_state import pack, unpack

CPU = torch.device("cpu")


def make_run(folder: Path, **params: Any) -> user.Run:
    return user.Run(
        params,
        rank=0,
        world_size=1,
        local_rank=0,
        device=CPU,
        checkpoint_dir=folder / "checkpoints",
        metrics_file=folder / "metrics.ndjson",
    )


def train(folder: Path, epochs: int = 4, each: Callable[[user.Run, int], None] | None = None) -> torch.nn.Module:
    run = make_run(folder, seed=5)
    model = run.prepare(torch.nn.Linear(3, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    decay = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    try:
        for epoch in run.epochs(epochs, model=model, optimizer=optimizer, scheduler=decay):
            with (folder / "trained").open("a") as file:
                file.write(f"{epoch}\n")
            loss = ((model(torch.rand(8, 3)) - 1) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step(loss.item())
            run.log(loss=loss)
            if each:
                each(run, epoch)
    finally:
        run.close()
    return model


def trained(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "trained").read_text().split()]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.ndjson").read_text().splitlines()]


def test_epochs_continue_after_the_last_commit_and_end_in_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    def give_up(_run: user.Run, epoch: int) -> None:
        if epoch == 2:
            raise RuntimeError("out of patience")

    with pytest.raises(RuntimeError):
        train(tmp_path / "a", each=give_up)
    torch.manual_seed(99)  # a new process would start from elsewhere
    resumed, whole = train(tmp_path / "a"), train(tmp_path / "b")
    assert trained(tmp_path / "a") == [0, 1, 2, 2, 3]  # 2 was not committed
    assert trained(tmp_path / "b") == [0, 1, 2, 3]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    states = [(tmp_path / case / "checkpoints/epoch-000003/manifest.json").read_bytes() for case in "ab"]
    assert states[0] == states[1], "a resumed training leaves the same bytes"


def test_a_finished_training_trains_nothing_more(tmp_path: Path) -> None:
    train(tmp_path)
    train(tmp_path)
    assert trained(tmp_path) == [0, 1, 2, 3]


@pytest.mark.parametrize("point", ["before_manifest", "before_commit", "after_commit"])
def test_a_kill_while_saving_leaves_the_last_complete_checkpoint(tmp_path: Path, point: str) -> None:
    fault = f"train.checkpoint.{point}"
    log = tmp_path / "faults"
    code = run_forked(lambda: train(tmp_path), fault=f"{fault}#2:kill", log=log)
    assert code == -signal.SIGKILL
    assert f"{fault} fired" in log.read_text()
    committed = 1 if point == "after_commit" else 0
    newest = Checkpoints(tmp_path / "checkpoints").newest()
    assert newest is not None
    assert newest.epoch == committed
    train(tmp_path)
    assert trained(tmp_path) == [0, 1, *range(committed + 1, 4)]
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["epoch-000002", "epoch-000003", "train.lock"], "torn folders are removed, two are kept"
    losses = {line["step"] for line in lines(tmp_path) if "metric" in line}
    assert losses == {0, 1, 2, 3}, "metrics of a commit are not lost with the process"


def test_a_damaged_checkpoint_costs_one_epoch(tmp_path: Path) -> None:
    train(tmp_path)
    weights = tmp_path / "checkpoints/epoch-000003/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    train(tmp_path)
    assert trained(tmp_path) == [0, 1, 2, 3, 3]


def test_break_does_not_commit_and_stop_does(tmp_path: Path) -> None:
    train(tmp_path, each=lambda run, epoch: run.stop() if epoch == 1 else None)
    assert trained(tmp_path) == [0, 1]
    train(tmp_path)
    assert trained(tmp_path) == [0, 1], "a stopped training stays stopped"
    run = make_run(tmp_path / "other")
    for _ in run.epochs(3, model=torch.nn.Linear(1, 1)):
        break
    assert Checkpoints(tmp_path / "other/checkpoints").newest() is None


def test_a_metric_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loss is nan in epoch 0: the training has diverged"):
        train(tmp_path, each=lambda run, _epoch: run.log(loss=float("nan")))
    assert Checkpoints(tmp_path / "checkpoints").newest() is None


def test_metrics_with_a_step_appear_at_once(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for _ in run.epochs(1, model=torch.nn.Linear(1, 1)):
        run.log(batch_loss=0.5, step=17)
        assert lines(tmp_path) == [{"metric": "batch_loss", "value": 0.5, "step": 17}]


def _hold(path: str, ready: Any, release: Any) -> None:
    file = lock_exclusively(Path(path))
    ready.set()
    release.wait(10)
    file.close()


def test_a_second_trainer_waits_for_the_first_and_then_says_who_it_is(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path / "train.lock"), ready, release))
    holder.start()
    assert ready.wait(10)
    with pytest.raises(InfraError, match=f"process {holder.pid}"):
        lock_exclusively(tmp_path / "train.lock", wait_s=0.1)
    holder.kill()
    lock_exclusively(tmp_path / "train.lock", wait_s=5).close()
    holder.join()


def test_a_state_survives_json_and_safetensors() -> None:
    state = {
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1], "fused": None}],
        "state": {0: {"step": torch.tensor(3.0), "half": torch.ones(2, dtype=torch.bfloat16)}},
        "best": float("inf"),
    }
    tensors: dict[str, torch.Tensor] = {}
    found: Any = unpack(json.loads(json.dumps(pack(state, tensors, "optimizer"))), tensors)
    assert found["param_groups"] == state["param_groups"]
    assert found["best"] == float("inf")
    assert found["state"][0]["step"].item() == 3.0
    assert found["state"][0]["half"].dtype is torch.bfloat16
    with pytest.raises(TypeError, match=r"optimizer\.hook is a function"):
        pack({"hook": pack}, {}, "optimizer")


def test_params_read_like_attributes_and_name_what_there_is() -> None:
    params = user.Params({"lr": 0.1, "epochs": 3})
    assert (params.lr, params["epochs"], params.get("seed", 7), dict(params)) == (0.1, 3, 7, {"lr": 0.1, "epochs": 3})
    with pytest.raises(AttributeError, match=r"no parameter 'lrate' \(given: epochs, lr\)"):
        _ = params.lrate


def test_the_same_function_runs_under_bare_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n"
        "from orchestrator import user\n"
        "def main(run):\n"
        "    data = torch.arange(8.0)\n"
        "    model = run.prepare(torch.nn.Linear(1, 1))\n"
        "    sampler = run.sampler(data)\n"
        "    for epoch in run.epochs(run.params.epochs, model=model):\n"
        "        run.log(total=run.mean(sum(float(data[i]) for i in sampler)), ranks=run.world_size)\n"
        "user.launch(main, params={'epochs': 2})\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found = [json.loads(line) for line in (tmp_path / "checkpoints/metrics.ndjson").read_text().splitlines()]
    assert [f["value"] for f in found if f.get("metric") == "total"] == [14.0, 14.0]
    assert [f["value"] for f in found if f.get("metric") == "ranks"] == [2.0, 2.0]
    assert (tmp_path / "checkpoints/epoch-000001/model.safetensors").exists()
