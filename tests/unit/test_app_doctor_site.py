"""`doctor --site` on machines made of files and fake programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from support import npu_smi_texts as texts
from support.ascend_tools import needs_onnxruntime_cann, onnxruntime_cann_python

from orchestrator.app.doctor_finding import Finding
from orchestrator.app.doctor_site import Machine, examine_site
from orchestrator.environment import Environment

NOTHING: Mapping[str, str] = {}


def environment(**tools: str) -> Environment:
    pools = {
        "line": {"site": "here", "soc": "Ascend310P3", "slots": 2},
        "dry": {"site": "here", "soc": "Ascend910B4", "rehearsal": True},
    }
    return Environment.model_validate(
        {"environment": 1, "sites": {"here": {"kind": "local"}}, "pools": pools, "tools": tools}
    )


def machine(
    root: Path, packages: Mapping[str, str] = NOTHING, *, cuda: str | None = None, access: bool = True, **variables: str
) -> Machine:
    return Machine(
        root=root,
        variables={"PATH": str(root / "bin"), **variables},
        access=lambda *_: access,
        package=packages.get,
        cuda=lambda: cuda,
        python="3.11",
        npu_smi_timeout_s=10,
    )


def full(root: Path, *, cann: str = "8.1.RC1", driver: str = "25.0.rc1", table: str = texts.TWO_CHIPS_PER_CARD) -> Path:
    """Make a machine with two 310P3, driver, firmware and CANN."""
    ascend = root / "usr/local/Ascend"
    for folder in ("driver", "firmware", "cann/compiler", "cann/bin", "cann/x86_64-linux"):
        (ascend / folder).mkdir(parents=True)
    (ascend / "driver/version.info").write_text(
        f"Version=7.7.0.1.238\ncompatible_version_fw=[7.0.0,7.7.99]\npackage_version={driver}\n"
    )
    (ascend / "firmware/version.info").write_text("Version=7.7.0.1.238\n")
    (ascend / "cann/x86_64-linux/ascend_toolkit_install.info").write_text(f"version={cann}\n")
    (ascend / "cann/compiler/version.info").write_text("Version=7.7.0.1.238\n")
    (ascend / "cann/bin/atc").write_text("#!/bin/sh\n")
    (ascend / "cann/bin/atc").chmod(0o755)
    (root / "dev").mkdir()
    for name in ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc"):
        (root / "dev" / name).touch()
    texts.fake(root / "bin", table)
    return ascend / "cann"


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_a_machine_without_anything_is_only_absent(tmp_path: Path) -> None:
    found = examine_site(environment(), machine(tmp_path))
    assert {finding.state for finding in found} == {"absent"}


def test_a_machine_that_is_fine(tmp_path: Path) -> None:
    home = full(tmp_path)
    packages = {"torch": "2.5.1+cpu", "torch_npu": "2.5.1", "mindspore-lite": "2.7.0"}
    found = by_name(
        examine_site(
            environment(), machine(tmp_path, packages, ASCEND_TOOLKIT_HOME=str(home), ASCEND_RT_VISIBLE_DEVICES="0,1")
        )
    )
    states = {name: finding.state for name, finding in found.items()}
    assert states.pop("CANN provider") == "absent"
    assert set(states.values()) == {"ok"}, found
    assert "compiler 7.7.0.1.238" in found["CANN"].found
    assert "8.1.RC1" in found["CANN"].found
    assert {"driver", "firmware", "atc", "npu-smi", "device nodes", "MindSpore Lite", "torch_npu and CANN"} <= set(
        found
    )
    assert found["ASCEND_RT_VISIBLE_DEVICES"].found == "'0,1': 0 as 0, 1 as 1"


@pytest.mark.parametrize(
    ("packages", "cuda", "name", "state", "text"),
    [
        ({"torch": "2.13.0", "torch_npu": "2.5.1"}, None, "torch_npu", "bad", "needs torch 2.5.1"),
        ({"torch_npu": "2.5.1"}, None, "torch_npu", "bad", "without torch"),
        ({"torch": "2.12.0", "torch_npu": "2.12.0"}, None, "torch_npu and CANN", "warn", "built for CANN 9.1.0"),
        ({"torch": "2.5.1", "torch_npu": "2.5.1"}, "12.4", "torch and CUDA", "warn", "CUDA 12.4"),
        ({"torch": "1.8.1", "torch_npu": "1.8.1"}, None, "torch_npu and Python", "ok", "no public table"),
    ],
)
def test_torch(tmp_path: Path, packages: dict[str, str], cuda: str | None, name: str, state: str, text: str) -> None:
    full(tmp_path)
    found = by_name(examine_site(environment(), machine(tmp_path, packages, cuda=cuda)))[name]
    assert (found.state, text in found.found) == (state, True), found


def test_torch_loads_a_plugin_that_cannot_load(tmp_path: Path) -> None:
    packages = {"torch": "2.5.1", "torch_npu": "2.5.1"}
    found = by_name(examine_site(environment(), machine(tmp_path, packages)))["torch autoload"]
    assert (found.state, found.fix) == ("bad", "export TORCH_DEVICE_BACKEND_AUTOLOAD=0")
    off = machine(tmp_path, packages, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert by_name(examine_site(environment(), off))["torch autoload"].state == "ok"


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"ASCEND_RT_VISIBLE_DEVICES": "1,0"}, "dropped in silence: '0'"),
        ({"ASCEND_RT_VISIBLE_DEVICES": "0, 1"}, "has a space"),
        ({"ASCEND_RT_VISIBLE_DEVICES": "4"}, "207004"),
        ({"ASCEND_RT_VISIBLE_DEVICES": "4", "ASCEND_VISIBLE_DEVICES": "4,5"}, "filtered already"),
    ],
)
def test_visibility(tmp_path: Path, variables: dict[str, str], text: str) -> None:
    full(tmp_path)
    found = by_name(examine_site(environment(), machine(tmp_path, **variables)))["ASCEND_RT_VISIBLE_DEVICES"]
    assert (found.state, text in found.found) == ("bad", True), found


def test_devices_that_are_not_given_to_the_container(tmp_path: Path) -> None:
    full(tmp_path)
    assert "HwHiAiUser" in by_name(examine_site(environment(), machine(tmp_path, access=False)))["device nodes"].fix
    (tmp_path / "dev/hisi_hdc").unlink()
    found = by_name(examine_site(environment(), machine(tmp_path)))["device nodes"]
    assert (found.state, found.fix) == ("bad", "give the container --device /dev/hisi_hdc")
    (tmp_path / "bin/npu-smi").unlink()
    assert by_name(examine_site(environment(), machine(tmp_path)))["npu-smi"].state == "warn"


@pytest.mark.parametrize(
    ("table", "name", "state", "text"),
    [
        ("dcmi module initialize failed. ret is -8005", "npu-smi", "bad", "-8005"),
        (texts.TWO_CHIPS_PER_CARD.replace("| OK    ", "| Alarm "), "chip health", "bad", "Alarm"),
        (texts.ONE_CHIP_PER_NPU, "pool line", "bad", "npu-smi shows Ascend910A"),
        ("\n".join(texts.TWO_CHIPS_PER_CARD.splitlines()[:9]), "pool line", "bad", "wants 2 slots"),
    ],
)
def test_npu_smi(tmp_path: Path, table: str, name: str, state: str, text: str) -> None:
    full(tmp_path, table=table)
    found = by_name(examine_site(environment(), machine(tmp_path)))[name]
    assert (found.state, text in found.found) == (state, True), found


def test_versions_that_do_not_fit(tmp_path: Path) -> None:
    full(tmp_path, cann="8.3.RC1", driver="24.1.0")
    found = by_name(examine_site(environment(), machine(tmp_path)))
    assert (found["driver"].state, found["driver"].fix) == ("warn", "install driver and firmware 25.3.RC1")
    assert "set_env.sh" in found["CANN environment"].fix
    gone = by_name(examine_site(environment(), machine(tmp_path / "empty", ASCEND_HOME_PATH="/no/such/cann")))
    assert gone["CANN"].state == "bad"


def test_a_configured_atc_that_is_not_there(tmp_path: Path) -> None:
    found = by_name(examine_site(environment(atc="/no/such/atc"), machine(tmp_path)))["atc"]
    assert found.state == "bad"


FAKE_ORT = """
import sys
class SessionOptions: pass
class InferenceSession:
    def __init__(self, graph, options, providers):
        assert b"Identity" in graph
        print("noise on stdout")
    def get_providers(self): return {active}
