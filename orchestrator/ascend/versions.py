"""Which versions of driver, firmware, CANN, torch, torch_npu, ONNX Runtime and MindSpore Lite go together.

Data: `data/compat.json`, which names its sources. What no source states is said to be unknown, never guessed. CANN has two
numbers: the marketing version (`8.1.RC1`) and its components' (`7.7.0.1.238`); tables use the first, MindSpore Lite the second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

Level = Literal["ok", "unknown", "warn", "refuse"]

_HOMES: Final = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
_ROOTS: Final = ("usr/local/Ascend/cann", "usr/local/Ascend/ascend-toolkit/latest", "usr/local/Ascend/latest")
_BRACKETS: Final = re.compile(r"\[([^\]]*)\]")
_LARGEST_BYTES: Final = 1 << 20
_STAGES: Final = {"alpha": 0, "beta": 1, "rc": 2, "post": 4}
_FINAL: Final = 3


@dataclass(frozen=True, slots=True)
class Cann:
    """An installed CANN.

    Attributes:
        home: Its folder.
        version: Marketing version, e.g. `8.1.RC1`; empty where no file says it.
        components: Component -> component version, e.g. `compiler` -> `7.7.0.1.238`.
        source: The file that told the version.
    """

    home: Path
    version: str
    components: Mapping[str, str]
    source: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether two things go together: `refuse` will not work, `warn` is not what the vendor pairs, `unknown` is not stated."""

    level: Level
    text: str
    fix: str = ""


def find_cann(root: Path, variables: Mapping[str, str]) -> Cann | None:
    """Return the CANN that programs would use: that of the environment's variables, else one in the usual places.

    Args:
        root: `/`, or a folder that stands for it.
        variables: Environment variables.
    """
    homes = [Path(variables[name]) for name in _HOMES if variables.get(name)]
    opp = variables.get("ASCEND_OPP_PATH")
    homes += [Path(opp).parent] if opp else []
    for home in (*homes, *(root / name for name in _ROOTS)):
        if home.is_dir():
            return _cann(home)
    return None


def _cann(home: Path) -> Cann:
    config = _running(_text(home / "version.cfg"))
    components = {name: pair[0] for name, pair in config.items()}
    compiler = _values(_text(home / "compiler/version.info"))
    if "Version" in compiler:
        components["compiler"] = compiler["Version"]
    installs = sorted((*home.glob("*-linux/*_install.info"), *home.glob("*_install.info")))
    for path in installs:
        version = _values(_text(path)).get("version", "")
        if version:
            return Cann(home, version, components, str(path))
    for name in ("toolkit", "runtime", "compiler"):
        if name in config and config[name][1]:
            return Cann(home, config[name][1], components, str(home / "version.cfg"))
    return Cann(home, compiler.get("version_dir", ""), components, str(home / "compiler/version.info"))


def _running(text: str) -> dict[str, tuple[str, str]]:
    """Read `<component>_running_version=[7.7.0.1.238:8.1.RC1]`; newer files give the marketing version alone."""
    found: dict[str, tuple[str, str]] = {}
    for key, value in _values(text).items():
        brackets = _BRACKETS.findall(value)
        if key.endswith("_running_version") and brackets:
            component, separator, marketing = brackets[-1].partition(":")
            found[key.removesuffix("_running_version")] = (component, marketing if separator else component)
    return found


def installed_part(root: Path, part: str) -> dict[str, str]:
    """Return the lines of `driver/version.info` or `firmware/version.info`; empty where it is not installed."""
    places = [root / "usr/local/Ascend"]
    where = _values(_text(root / "etc/ascend_install.info"))
    chosen = where.get(f"{part.capitalize()}_Install_Path_Param")
    if chosen:
        places.insert(0, root / chosen.lstrip("/"))
    for place in places:
        found = _values(_text(place / part / "version.info"))
        if found:
            return found
    return {}


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_LARGEST_BYTES)
    except OSError:
        return ""


def _values(text: str) -> dict[str, str]:
    lines = (line.partition("=") for line in text.splitlines() if not line.lstrip().startswith("#"))
    return {key.strip(): value.strip() for key, separator, value in lines if separator}


