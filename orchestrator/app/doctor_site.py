"""`doctor --site`: driver, firmware, CANN, tools and devices of a machine with Ascend chips, and how their versions fit."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Final

from orchestrator.app.cann_provider import PROVIDER, Probe, probe
from orchestrator.app.doctor_finding import Finding, State
from orchestrator.ascend import versions
from orchestrator.ascend.atc_install import find_atc
from orchestrator.ascend.devices import (
    Nodes,
    device_nodes,
    devices_for,
    has_soc,
    runtime_selection_problem,
    visible_devices,
)
from orchestrator.ascend.npu_smi import NpuSmi, query
from orchestrator.ascend.versions import Cann, Judgement, find_cann, installed_part
from orchestrator.core.errors import DeviceError, OrchestratorError
from orchestrator.environment import Environment

_STATES: Final[Mapping[str, State]] = {"ok": "ok", "unknown": "ok", "warn": "warn", "refuse": "bad"}
_CUDA: Final = re.compile(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", re.MULTILINE)
_AUTOLOAD: Final = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def _package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch_cuda() -> str | None:
    """Return the CUDA version that torch is built for, without importing it: with a broken torch_npu it would not import."""
    found = util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    try:
        cuda = _CUDA.search(Path(found.origin).with_name("version.py").read_text(encoding="utf-8"))
    except OSError:
        return None
    return cuda[1] if cuda else None


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as the checks see it; tests give another.

    Attributes:
        root: What stands for `/`.
        variables: Environment variables.
        access: `os.access`.
        package: Version of an installed package of this interpreter, None where there is none.
        cuda: The CUDA version that torch is built for.
    """

    root: Path = Path("/")
    variables: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    access: Callable[[Path, int], bool] = os.access
    package: Callable[[str], str | None] = _package
    cuda: Callable[[], str | None] = _torch_cuda
    python: str = ".".join(platform.python_version_tuple()[:2])
    npu_smi_timeout_s: float = 30.0

    def program(self, name: str) -> str | None:
        """Return the path of a program."""
        return shutil.which(name, path=self.variables.get("PATH", ""))


def examine_site(environment: Environment, machine: Machine | None = None) -> list[Finding]:
    """Look at everything that serving on Ascend needs; starts nothing but `npu-smi info` and the configured interpreters."""
    machine = machine or Machine()
    cann, nodes = find_cann(machine.root, machine.variables), device_nodes(machine.root, access=machine.access)
    return [
        *_driver(machine, cann, nodes),
        *_cann(machine, cann),
        _atc(environment, machine),
        *_npu_smi(environment, machine, nodes),
        _nodes(machine, nodes),
        *_visibility(machine, nodes),
        *_torch(machine, cann),
        _provider(environment, machine, cann, nodes),
    ]


def _judged(name: str, judgement: Judgement) -> Finding:
    return Finding(name, _STATES[judgement.level], judgement.text, judgement.fix)


def _driver(machine: Machine, cann: Cann | None, nodes: Nodes) -> Iterator[Finding]:
    driver, firmware = installed_part(machine.root, "driver"), installed_part(machine.root, "firmware")
    version = driver.get("package_version") or driver.get("Version", "")
    if not version:
        if nodes.chips:
            yield Finding(
                "driver",
                "warn",
                f"{len(nodes.chips)} device nodes, but no driver/version.info",
                "in a container, mount the driver's lib64 folder and version.info",
            )
        else:
            yield Finding("driver", "absent", "no Ascend driver; only rehearsals can run here")
        return
    if cann is not None and cann.version:
        yield _judged("driver", versions.judge_driver(cann.version, version))
    else:
        yield Finding("driver", "ok", version)
    found = firmware.get("Version", "") or firmware.get("package_version", "")
    if found:
        yield _judged("firmware", versions.judge_firmware(driver.get("compatible_version_fw", ""), found))


