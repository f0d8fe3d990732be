"""`doctor`: what is on this machine, and what must be mended before a recipe can run."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Final

from orchestrator.app.doctor_finding import Finding, State
from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.units import format_bytes

_NEEDED: Final = {
    "ray": ("train", (2, 60)),
    "torch": ("train", (2, 10)),
    "onnx": ("train", (1, 23)),
    "onnxscript": ("train", (0, 7)),
    "onnxruntime": ("serve", (1, 20)),
    "mlflow": ("control", (3, 17)),
    "sqlalchemy": ("control", (2, 0)),
    "safetensors": ("train", (0, 5)),
    "uvloop": ("serve", (0, 21)),
    "httptools": ("serve", (0, 6)),
    "orjson": ("serve", (3, 10)),
}
_LOW_DISK_BYTES: Final = 2 << 30


def examine(workplace: Workplace) -> list[Finding]:
    """Look at everything; starts nothing."""
    return [
        _python(),
        *(_package(name, extra, least) for name, (extra, least) in _NEEDED.items()),
        _state(workplace.state),
        _ledger(workplace),
        _site(workplace),
        _ray_address(),
        _tracking(workplace),
        _nvidia(),
        _ascend(),
        _torch_npu(),
        _cann_provider(),
    ]


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _package(name: str, extra: str, least: tuple[int, int]) -> Finding:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "bad", "not installed", f"pip install 'orchestrator[{extra}]' -c constraints.txt")
    numbers = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in version.split(".")[:2])
    if numbers >= least:
        return Finding(name, "ok", version)
    wanted = ".".join(map(str, least))
    return Finding(name, "bad", version, f"{name} {wanted} or newer is needed: pip install -c constraints.txt {name}")


def _state(state: Path) -> Finding:
    folder = state if state.exists() else state.parent
    free = shutil.disk_usage(folder if folder.exists() else Path.cwd()).free
    found = f"{state}, {format_bytes(free)} free"
    if folder.exists() and not os.access(folder, os.W_OK):
        return Finding("state", "bad", found, f"make {folder} writable, or set `state` elsewhere")
    if free < _LOW_DISK_BYTES:
        return Finding("state", "warn", found, "free some disk: `orchestrate gc --remove`")
    return Finding("state", "ok", found)


def _ledger(workplace: Workplace) -> Finding:
    if workplace.environment.ledger.url is None and not (workplace.state / "ledger.db").exists():
        return Finding("ledger", "ok", "none yet; the first run makes it")
    try:
        with workplace.open_ledger() as ledger:
            count = ledger.audit.verify().count
    except OrchestratorError as error:
        return Finding("ledger", "bad", error.message, error.hint)
    return Finding("ledger", "ok", f"audit chain of {count} records is whole")


def _site(workplace: Workplace) -> Finding:
    from orchestrator.cluster.local import status

    found = status(workplace.site())
    state: State = "warn" if found.state == "degraded" else "ok"
    return Finding("site", state, f"{found.name} is {found.state}", "orchestrate up" if state == "warn" else "")


def _ray_address() -> Finding:
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        return Finding("RAY_ADDRESS", "ok", "not set")
    return Finding("RAY_ADDRESS", "warn", address, "it is ignored here; other Ray programs would follow it")


def _tracking(workplace: Workplace) -> Finding:
    uri = workplace.tracking_uri
    if not uri.startswith("http"):
        return Finding("tracking", "ok", "embedded MLflow (SQLite)")
    import httpx

    try:
        answer = httpx.get(f"{uri.rstrip('/')}/health", timeout=3.0)
    except httpx.HTTPError as error:
        return Finding("tracking", "warn", f"{uri}: {error}", "runs go on without it; the projection catches up")
    state: State = "ok" if answer.status_code == 200 else "warn"
    return Finding("tracking", state, f"{uri}: HTTP {answer.status_code}")


def _nvidia() -> Finding:
    devices = sorted(Path("/proc/driver/nvidia/gpus").glob("*")) if Path("/proc/driver/nvidia/gpus").is_dir() else []
    if devices:
        return Finding("NVIDIA GPU", "ok", f"{len(devices)} visible")
    return Finding("NVIDIA GPU", "absent", "none; training needs `allow_cpu: true` on the site")


def _ascend() -> Finding:
    devices = sorted(Path("/dev").glob("davinci[0-9]*"))
    if devices:
        return Finding("Ascend NPU", "ok", f"{len(devices)} device nodes")
    return Finding("Ascend NPU", "absent", "none; pools can only be rehearsals (`rehearsal: true`)")


def _torch_npu() -> Finding:
    if util.find_spec("torch_npu") is None:
        return Finding("torch_npu", "absent", "not installed")
    if Path("/usr/local/Ascend").is_dir() or os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        return Finding("torch_npu", "ok", metadata.version("torch_npu"))
    return Finding(
        "torch_npu",
        "warn",
        "installed without CANN: it breaks `import torch`",
        "export TORCH_DEVICE_BACKEND_AUTOLOAD=0",
    )


def _cann_provider() -> Finding:
    try:
        version = metadata.version("onnxruntime-cann")
    except metadata.PackageNotFoundError:
        return Finding("onnxruntime-cann", "absent", "not installed here")
    if Path("/usr/local/Ascend").is_dir():
        return Finding("onnxruntime-cann", "ok", version)
    return Finding(
        "onnxruntime-cann", "warn", f"{version} without CANN: it would fall back to the CPU in silence", "install CANN"
    )