def get_available_providers(): return {available}
__version__ = "1.24.4"
"""
CANN, CPU = "CANNExecutionProvider", "CPUExecutionProvider"


def interpreter(folder: Path, module: str) -> Path:
    """Write a `python` whose onnxruntime is this text."""
    folder.mkdir()
    (folder / "onnxruntime.py").write_text(module)
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("module", "state", "text"),
    [
        (FAKE_ORT.format(active=[CANN, CPU], available=[CANN, CPU]), "ok", "no source states"),
        (FAKE_ORT.format(active=[CPU], available=[CANN, CPU]), "bad", "falls back to the CPU"),
        (FAKE_ORT.format(active=[CPU], available=[CPU]), "bad", "has no CANNExecutionProvider"),
        ("raise ImportError('import numpy failed')", "bad", "import numpy failed"),
        ("import os; os.abort()", "bad", "exit code"),
    ],
)
def test_the_cann_provider_is_asked_for_real(tmp_path: Path, module: str, state: str, text: str) -> None:
    full(tmp_path)
    python = interpreter(tmp_path / "ort", module)
    found = by_name(examine_site(environment(onnxruntime_cann_python=str(python)), machine(tmp_path)))["CANN provider"]
    assert (found.state, text in found.found) == (state, True), found


def test_a_fallback_where_no_device_is_expected_is_a_warning(tmp_path: Path) -> None:
    python = interpreter(tmp_path / "ort", FAKE_ORT.format(active=[CPU], available=[CANN, CPU]))
    found = by_name(examine_site(environment(onnxruntime_cann_python=str(python)), machine(tmp_path)))["CANN provider"]
    assert (found.state, found.fix) == ("warn", "install CANN")
    gone = environment(onnxruntime_cann_python=str(tmp_path / "absent"))
    assert by_name(examine_site(gone, machine(tmp_path)))["CANN provider"].state == "bad"


@needs_onnxruntime_cann
def test_the_real_wheel_falls_back_to_the_cpu_without_cann(tmp_path: Path) -> None:
    tools = environment(onnxruntime_cann_python=str(onnxruntime_cann_python()))
    found = by_name(examine_site(tools, machine(tmp_path)))["CANN provider"]
    assert found.state == "warn"
    assert "falls back to the CPU" in found.found


def test_the_verb(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator", "doctor", "--site", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)}, timeout=60
    )
    answer = json.loads(done.stdout)
    assert done.returncode == (0 if answer["healthy"] else 1)
    assert {"driver", "CANN", "atc", "npu-smi", "device nodes", "torch_npu", "CANN provider"} <= {
        c["name"] for c in answer["checks"]
    }
    assert not (tmp_path / ".orchestrate").exists(), "looking makes nothing"
