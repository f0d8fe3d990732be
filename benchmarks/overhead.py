"""Claim: orchestration costs little. The same training and export as one plain script, beside `orchestrate run`.

    python benchmarks/overhead.py [--quick] [--json]

Rows: the plain script (torchrun-style, one process per worker, then export); `orchestrate run` cold (site down, nothing
cached), warm (site up, nothing cached) and again (everything reused); and a recipe of 20 no-op own steps, without MLflow
and with it (its import and database cost some seconds a run, whatever the number of steps). All fresh processes; the
same recipe code, epochs and workers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "recipes" / "digits"
NOOPS = 20
PLAIN = """
import sys
sys.path.insert(0, {recipe!r})
import numpy as np, torch
from safetensors.torch import load_file
from model import build
from train import evaluate
folder = sorted(__import__("pathlib").Path({checkpoints!r}).glob("epoch-*"))[-1]
model = build().eval(); model.load_state_dict(load_file(folder / "model.safetensors"))
with torch.no_grad():
    print(evaluate(lambda x: {{"logits": model(torch.from_numpy(x["image"])).numpy()}}))
torch.onnx.export(model, (torch.zeros(2, 1, 8, 8),), {out!r}, dynamo=True, opset_version=18, input_names=["image"],
                  output_names=["logits"], dynamic_shapes=({{0: torch.export.Dim.DYNAMIC}},), verbose=False)
"""


def timed(command: list[str], folder: Path, **environment: str) -> tuple[float, str]:
    """Return (wall seconds, stdout) of a command that must succeed."""
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - began, done.stdout


def plain(folder: Path) -> float:
    """Train with torchrun, then evaluate and export in one script; wall seconds."""
    work = folder / "plain"
    work.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(DIGITS / "train.py")]
    train_s, _ = timed(torchrun, work, OMP_NUM_THREADS="1", ORCHESTRATE_CHECKPOINT_DIR=str(work / "checkpoints"))
    script = PLAIN.format(recipe=str(DIGITS), checkpoints=str(work / "checkpoints"), out=str(work / "model.onnx"))
    export_s, _ = timed([sys.executable, "-c", script], work)
    return train_s + export_s


def orchestrated(folder: Path, *arguments: str) -> tuple[float, dict[str, Any]]:
    """Run the recipe; wall seconds and the result."""
    command = [sys.executable, "-m", "orchestrator", "run", str(DIGITS / "recipe.yaml"), "--json", *arguments]
    wall_s, out = timed(command, folder)
    return wall_s, json.loads(out.splitlines()[-1])


def noops(folder: Path, count: int, *, mlflow: bool = True) -> float:
    """Return the wall seconds of a recipe of no-op own steps, process start included."""
    lines = [f"  - {{name: s{i}, command: ['true'], params: {{i: {i}}}}}" for i in range(count)]
    name = f"noops-{count}-{'mlflow' if mlflow else 'quiet'}"
    (folder / f"{name}.yaml").write_text(f"recipe: 1\nname: {name}\nsteps:\n" + "\n".join(lines) + "\n")
    command = [sys.executable, "-m", "orchestrator", "run", f"{name}.yaml", "--json"]
    if not mlflow:
        (folder / "quiet.yaml").write_text(
            "environment: 1\ntracking: {uri: none}\nsites: {local: {kind: local, allow_cpu: true}}\n"
        )
        command += ["-e", "quiet.yaml"]
    return timed(command, folder)[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="once instead of three times")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = ("plain", "cold", "warm", "reused", "noop_step", "noop_step_mlflow", "noop_step_more")
    rows: dict[str, list[float]] = {name: [] for name in names}
    steps: dict[str, float] = {}
    for _ in range(1 if options.quick else 3):
        folder = Path(tempfile.mkdtemp())
        try:
            rows["plain"].append(plain(folder))
            cold_s, result = orchestrated(folder)
            steps = {step["step"]: step["wall_s"] for step in result["steps"]}
            rows["cold"].append(cold_s)
            rows["warm"].append(orchestrated(folder, *(f"--refresh={s}" for s in steps if s != "deploy"))[0])
            rows["reused"].append(orchestrated(folder)[0])
            one_s, many_s = noops(folder, 1), noops(folder, NOOPS)
            rows["noop_step"].append(noops(folder, NOOPS, mlflow=False) / NOOPS)
            rows["noop_step_mlflow"].append(many_s / NOOPS)
            rows["noop_step_more"].append((many_s - one_s) / (NOOPS - 1))
        finally:
            timed([sys.executable, "-m", "orchestrator", "down"], folder)
            shutil.rmtree(folder)
    best = {name: min(values) for name, values in rows.items()}
    ratios = {name: best[name] / best["plain"] for name in ("cold", "warm", "reused")}
    if options.json:
        print(json.dumps({"seconds": best, "ratio_to_plain": ratios, "steps_s": steps}))
        return
    print(f"plain script            {best['plain']:7.2f} s")
    for name, ratio in ratios.items():
        print(f"orchestrate run, {name:<6} {best[name]:7.2f} s   {ratio:5.2f} x plain")
    milliseconds = {name: best[name] * 1000 for name in rows if name.startswith("noop")}
    print(f"{NOOPS} no-op steps        {milliseconds['noop_step']:7.1f} ms a step, process start included, MLflow off")
    print(f"  with MLflow           {milliseconds['noop_step_mlflow']:7.1f} ms a step")
    print(f"  each further step     {milliseconds['noop_step_more']:7.1f} ms")
    for name, value in steps.items():
        print(f"  cold, {name:<12}{value:7.2f} s")


if __name__ == "__main__":
    main()
