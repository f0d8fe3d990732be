"""The forecast beside its peers: statistics in the graph against all tensors marked as outputs, our keep list against ModelOpt's.

Every pass runs in a process of its own, so that its peak of memory is its own; times are medians, with the plain run of the
same graph on the same samples in between. Ratios are what counts: this machine is as fast as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from peers import ROOT, peer_environment

RECIPES = ("efficientnet-lite0", "minilm")
MODELOPT = ("nvidia-modelopt==0.47.0", "onnx", "onnxruntime", "onnx-graphsurgeon", "onnxslim", "onnxscript", "polygraphy",
            "lief", "ml_dtypes", "onnxconverter-common")  # fmt: skip
AUTOCAST = (
    "import sys, onnx\nfrom modelopt.onnx.autocast import convert_to_mixed_precision as c\n"
    "onnx.save(c(onnx_path=sys.argv[1], low_precision_type='fp16', calibration_data=sys.argv[2], keep_io_types=True), sys.argv[3])"
)
SAMPLES = 16
EXPECTED = {"range_time": 4.0, "range_memory_mib": 250.0, "forecast_s": 60.0, "massive_s": 5.0, "massive_db": 55.0}


def peak_mib() -> float:
    """Return the largest resident memory that this process ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def plain_run(path: Path, samples: dict[str, Any], size: int) -> Callable[[], None]:
    """Return one run of the plain graph over all samples, in the same pieces and with the same options."""
    import onnxruntime

    from orchestrator.graph.forecast.workspace import session_options

    session = onnxruntime.InferenceSession(
        str(path), session_options(optimise=True), providers=["CPUExecutionProvider"]
    )
    count = len(next(iter(samples.values())))

    def run() -> None:
        for start in range(0, count, size):
            session.run(None, {name: value[start : start + size] for name, value in samples.items()})

    return run


def marked_run(path: Path, samples: dict[str, Any]) -> Callable[[], None]:
    """Return the usual way: every float tensor an output, statistics in numpy."""
    import onnxruntime
    from onnx import TensorProto, helper

    model = onnx.load(str(path))
    inferred = onnx.shape_inference.infer_shapes(model)
    own = {entry.name for entry in model.graph.output}
    floats = [v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in floats if name not in own)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def run() -> None:
        for value in session.run(None, samples):
            if value.dtype == np.float32 and value.size:
                large = np.abs(value)
                _ = large.max(), np.count_nonzero(large > 65504), np.mean(large < 2.0**-14), np.square(value).sum()

    return run


def child(kind: str, path: Path, file: Path, rounds: int) -> dict[str, float]:
    """Measure one pass in this process: median seconds, those of the plain run in between, and the peak it adds to it."""
    from orchestrator.graph.forecast.batches import Batches
    from orchestrator.graph.forecast.forecast import choose_size
    from orchestrator.graph.forecast.ranges import measure_ranges
    from orchestrator.graph.forecast.workspace import open_workspace
    from orchestrator.graph.read import inspect_onnx

    with np.load(file) as stored:
        samples = {name: stored[name] for name in stored.files}
    with tempfile.TemporaryDirectory() as folder:
        space = open_workspace(path, Path(folder))
        batches = choose_size(space, Batches(inspect_onnx(path).inputs, samples, size=1))
        plain = plain_run(path, samples, batches.size)
        plain()
        before = peak_mib()
        passes: dict[str, Callable[[], object]] = {
            "plain": plain,
            "range": lambda: measure_ranges(space, batches),
            "mark-all": marked_run(path, samples) if kind == "mark-all" else plain,
        }
        passes[kind]()
        added = peak_mib() - before
        times: dict[str, list[float]] = {"plain": [], kind: []}
        for _ in range(rounds):
            for name, taken in times.items():
                began = time.perf_counter()
                passes[name]()
                taken.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(times[kind]),
        "plain_s": statistics.median(times["plain"]),
        "ratio": statistics.median(times[kind]) / statistics.median(times["plain"]),
        "added_mib": added,
        "batch": batches.size,
    }


