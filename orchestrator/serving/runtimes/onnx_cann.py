"""ONNX through onnxruntime's CANN provider, in the interpreter that holds it. It compiles one graph per shape when it first
runs, so every bucket is warmed, in a private folder that already holds what the compile step compiled.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any, Final

from orchestrator.ascend.atc_install import find_atc
from orchestrator.core.errors import DeviceError, ServingError
from orchestrator.serving.runtimes.api import REHEARSAL, Job, Session
from orchestrator.serving.runtimes.child import Child, ChildSession, Start
from orchestrator.serving.runtimes.headroom import first_device
from orchestrator.serving.runtimes.sizes import sizes_of_variant

_FIX: Final = (
    "install CANN and onnxruntime-cann (NumPy < 2), name its interpreter in `tools.onnxruntime_cann_python`, and let no "
    "node of the graph need the CPU: `orchestrate coverage --toolchain cann-ep` lists them"
)


def load(job: Job) -> Session:
    """Load `model.onnx` in a child process and see that CANN runs it.

    Raises:
        DeviceError: Another device than the variant is for.
        ServingError: No CANN, or a node that CANN does not run: nothing falls back to the CPU.
    """
    variant = job.variant
    if variant is None:
        raise ServingError("runtime onnx-cann serves variants only", hint="compile the bundle for the pool's target")
    if job.device == REHEARSAL or variant.soc != job.device:
        raise DeviceError(
            f"the graph was prepared for {variant.soc} on CANN and cannot serve as {job.device!r}",
            hint="serve the target's rehearsal in a rehearsal pool, or compile for the pool's SoC",
        )
    python = job.tools.get("onnxruntime_cann_python") or sys.executable
    for compiled in sorted((job.folder / "cache").glob("*.om")):
        shutil.copyfile(compiled, job.work / compiled.name)
    options: dict[str, Any] = {**dict(variant.facts.get("provider_options") or {}), "device_id": "0"}
    install = find_atc(job.tools.get("atc"))
    environment = dict(os.environ) if install is None else install.environment(os.environ)
    model = str((job.folder / "model.onnx").absolute())
    request = {"model": model, "options": options}
    with first_device(job.work):
        child = Child(Start(python, (), "onnx_cann.py", job.work, environment, request, "onnxruntime-cann", _FIX))
    sizes, soc = sizes_of_variant(variant), str(child.facts["soc"])
    names = [row[0] for row in child.facts["inputs"]], child.facts["outputs"]
    wanted = [spec.name for spec in sizes.inputs], [spec.name for spec in sizes.outputs]
    if soc != job.device or names != wanted:
        child.close()
        raise DeviceError(
            f"this slot is {job.device} and serves {wanted}, the device calls itself {soc or 'nothing'} and runs {names}",
            hint="correct the pool's `soc`, or compile the bundle again",
        )
    return ChildSession(child, sizes, job.device)