def _cann(machine: Machine, cann: Cann | None) -> Iterator[Finding]:
    if cann is None:
        wanted = [name for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME") if machine.variables.get(name)]
        if wanted:
            place = machine.variables[wanted[0]]
            yield Finding(
                "CANN", "bad", f"{wanted[0]} is {place}, which is no folder", f"unset {wanted[0]}, or correct it"
            )
        else:
            yield Finding("CANN", "absent", "no CANN; neither ATC nor the CANN provider can work here")
        return
    if not cann.version:
        yield Finding("CANN", "warn", f"{cann.home}: no file states its version", "install the toolkit package again")
    else:
        parts = ", ".join(
            f"{name} {cann.components[name]}" for name in ("compiler", "runtime") if name in cann.components
        )
        yield Finding("CANN", "ok", f"{cann.version} at {cann.home}{f' ({parts})' if parts else ''}")
    if not any(machine.variables.get(name) for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_OPP_PATH")):
        yield Finding(
            "CANN environment", "warn", "its variables are not set in this shell", f"source {cann.home}/set_env.sh"
        )
    compiler = cann.components.get("compiler")
    if compiler and machine.package("mindspore-lite"):
        yield _judged("MindSpore Lite", versions.judge_mindspore_lite(compiler))


def _atc(environment: Environment, machine: Machine) -> Finding:
    try:
        found = find_atc(environment.tools.atc, machine.variables)
    except OrchestratorError as error:
        return Finding("atc", "bad", error.message, error.hint)
    if found is None:
        return Finding("atc", "absent", "no ATC; `om` targets are rehearsed with the twin")
    return Finding("atc", "ok", f"{found.program}, version {found.version}")


def _npu_smi(environment: Environment, machine: Machine, nodes: Nodes) -> Iterator[Finding]:
    program = machine.program("npu-smi")
    if program is None:
        if nodes.chips:
            yield Finding(
                "npu-smi", "warn", "not on PATH", "in a container, mount /usr/local/bin/npu-smi and /usr/local/dcmi"
            )
        else:
            yield Finding("npu-smi", "absent", "not on PATH")
        return
    try:
        table = query(program, timeout_s=machine.npu_smi_timeout_s)
    except DeviceError as error:
        yield Finding("npu-smi", "bad", error.message, error.hint)
        return
    names = ", ".join(sorted({chip.name for chip in table.chips}))
    yield Finding("npu-smi", "ok", f"{len(table.chips)} chips ({names}), driver {table.driver}")
    for chip in table.chips:
        if chip.health != "ok":
            state: State = "bad" if chip.health == "bad" else "warn"
            found = f"chip {chip.logical} (NPU {chip.npu}, {chip.bus_id}) says {chip.health_word or 'nothing'}"
            yield Finding("chip health", state, found, f"npu-smi info -t health -i {chip.npu}")
    yield from _pools(environment, table)


def _pools(environment: Environment, table: NpuSmi) -> Iterator[Finding]:
    """Compare the pools that want real devices with the chips; A3 and older tables name only a family."""
    names = {chip.soc_name for chip in table.chips}
    for name, pool in environment.pools.items():
        if pool.rehearsal:
            continue
        absent = [soc for soc in pool.socs if not has_soc(soc, names)]
        if absent:
            found = f"wants {', '.join(absent)}, npu-smi shows {', '.join(sorted(names))}"
            yield Finding(f"pool {name}", "bad", found, "set the pool's `soc` to what the machine has")
        elif devices_for(pool.all_slots, pool.fraction) > len(table.chips):
            found = f"wants {pool.all_slots} slots, there are {len(table.chips)} chips"
            yield Finding(f"pool {name}", "bad", found, "lower `slots`")


def _nodes(machine: Machine, nodes: Nodes) -> Finding:
    if not nodes.chips:
        return Finding("device nodes", "absent", f"no davinci<N> in {machine.root / 'dev'}")
    found = f"{len(nodes.chips)} chips: {', '.join(f'davinci{number}' for number in nodes.chips)}"
    if nodes.missing:
        fix = f"give the container {', '.join(f'--device /dev/{name}' for name in nodes.missing)}"
        return Finding("device nodes", "bad", f"{found}; missing: {', '.join(nodes.missing)}", fix)
    if nodes.closed:
        fix = "add this user to the group HwHiAiUser"
        return Finding("device nodes", "bad", f"{found}; not readable and writable: {', '.join(nodes.closed)}", fix)
    return Finding("device nodes", "ok", found)


def _visibility(machine: Machine, nodes: Nodes) -> Iterator[Finding]:
    outer, inner = (machine.variables.get(name) for name in ("ASCEND_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"))
    if outer is not None:
        problem = runtime_selection_problem(outer)
        found = f"{outer!r}{f': {problem}' if problem else ', read by the container runtime at start'}"
        fix = "write `0,2`, `0-2` or `void`" if problem else ""
        yield Finding("ASCEND_VISIBLE_DEVICES", "warn" if problem else "ok", found, fix)
    if inner is None:
        return
    read = visible_devices(inner, len(nodes.chips) if nodes.chips else None)
    chosen = ", ".join(f"{device} as {position}" for position, device in enumerate(read.devices)) or "no device"
    if read.problem:
        both = "; the container was filtered already, so numbers start from 0 again" if outer is not None else ""
        found = f"{inner!r}: {read.problem}{both}. Used: {chosen}; dropped in silence: {read.ignored!r}"
        fix = "unset it inside the container" if both else "write ascending numbers with commas and no spaces, e.g. 0,2"
        yield Finding("ASCEND_RT_VISIBLE_DEVICES", "bad", found, fix)
    else:
        yield Finding("ASCEND_RT_VISIBLE_DEVICES", "ok", f"{inner!r}: {chosen}")


def _torch(machine: Machine, cann: Cann | None) -> Iterator[Finding]:
    torch, plugin = machine.package("torch"), machine.package("torch_npu") or machine.package("torch-npu")
    if plugin is None:
        yield Finding(
            "torch_npu", "absent", "not installed; `torch` targets cannot run on an NPU from this interpreter"
        )
        return
    if torch is None:
        yield Finding(
            "torch_npu", "bad", f"{plugin} without torch", f"pip install torch=={versions.base_version(plugin)}"
        )
        return
    yield _judged("torch_npu", versions.judge_torch(torch, plugin))
    yield _judged("torch_npu and Python", versions.judge_torch_python(plugin, machine.python))
    if cann is not None and cann.version:
        yield _judged("torch_npu and CANN", versions.judge_torch_cann(plugin, cann.version))
    cuda = machine.cuda()
    if cuda is not None:
        found = f"torch is built for CUDA {cuda} and shares an environment with torch_npu"
        yield Finding(
            "torch and CUDA", "warn", found, "keep them in environments of their own; take the CPU build of torch"
        )
    if machine.variables.get(_AUTOLOAD) == "0":
        yield Finding("torch autoload", "ok", f"{_AUTOLOAD}=0: programs import torch_npu themselves")
    elif cann is None:
        yield Finding(
            "torch autoload",
            "bad",
            "torch loads torch_npu by itself, which fails without CANN: `import torch` breaks",
            f"export {_AUTOLOAD}=0",
        )


def _provider(environment: Environment, machine: Machine, cann: Cann | None, nodes: Nodes) -> Finding:
    python = environment.tools.onnxruntime_cann_python
    if python is None:
        return Finding("CANN provider", "absent", "tools.onnxruntime_cann_python is not set")
    path = Path(python).expanduser()
    if not os.access(path, os.X_OK):
        return Finding("CANN provider", "bad", f"{path} is no program here", "correct tools.onnxruntime_cann_python")
    found = probe(path, variables=machine.variables)
    if not found.version:
        fix = "install onnxruntime-cann with `numpy<2` in that interpreter"
        return Finding("CANN provider", "bad", f"{path}: {found.error or 'onnxruntime cannot be imported'}", fix)
    if PROVIDER not in found.available:
        what = f"onnxruntime {found.version} at {path} has no {PROVIDER}"
        return Finding("CANN provider", "bad", what, "install onnxruntime-cann, and no other onnxruntime, there")
    return _judge_provider(found, cann, nodes)


def _judge_provider(found: Probe, cann: Cann | None, nodes: Nodes) -> Finding:
    if not found.works:
        state: State = "bad" if nodes.chips else "warn"
        reason = f" ({found.error})" if found.error else ""
        text = f"onnxruntime-cann {found.version} falls back to the CPU{reason}: no session has {PROVIDER}"
        fix = "put CANN's lib64 into LD_LIBRARY_PATH (source set_env.sh)" if cann is not None else "install CANN"
        return Finding("CANN provider", state, text, fix)
    if cann is not None and cann.version:
        return _judged("CANN provider", versions.judge_onnxruntime(found.version, cann.version))
    return Finding("CANN provider", "ok", f"onnxruntime-cann {found.version}: a session runs on {PROVIDER}")