def in_child(kind: str, path: Path, file: Path, rounds: int) -> dict[str, float]:
    """Run `child` in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, str(path), str(file), str(rounds)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "MALLOC_ARENA_MAX": "2"}
    )
    if done.returncode != 0:
        raise SystemExit(f"{kind} on {path.name} failed: {done.stderr[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def export(recipe: str, folder: Path) -> None:
    """Make a recipe's graph and samples as a run does: weights from its package, exported at 18."""
    from orchestrator.recipe import load_recipe
    from orchestrator.steps import export as exporting
    from orchestrator.steps import source
    from orchestrator.steps.api import SiteInfo, StepContext
    from orchestrator.steps.model_inputs import real_samples, tensor_specs

    place = ROOT / "recipes" / recipe
    body = load_recipe(place / "recipe.yaml").recipe.model_dump(mode="json", exclude_none=True)
    spec = {"model": body["model"], "source": body["source"], "targets": [], "samples": body["samples"]}
    spec |= {"samples_count": SAMPLES, "opset": 18}
    folder.mkdir(parents=True, exist_ok=True)

    def context(step: str, inputs: dict[str, Path]) -> StepContext:
        work, out = folder / step / "work", folder / step / "out"
        work.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        site = SiteInfo("local", True, folder)
        return StepContext(step, step, spec, place, inputs, work, out, site, 1, Quiet())

    checkpoint = source.run(context("source", {})).outputs["checkpoint"].folder
    ctx = context("export", {"checkpoint": checkpoint})
    exporting.run(ctx)
    np.savez(folder / "samples.npz", **real_samples(ctx, tensor_specs(ctx)[0]))
    (folder / "export" / "out" / "onnx" / "model.onnx").rename(folder / "model.onnx")


class Quiet:
    """Tells nobody."""

    def progress(self, done: float, total: float, text: str = "") -> None:
        """Do nothing."""

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""


