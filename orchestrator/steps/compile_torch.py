"""Target `torch`: weights, the source that builds the network, and how to run it. Nothing is compiled.

The package is proved where it is made: another process builds the network from these files alone, loads the weights and
answers the bundle's golden samples. For a SoC the site must have torch_npu and a device; without them the twin's place is
taken by the plain graph, and the package goes along.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from orchestrator.ascend.atc_process import Ended, private_environment, run_guarded
from orchestrator.ascend.versions import judge_torch
from orchestrator.bundle.build import MODEL_SAFETENSORS
from orchestrator.bundle.golden import GOLDEN_FILE
from orchestrator.core.errors import GateError, InternalError, PlanError
from orchestrator.core.files import private_folder, write_json
from orchestrator.recipe.source_files import source_files
from orchestrator.steps.compile_job import Built, CompileJob, Skipped

BUILD_JSON: Final = "build.json"
PACKAGE: Final = "torch"
NO_TORCH_NPU: Final = "no torch_npu on this site"
_PROBE: Final = (
    "import json, sys, torch, torch_npu\n"
    "n = torch.npu.device_count() if torch.npu.is_available() else 0\n"
    "row = {'torch': torch.__version__, 'torch_npu': torch_npu.__version__, 'devices': n,\n"
    "       'soc': torch.npu.get_device_name(0) if n else ''}\n"
    "open(sys.argv[1], 'w').write(json.dumps(row))\n"
)
_CHECK_TIMEOUT_S: Final = 300.0
_COMPUTE: Final[Mapping[str, Mapping[str, str]]] = {
    "fp16": {"module_dtype": "float16", "autocast": ""},
    "mixed_float16": {"module_dtype": "float32", "autocast": "float16"},
    "mixed_bfloat16": {"module_dtype": "float32", "autocast": "bfloat16"},
    "origin": {"module_dtype": "float32", "autocast": ""},
    "fp32": {"module_dtype": "float32", "autocast": ""},
}


def build(job: CompileJob) -> Built | Skipped:
    """Make the package and prove it.

    Raises:
        PlanError: There is no such precision in torch.
        GateError: The bundle has no weights, or the package does not answer as the bundle says.
    """
    if job.precision not in _COMPUTE:
        raise PlanError(
            f"torch has no precision {job.precision!r}", place=f"targets.{job.target}.precision",
            hint=f"use one of {', '.join(_COMPUTE)}",
        )  # fmt: skip
    found = _probe(job) if job.soc is not None else {}
    missing = _missing(found) if job.soc is not None else ""
    folder = job.out / PACKAGE if missing else job.out
    write_package(job, folder)
    worst = _prove(job, folder)
    version = str(found.get("torch_npu") or _torch_version())
    toolchain = {"name": "torch_npu" if job.soc is not None else "torch", "version": "none" if missing else version}
    facts: dict[str, Any] = {"package": PACKAGE if missing else ".", "golden_sqnr_db": worst}
    if missing:
        return Skipped(missing, toolchain, facts)
    return Built("torch", toolchain, facts={**facts, **found})


def write_package(job: CompileJob, folder: Path) -> None:
    """Write weights, source and `build.json`; every path in it is relative."""
    assert job.bundle is not None
    assert job.recipe_dir is not None
    weights = job.bundle / MODEL_SAFETENSORS
    if not weights.is_file():
        raise GateError(
            "the bundle has no weights, so torch has nothing to run",
            place=f"targets.{job.target}", hint="a target of format torch needs a model that was trained or loaded here",
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, folder / MODEL_SAFETENSORS)
    factory = str(job.model["factory"])
    files = source_files(job.recipe_dir, [factory])
    for name, path in files.items():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    write_json(folder / BUILD_JSON, how_to_build(job, factory, list(files)))


def how_to_build(job: CompileJob, factory: str, files: Sequence[str]) -> dict[str, Any]:
    """Return what a runtime needs to know beside the files.

    On an NPU an operator without a kernel would move to the CPU in silence, and convolutions in float32 would use HF32 (11
    bits of mantissa); both are switched off. Elsewhere torch_npu must not load itself into `import torch`.
    """
    npu = job.soc is not None
    return {
        "schema": 1,
        "factory": factory,
        "source": "source",
        "files": list(files),
        "weights": MODEL_SAFETENSORS,
        "inputs": job.model["inputs"],
        "outputs": job.model["outputs"],
        "device": "npu" if npu else "any",
        "soc": job.soc,
        "precision": job.precision,
        **_COMPUTE[job.precision],
        "allow_hf32": {"conv": False, "matmul": False} if npu else {},
        "jit_compile": False if npu else None,
        "environment": {"TORCH_NPU_FALLBACK_CPU_DISABLE": "1"} if npu else {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
    }


def _missing(found: Mapping[str, Any]) -> str:
    """Return why this site cannot run the package on an NPU; an empty text where it can."""
    if "reason" in found:
        return str(found["reason"])
    pair = judge_torch(str(found["torch"]), str(found["torch_npu"]))
    if pair.level == "refuse":
        return f"{pair.text}: {pair.fix}"
    return "" if found["devices"] else f"torch_npu {found['torch_npu']} sees no NPU"


def _probe(job: CompileJob) -> dict[str, Any]:
    if importlib.util.find_spec("torch_npu") is None:
        return {"reason": NO_TORCH_NPU}
    answer = job.work / "probe.json"
    answer.unlink(missing_ok=True)
    ended = _python(job, ["-c", _PROBE, str(answer)], "probe", {})
    if not answer.is_file():
        lines = ended.error_text.strip().splitlines() or ["it said nothing"]
        return {"reason": f"torch_npu does not start: {lines[-1][:300]}"}
    return dict(json.loads(answer.read_bytes()))


def _prove(job: CompileJob, folder: Path) -> float:
    """Build the network in another process from the package alone; returns the worst SQNR in dB, at most 400."""
    assert job.bundle is not None
    answer = job.work / "torch_check.json"
    answer.unlink(missing_ok=True)
    arguments = [
        "-m",
        "orchestrator.steps.compile_torch_check",
        str(folder),
        str(job.bundle / GOLDEN_FILE),
        str(answer),
    ]
    job.tell(0.0, "torch: building the network from the package alone")
    ended = _python(job, arguments, "check", {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"})
    if not answer.is_file():
        raise InternalError(
            f"the check of the torch package ended with {ended.code}",
            place=str(ended.stderr), hint="its log is kept there", details={"stderr": ended.error_text[-4000:]},
        )  # fmt: skip
    found = json.loads(answer.read_bytes())
    if found["error"]:
        raise GateError(
            f"the torch package does not stand alone: {found['error']}",
            place=f"targets.{job.target}",
            hint="the factory may import only what lies beside the recipe or is installed, and read no other files",
        )
    return float(found["worst_sqnr_db"])


def _python(job: CompileJob, arguments: list[str], name: str, extra: Mapping[str, str]) -> Ended:
    folder = private_folder(job.work / name)
    environment = private_environment(folder, os.environ, extra)
    return run_guarded(
        [sys.executable, *arguments],
        cwd=folder,
        environment=environment,
        logs=folder / "logs",
        timeout_s=_CHECK_TIMEOUT_S,
    )


def _torch_version() -> str:
    from importlib import metadata

    return metadata.version("torch")
