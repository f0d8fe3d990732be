"""What a slot on a real device is, by Ray's variable and npu-smi, and the variables that CANN gives its replicas."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import npu_smi_texts as texts

from orchestrator.ascend.devices import devices_for, has_soc
from orchestrator.cluster.devices import check_devices
from orchestrator.cluster.pool import LocalPool
from orchestrator.core.errors import DeviceError
from orchestrator.serving.agent.slot_device import cann_variables, soc_of_slot

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


@pytest.fixture
def npu_smi(tmp_path: Path) -> Path:
    """Two 310P3, devices 0 and 1."""
    program = tmp_path / "bin" / "npu-smi"
    program.parent.mkdir()
    (tmp_path / "table").write_text(texts.TWO_CHIPS_PER_CARD)
    program.write_text(f"#!/bin/sh\nexec cat {tmp_path}/table\n")
    program.chmod(0o755)
    return program


def path(npu_smi: Path) -> str:
    return f"{npu_smi.parent}:/usr/bin:/bin"


def test_the_slot_is_what_npu_smi_calls_its_device(npu_smi: Path) -> None:
    variables = {VISIBLE: "1", "PATH": path(npu_smi)}
    assert soc_of_slot(("Ascend910B4", "Ascend310P3"), variables) == "Ascend310P3"
    with pytest.raises(DeviceError, match="the pool has Ascend910B4, npu-smi calls device 1 Ascend310P3"):
        soc_of_slot(("Ascend910B4",), variables)
    with pytest.raises(DeviceError, match="calls device 7 nothing"):
        soc_of_slot(("Ascend310P3",), {**variables, VISIBLE: "7"})


def test_without_npu_smi_one_soc_is_believed_and_two_are_not(tmp_path: Path) -> None:
    variables = {VISIBLE: "0", "PATH": str(tmp_path)}
    assert soc_of_slot(("Ascend310P3",), variables) == "Ascend310P3"
    with pytest.raises(DeviceError, match="no npu-smi to ask"):
        soc_of_slot(("Ascend910B4", "Ascend310P3"), variables)


@pytest.mark.parametrize("given", [{}, {VISIBLE: ""}, {VISIBLE: "NoDevFiles"}])
def test_a_slot_without_a_device_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(DeviceError, match="this slot has no NPU"):
        soc_of_slot(("Ascend310P3",), given)


def test_cann_is_sourced_in_a_shell_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "set_env.sh"
    script.write_text("export LD_LIBRARY_PATH=/cann/lib64:$LD_LIBRARY_PATH\nODD=$'a\\nb'; export ODD\n")
    found = cann_variables(str(script), {"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": "/own", VISIBLE: "3"})
    assert (found["LD_LIBRARY_PATH"], found["ODD"], found[VISIBLE]) == ("/cann/lib64:/own", "a\nb", "3")


def test_no_cann_is_said_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no CANN environment") as refused:
        cann_variables(str(tmp_path / "set_env.sh"), {})
    assert "tools.cann_env" in refused.value.hint
    broken = tmp_path / "broken.sh"
    broken.write_text("exit 3\n")
    with pytest.raises(DeviceError, match=r"set_env.sh failed"):
        cann_variables(str(broken), {"PATH": "/usr/bin:/bin"})


def test_what_is_sourced_already_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "acl", None)
    assert cann_variables("", {"ASCEND_TOOLKIT_HOME": "/cann"}) == {"ASCEND_TOOLKIT_HOME": "/cann"}


def test_fractions_and_families() -> None:
    assert [devices_for(slots, part) for slots, part in ((4, 1.0), (4, 0.5), (5, 0.5), (4, 0.3), (1, 0.01))] == [
        4,
        2,
        3,
        2,
        1,
    ]
    assert has_soc("Ascend910B4", {"Ascend910B4"})
    assert not has_soc("Ascend910B4", {"Ascend310P3"})


def test_the_site_is_refused_for_another_soc(tmp_path: Path, npu_smi: Path) -> None:
    devices = [tmp_path / f"davinci{number}" for number in range(2)]
    check_devices({"a": LocalPool(4, False, "Ascend310P3", 0.5)}, devices, str(npu_smi))
    with pytest.raises(DeviceError, match="pool a wants Ascend910B4, npu-smi shows Ascend310P3"):
        check_devices({"a": LocalPool(1, False, "Ascend910B4")}, devices, str(npu_smi))
    with pytest.raises(DeviceError, match=r"pool a needs 3 Ascend310P3 device\(s\)"):
        check_devices({"a": LocalPool(5, False, "Ascend310P3", 0.5)}, devices, str(npu_smi))