def real_model(recipe: str) -> Path | None:
    """Return the folder with a recipe's graph and samples, made once below `.bench/`; None where its package is missing."""
    folder = ROOT / ".bench" / "models" / recipe
    if not (folder / "model.onnx").exists():
        command = [sys.executable, __file__, "--export", recipe, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"{recipe}: cannot be exported: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return None
    return folder


def foresee(path: Path, samples: dict[str, Any], soc: str, **options: Any) -> tuple[Any, float]:
    """Return a forecast and the seconds it took."""
    from orchestrator.ascend.precision import policy
    from orchestrator.graph.forecast.forecast import forecast
    from orchestrator.graph.verdict import Thresholds, thresholds_for

    asked = thresholds_for("fp16")
    if "min_sqnr_db" in options:
        asked = Thresholds(options.pop("min_sqnr_db"), asked.min_cosine)
    began = time.perf_counter()
    found = forecast(path, policy=policy(soc, "fp16"), samples=samples, thresholds=asked, **options)
    return found, time.perf_counter() - began


def searched(path: Path, samples: dict[str, Any]) -> dict[str, Any]:
    """Return the whole forecast, and one whose thresholds are 6 dB above what fp16 reaches: that makes it search."""
    first, seconds = foresee(path, samples, "Ascend910B4")
    wanted = first.before.sqnr_db + 6.0
    found, whole = foresee(path, samples, "Ascend910B4", min_sqnr_db=wanted)
    return {
        "fp16_db": first.before.sqnr_db,
        "forecast_s": seconds,
        "asked_db": wanted,
        "reached_db": found.after.sqnr_db,
        "nodes": len(found.keep.nodes),
        "flops_share": found.after.cost.flops_share,
        "with_search_s": whole,
        "probes": found.keep.runs,
        "s_per_probe": found.keep.seconds / max(1, found.keep.runs),
    }


def massive() -> dict[str, Any]:
    """Our keep list and ModelOpt AutoCast's on the synthetic massive-activation net, judged by the same twin."""
    sys.path.insert(0, str(ROOT))
    from tests.support.zoo import ZOO

    graph = ZOO["rmsnorm_massive"]()
    with tempfile.TemporaryDirectory() as temp:
        path, file = Path(temp) / "model.onnx", Path(temp) / "samples.npz"
        onnx.save(graph.model, path)
        np.savez(file, **graph.samples)
        ours, seconds = foresee(path, graph.samples, "Ascend910B4")
        rows: dict[str, Any] = {
            "nodes": len(graph.model.graph.node),
            "fp16_db": ours.before.sqnr_db,
            "ours": {
                "kept": len(ours.keep.nodes),
                "db": ours.after.sqnr_db,
                "search_s": ours.keep.seconds,
                "s": seconds,
            },
            "autocast": "not installed",
        }
        binaries = peer_environment("modelopt", *MODELOPT) if AUTOCAST_ASKED else None
        if binaries is not None:
            theirs, took = autocast(binaries, path, file, Path(temp) / "cast.onnx")
            kept, _ = foresee(path, graph.samples, "Ascend910B4", keep=theirs)
            rows["autocast"] = {"kept": len(theirs), "db": kept.after.sqnr_db, "s": took}
        return rows


def autocast(binaries: Path, path: Path, file: Path, out: Path) -> tuple[list[str], float]:
    """Return the nodes that AutoCast leaves in fp32, which it logs, and its seconds."""
    began = time.perf_counter()
    command = [str(binaries / "python"), "-c", AUTOCAST, str(path), str(file), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    names = re.findall(r"Skipping node ([^\s:]+):", done.stdout + done.stderr)
    return list(dict.fromkeys(names)), time.perf_counter() - began


def measure(quick: bool) -> dict[str, Any]:
    """Measure everything."""
    rounds = 3 if quick else 9
    result: dict[str, Any] = {"expected": EXPECTED, "rounds": rounds, "massive": massive(), "models": {}}
    for recipe in RECIPES:
        folder = real_model(recipe)
        if folder is None:
            result["models"][recipe] = "its package is not installed"
            continue
        path, file = folder / "model.onnx", folder / "samples.npz"
        with np.load(file) as stored:
            samples = {name: stored[name] for name in stored.files}
        row: dict[str, Any] = {kind: in_child(kind, path, file, rounds) for kind in ("range", "mark-all")}
        result["models"][recipe] = {**row, **searched(path, samples)}
    return result


def show(result: dict[str, Any]) -> None:
    """Print for people."""
    net = result["massive"]
    print(f"massive-activation net, {net['nodes']} nodes: all fp16 {net['fp16_db']:.1f} dB")
    for name in ("ours", "autocast"):
        row = net[name]
        print(
            f"  {name:<9}"
            + (row if isinstance(row, str) else f"keeps {row['kept']:3} nodes: {row['db']:6.1f} dB, {row['s']:.1f} s")
        )
    for recipe, row in result["models"].items():
        if isinstance(row, str):
            print(f"{recipe}: {row}")
            continue
        print(f"{recipe} ({SAMPLES} samples, {row['range']['batch']} at once)")
        for kind in ("range", "mark-all"):
            found = row[kind]
            print(f"  {kind:<9}{found['ratio']:5.1f} x a plain run, {found['added_mib']:6.0f} MiB over it")
        print(f"  forecast {row['forecast_s']:.1f} s: fp16 {row['fp16_db']:.1f} dB; asked for {row['asked_db']:.1f} dB: "
              f"{row['with_search_s']:.1f} s, {row['probes']} probes of {row['s_per_probe']:.2f} s, "
              f"{row['nodes']} nodes kept, {row['reached_db']:.1f} dB")  # fmt: skip


AUTOCAST_ASKED = True


def main() -> None:
    """Measure and print."""
    global AUTOCAST_ASKED  # noqa: PLW0603
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--quick", action="store_true", help="3 rounds, and ModelOpt only where it is installed already"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--export", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, path, file, rounds = options.child
        print(json.dumps(child(kind, Path(path), Path(file), int(rounds))))
        return
    if options.export:
        export(options.export[0], Path(options.export[1]))
        return
    AUTOCAST_ASKED = not options.quick or (ROOT / ".bench" / "modelopt" / "stamp").exists()
    result = measure(options.quick)
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
