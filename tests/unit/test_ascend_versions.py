"""Which versions go together, where versions are read from, and what the visibility variables really choose."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from orchestrator.ascend import versions
from orchestrator.ascend.devices import device_nodes, runtime_selection_problem, visible_devices
from orchestrator.ascend.versions import find_cann, installed_part, version_key


def test_versions_are_ordered_as_the_vendor_means_them() -> None:
    ordered = [
        "8.0.RC1",
        "8.0.RC2.alpha003",
        "8.0.RC2",
        "8.0.RC3",
        "8.0.0",
        "8.1.RC1",
        "8.3.RC1",
        "8.5.0",
        "8.5.1",
        "9.2.0-beta.2",
        "9.2.0",
    ]
    mixed = ordered.copy()
    random.Random(3).shuffle(mixed)
    assert sorted(mixed, key=version_key) == ordered
    assert version_key("24.1.rc3") == version_key("24.1.RC3")
    assert version_key("8.2") == version_key("8.2.0")
    assert version_key("2.9.0") < version_key("2.9.0.post2") < version_key("2.10.0")
    assert version_key("2.9.0.post1+git4c901a4") == version_key("2.9.0.post1")


@pytest.mark.parametrize(
    ("torch", "torch_npu", "level"),
    [
        ("2.9.0", "2.9.0.post6", "ok"),
        ("2.9.0+cpu", "2.9.0", "ok"),
        ("2.9.1", "2.9.0", "refuse"),
        ("2.13.0", "2.13.0", "ok"),  # newer than the table: the rule decides
        ("2.12.0", "2.13.0", "refuse"),
        ("1.8.1", "1.5.0.post3", "ok"),  # the table's own exception
    ],
)
def test_torch_pairs(torch: str, torch_npu: str, level: str) -> None:
    found = versions.judge_torch(torch, torch_npu)
    assert found.level == level
    assert (level == "refuse") == ("pip install" in found.fix)


@pytest.mark.parametrize(
    ("judge", "one", "other", "level"),
    [
        (versions.judge_torch_cann, "2.8.0", "8.3.RC1", "ok"),
        (versions.judge_torch_cann, "2.8.0", "8.3.rc1", "ok"),
        (versions.judge_torch_cann, "2.8.0", "8.1.RC1", "ok"),  # release 7.2.0 is stated to work with it
        (versions.judge_torch_cann, "2.8.0", "9.1.0", "warn"),
        (versions.judge_torch_cann, "2.12.0", "8.1.RC1", "warn"),
        (versions.judge_torch_cann, "2.13.0", "9.1.0", "unknown"),
        (versions.judge_driver, "8.1.RC1", "25.0.rc1", "ok"),
        (versions.judge_driver, "8.1.RC1", "25.2.0", "ok"),
        (versions.judge_driver, "8.3.RC1", "25.2.0", "warn"),
        (versions.judge_driver, "9.1.0", "26.0.0", "unknown"),
        (versions.judge_torch_python, "2.6.0", "3.11", "ok"),
        (versions.judge_torch_python, "2.6.0", "3.12", "warn"),
        (versions.judge_torch_python, "2.13.0", "3.12", "unknown"),
        (versions.judge_onnxruntime, "1.21.0", "8.2.RC1", "ok"),
        (versions.judge_onnxruntime, "1.22.1", "8.3.RC1", "warn"),
        (versions.judge_onnxruntime, "1.15.1", "6.0.0", "ok"),
        (versions.judge_onnxruntime, "1.24.4", "8.3.RC1", "unknown"),
        (versions.judge_firmware, "[7.0.0,7.5.99]", "7.5.0.1.129", "ok"),
        (versions.judge_firmware, "[7.0.0,7.5.99]", "7.7.0.1.238", "warn"),
        (versions.judge_firmware, "", "7.7.0.1.238", "unknown"),
    ],
)
def test_judgements(judge, one: str, other: str, level: str) -> None:
    found = judge(one, other)
    assert found.level == level, found
    assert (level == "warn") == bool(found.fix)


def test_mindspore_lite_looks_at_the_compiler() -> None:
    assert versions.judge_mindspore_lite("7.7.0.1.238").level == "ok"
    assert versions.judge_mindspore_lite("7.70.0").level == "warn"
    assert versions.judge_mindspore_lite("8.1.RC1").level == "warn"


def toolkit(home: Path, *, marketing: str = "8.1.RC1", component: str = "7.7.0.1.238") -> Path:
    (home / "compiler").mkdir(parents=True)
    (home / "x86_64-linux").mkdir()
    lines = [
        "# version: 1.0",
        f"runtime_running_version=[{component}:{marketing}]",
        f"toolkit_running_version=[{component}:{marketing}]",
    ]
    lines += [f"toolkit_installed_version=[7.0.0.5.242:7.0.RC1][{component}:{marketing}]"]
    (home / "version.cfg").write_text("\n".join(lines) + "\n")
    (home / "compiler" / "version.info").write_text(f"Version={component}\nversion_dir={marketing}\n")
    info = f"package_name=Ascend-cann-toolkit\nversion={marketing}\narch=x86_64\nos=linux\n"
    (home / "x86_64-linux" / "ascend_toolkit_install.info").write_text(info)
    return home


def test_cann_is_found_where_the_variables_say_first(tmp_path: Path) -> None:
    assert find_cann(tmp_path, {}) is None
    old = toolkit(tmp_path / "usr/local/Ascend/ascend-toolkit/latest")
    found = find_cann(tmp_path, {})
    assert found is not None
    assert (found.home, found.version) == (old, "8.1.RC1")
    assert found.components == {"runtime": "7.7.0.1.238", "toolkit": "7.7.0.1.238", "compiler": "7.7.0.1.238"}
    new = toolkit(tmp_path / "usr/local/Ascend/cann", marketing="8.5.0")
    assert find_cann(tmp_path, {}).home == new
    assert find_cann(tmp_path, {"ASCEND_TOOLKIT_HOME": str(old)}).home == old
    assert find_cann(tmp_path, {"ASCEND_OPP_PATH": str(old / "opp")}).home == old


def test_marketing_version_without_the_install_file(tmp_path: Path) -> None:
    home = toolkit(tmp_path / "usr/local/Ascend/cann")
    (home / "x86_64-linux" / "ascend_toolkit_install.info").unlink()
    assert find_cann(tmp_path, {}).version == "8.1.RC1"
    (home / "version.cfg").write_text("toolkit_running_version=[8.5.2]\n")
    assert find_cann(tmp_path, {}).version == "8.5.2"
    (home / "version.cfg").unlink()
    assert find_cann(tmp_path, {}).version == "8.1.RC1", "from the compiler's version_dir"
    (home / "compiler" / "version.info").unlink()
    assert find_cann(tmp_path, {}).version == ""


def test_driver_in_another_place(tmp_path: Path) -> None:
    assert installed_part(tmp_path, "driver") == {}
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ascend_install.info").write_text("UserName=HwHiAiUser\nDriver_Install_Path_Param=/opt/Ascend\n")
    (tmp_path / "opt/Ascend/driver").mkdir(parents=True)
    (tmp_path / "opt/Ascend/driver/version.info").write_text("Version=7.6.0.1.220\npackage_version=24.1.rc3\n")
    assert installed_part(tmp_path, "driver")["package_version"] == "24.1.rc3"


@pytest.mark.parametrize(
    ("text", "count", "devices", "problem"),
    [
        ("0", 4, (0,), ""),
        ("0,2,3", 4, (0, 2, 3), ""),
        ("0, 2", 4, (0,), "has a space"),
        ("2,1,3", 4, (2,), "must ascend"),
        ("1,1", 4, (1,), "must ascend"),
        ("0,x,2", 4, (0,), "no device number"),
        ("", 4, (), "a number is missing"),
        ("0,,2", 4, (0,), "a number is missing"),
        ("-1", 4, (), "no device number"),
        ("0-2", 4, (), "no device number"),
        ("4", 2, (), "207004"),
        ("4", None, (4,), ""),
        ("²", None, (), "no device number"),
    ],
)
def test_visible_devices(text: str, count: int | None, devices: tuple[int, ...], problem: str) -> None:
    found = visible_devices(text, count)
    assert found.devices == devices
    assert problem in found.problem
    assert bool(found.problem) == bool(problem)


@pytest.mark.parametrize("text", ["0", "0,2", "0-2", "npu-1", "Ascend910-1", "void", "0-2,5"])
def test_container_runtime_selection(text: str) -> None:
    assert runtime_selection_problem(text) == ""
    assert "container runtime" in runtime_selection_problem(f"{text}, 7")


def test_nodes(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    assert device_nodes(tmp_path).chips == ()
    for name in ("davinci10", "davinci2", "davinci_manager", "devmm_svm", "davinci_x"):
        (tmp_path / "dev" / name).touch()
    found = device_nodes(tmp_path, access=lambda path, _: path.name != "davinci2")
    assert (found.chips, found.missing, found.closed) == ((2, 10), ("hisi_hdc",), ("davinci2",))
