"""MindIR through MindSpore Lite, which lives in another interpreter: the general form on a CPU, the Ascend form on an NPU."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Final

from orchestrator.ascend.atc_install import find_atc
from orchestrator.ascend.mindspore_lite_options import PRECISIONS
from orchestrator.core.errors import DeviceError, ServingError
from orchestrator.serving.runtimes.api import REHEARSAL, Job, Session
from orchestrator.serving.runtimes.child import Child, ChildSession, Start
from orchestrator.serving.runtimes.headroom import first_device
from orchestrator.serving.runtimes.sizes import sizes_of_variant

_FILE: Final = "model.mindir"
_FIX: Final = (
    "`tools.mindspore_lite_python` names an interpreter with mindspore-lite (2.0.0 wants CPython 3.7 and numpy)"
)


def load(job: Job) -> Session:
    """Load `model.mindir` in a child process.

    Raises:
        DeviceError: No MindSpore Lite, or another device than the file is for.
        ServingError: The file does not load.
    """
    variant = job.variant
    if variant is None:
        raise ServingError("runtime mindir serves variants only", hint="compile the bundle for the pool's target")
    general = dict(variant.facts.get("mindir") or {}).get("form") == "general"
    if (job.device == REHEARSAL) != general or (not general and variant.soc != job.device):
        made = "a CPU" if general else str(variant.soc)
        raise DeviceError(
            f"the MindIR was made for {made} and cannot serve as {job.device!r}",
            hint="serve the target's rehearsal in a rehearsal pool, or compile for the pool's SoC",
        )
    if not general and variant.precision not in PRECISIONS:
        raise ServingError(f"MindSpore Lite has no precision {variant.precision!r}", hint="compile the bundle again")
    python = job.tools.get("mindspore_lite_python")
    if not python:
        raise DeviceError("no MindSpore Lite on this site: `tools.mindspore_lite_python` is not set", hint=_FIX)
    environment = dict(os.environ)
    request: dict[str, Any] = {"model": str((job.folder / _FILE).absolute()), "target": "cpu"}
    if not general:
        install = find_atc(job.tools.get("atc"))
        environment = install.environment(environment) if install is not None else environment
        request |= {
            "target": "ascend",
            "precision_mode": PRECISIONS[variant.precision],
            "python_path": [item for item in environment.get("PYTHONPATH", "").split(":") if item],
        }
    start = Start(python, ("-I",), "mindir.py", job.work, environment, request, "MindSpore Lite", _FIX)
    with contextlib.nullcontext() if general else first_device(job.work):
        child = Child(start)
    soc = str(child.facts["soc"])
    if not general and soc != job.device:
        child.close()
        raise DeviceError(f"this slot is {job.device}, the device calls itself {soc or 'nothing'}")
    return ChildSession(child, sizes_of_variant(variant), job.device)