def version_key(text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Return what orders versions as the vendor means them, in any letter case.

    8.1.RC1.alpha001 < 8.1.RC1 < 8.1 = 8.1.0 < 8.1.0.post1 < 8.1.1
    """
    numbers: list[int] = []
    stages: list[tuple[int, int]] = []
    for part in re.split(r"[.\-+_]", text.strip().lower().lstrip("v")):
        named = re.fullmatch(r"(alpha|beta|rc|post)(\d*)", part)
        if named:
            stages.append((_STAGES[named[1]], int(named[2] or 0)))
        elif not (part.isascii() and part.isdigit()):
            break
        elif stages:
            stages[-1] = (stages[-1][0], int(part))  # beta.2
        else:
            numbers.append(int(part))
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), (*stages, (_FINAL, 0))


def base_version(text: str) -> str:
    """Return `2.9.0` of `2.9.0.post2` or `2.9.0+cpu`."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return found[0] if found else text


def judge_torch(torch: str, torch_npu: str) -> Judgement:
    """Judge the pair: torch_npu X.Y.Z is built against torch X.Y.Z and no other."""
    row = _row(torch_npu)
    wanted = str(row["torch"]) if row else base_version(torch_npu)
    if version_key(base_version(torch)) == version_key(wanted):
        return Judgement("ok", f"torch {torch} with torch_npu {torch_npu}")
    return Judgement(
        "refuse",
        f"torch {torch} with torch_npu {torch_npu}, which needs torch {wanted}",
        f"pip install 'torch=={wanted}'",
    )


def judge_torch_cann(torch_npu: str, cann: str) -> Judgement:
    """Judge the pair; plugin releases work with several CANN versions, so a mismatch is only a warning."""
    row, pair = _row(torch_npu), f"torch_npu {torch_npu} with CANN {cann}"
    if row is None:
        return Judgement("unknown", f"{pair}: no public table has this torch_npu")
    if _same(str(row["cann"]), cann):
        return Judgement("ok", pair)
    others = _compat()["release_to_cann"].get(str(row["release"]), [])
    if any(_same(other, cann) for other in others):
        return Judgement("ok", f"{pair}: built for {row['cann']}, stated to work with this one too")
    fitting = [item["torch_npu"] for item in _compat()["torch_npu"] if _same(str(item["cann"]), cann)]
    fix = f"for CANN {cann} take torch_npu {' or '.join(fitting[:3])}" if fitting else f"install CANN {row['cann']}"
    return Judgement("warn", f"{pair}: it is built for CANN {row['cann']}", fix)


def judge_torch_python(torch_npu: str, python: str) -> Judgement:
    """Judge whether there is a wheel of this torch_npu for this Python (`3.11`)."""
    row = _row(torch_npu)
    if row is None or not row["python"]:
        return Judgement("unknown", f"torch_npu {torch_npu} on Python {python}: no public table says")
    if python in row["python"]:
        return Judgement("ok", f"torch_npu {torch_npu} on Python {python}")
    known = ", ".join(row["python"])
    return Judgement("warn", f"torch_npu {torch_npu} on Python {python}: released for {known}", f"use one of {known}")


def judge_driver(cann: str, driver: str) -> Judgement:
    """Judge the pair: an older driver than CANN's is the common cause of failures, a newer one is meant to work."""
    pair = f"CANN {cann} with driver {driver}"
    wanted = next((str(row["driver"]) for row in _compat()["cann_driver"] if _same(str(row["cann"]), cann)), None)
    if wanted is None:
        return Judgement("unknown", f"{pair}: no public table has this CANN")
    if version_key(driver) == version_key(wanted):
        return Judgement("ok", pair)
    if version_key(driver) > version_key(wanted):
        return Judgement("ok", f"{pair}: newer than its pair {wanted}")
    return Judgement("warn", f"{pair}, which is older than its pair {wanted}", f"install driver and firmware {wanted}")


def judge_firmware(accepted: str, firmware: str) -> Judgement:
    """Judge the firmware by the driver's own range, e.g. `[7.0.0,7.5.99]` of its `compatible_version_fw`."""
    ends = [end.strip() for end in accepted.strip("[] ").split(",")]
    if len(ends) != 2 or not firmware:
        return Judgement("unknown", f"firmware {firmware or 'unknown'}: the driver states no range")
    low, high = (version_key(end) for end in ends)
    three = version_key(".".join(firmware.split(".")[:3]))
    if low <= three <= high:
        return Judgement("ok", f"firmware {firmware}")
    return Judgement("warn", f"firmware {firmware}; the driver states {ends[0]} to {ends[1]}", "upgrade the firmware")


def judge_onnxruntime(version: str, cann: str) -> Judgement:
    """Judge onnxruntime-cann with CANN; public tables end at 1.22."""
    pair = f"onnxruntime-cann {version} with CANN {cann}"
    for row in _compat()["onnxruntime_cann"]:
        low, high = version_key(row["first"])[0], version_key(row["last"])[0]
        number = version_key(base_version(version))[0]
        if low <= number and number[: len(high)] <= high:
            fits = version_key(cann)[0][:2] == version_key(row["cann"])[0][:2]
            if fits:
                return Judgement("ok", pair)
            return Judgement("warn", f"{pair}: it is built for CANN {row['cann']}", f"install CANN {row['cann']}")
    return Judgement("unknown", f"{pair}: no source states which CANN it is built for")


def judge_mindspore_lite(compiler: str) -> Judgement:
    """Judge CANN for MindSpore Lite, which looks at the version of CANN's compiler component."""
    accepted: Iterable[str] = _compat()["mindspore_lite_compiler"]
    if any(compiler == prefix or compiler.startswith(f"{prefix}.") for prefix in accepted):
        return Judgement("ok", f"compiler {compiler} is one that MindSpore Lite accepts")
    known = ", ".join(accepted)
    return Judgement(
        "warn",
        f"compiler {compiler}; MindSpore Lite asks for {known}",
        "take a CANN of the same generation as its wheel",
    )


def _row(torch_npu: str) -> Mapping[str, Any] | None:
    key = version_key(torch_npu)
    return next((row for row in _compat()["torch_npu"] if version_key(str(row["torch_npu"])) == key), None)


def _same(one: str, other: str) -> bool:
    return version_key(one) == version_key(other)


@cache
def _compat() -> dict[str, Any]:
    text = files("orchestrator.ascend").joinpath("data/compat.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
