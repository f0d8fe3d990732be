"""A CANN installed on this machine: its own kernel and parser tables, which beat the shipped ones.

Read from the operator package (OPP): operator information per SoC family, AI CPU operators, and the parser keys that the
ONNX plugin libraries hold as plain text. Nothing of CANN is imported or run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.ascend.kernels import Kernel, KernelTable, Mixed, make_kernel
from orchestrator.ascend.operators import ONNX_DOMAINS
from orchestrator.core.errors import InfraError

_HOMES: Final = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
_DEFAULT_HOMES: Final = (
    "/usr/local/Ascend/cann",
    "/usr/local/Ascend/ascend-toolkit/latest",
    "/usr/local/Ascend/latest",
    "~/Ascend/cann",
    "~/Ascend/ascend-toolkit/latest",
)
_CORE: Final = "op_impl/ai_core/tbe/config"
_CPU: Final = ("op_impl/aicpu/aicpu_kernel/config/aicpu_kernel.json", "op_impl/aicpu/config/*aicpu*.json")
_PLUGINS: Final = ("framework/onnx/*.so", "framework/onnx/**/*.so")
_KEY: Final = re.compile(rb"(ai\.onnx|npu|mmdeploy)::(\d{1,2})::([A-Za-z_]\w*)")
_FEWEST_KEYS: Final = 100
_MIXED: Final[Mapping[str, Mixed]] = {"true": "white", "false": "black"}
_LONGER: Final = {"float": "float32", "double": "float64", "bf16": "bfloat16"}
_LARGEST_BYTES: Final = 256 << 20

ParserKey = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class InstalledCann:
    """What one installation says.

    Attributes:
        opp: Its operator package.
        version: Version that the package states; empty where it states none.
        kernels: Its kernels; only of the families it has information for.
        parsers: (domain, model opset, operator) of its ONNX parsers; None where its libraries did not tell.
    """

    opp: Path
    version: str
    kernels: KernelTable
    parsers: frozenset[ParserKey] | None


def find_opp(installed: Path | None = None) -> Path | None:
    """Return the operator package of an installed CANN, None where there is none.

    Args:
        installed: A CANN home or operator package to use; without it `ASCEND_OPP_PATH`, `ASCEND_HOME_PATH`,
            `ASCEND_TOOLKIT_HOME` and the usual places are tried in that order.

    Raises:
        InfraError: `installed` was given and holds no operator package.
    """
    if installed is not None:
        for folder in (installed, installed / "opp"):
            if _is_opp(folder):
                return folder
        raise InfraError(
            "no operator information of a CANN in that folder",
            place=str(installed),
            hint="name CANN's home (the folder that holds opp/), or leave it out to use the shipped tables",
        )
    return next((folder for folder in _candidates() if _is_opp(folder)), None)


def read_cann(opp: Path, soc_family: str) -> InstalledCann | None:
    """Read the tables of one SoC family; None where the package has no operator information of it.

    Raises:
        InfraError: A file of it cannot be read.
    """
    return _read(opp.resolve(), soc_family.lower())


def _candidates() -> Iterator[Path]:
    if os.environ.get("ASCEND_OPP_PATH"):
        yield Path(os.environ["ASCEND_OPP_PATH"])
    for name in _HOMES:
        if os.environ.get(name):
            yield Path(os.environ[name]) / "opp"
    for home in _DEFAULT_HOMES:
        yield Path(home).expanduser() / "opp"


def _is_opp(folder: Path) -> bool:
    return (folder / "built-in" / _CORE).is_dir()


@cache
def _read(opp: Path, family: str) -> InstalledCann | None:
    roots = [opp / "built-in", *sorted((opp / "vendors").glob("*"))]
    core: dict[str, Kernel] = {}
    for root in roots:
        for file in sorted((root / _CORE / family).glob(f"aic-{family}-ops-info*.json")):
            for ir_type, info in _operators(file):
                core[ir_type] = _kernel(ir_type, family, info)
    if not core:
        return None
    cpu = {
        ir_type: tuple(_inputs(info, "type"))
        for root in roots
        for file in _matches(root, _CPU)
        for ir_type, info in _operators(file)
    }
    version = _version(opp)
    name = f"CANN {version} at {opp.parent}" if version else f"CANN at {opp.parent}"
    return InstalledCann(opp, version, KernelTable(name, {family: core}, cpu), _parsers(roots))


def _kernel(ir_type: str, family: str, info: Mapping[str, Any]) -> Kernel:
    flag = str(_section(info, "precision_reduce").get("flag", ""))
    rows = ["any" if row is None else row for row in _inputs(info, "dtype")]
    dynamic = _section(info, "dynamicShapeSupport").get("flag") == "true"
    return make_kernel(ir_type, family, rows, _MIXED.get(flag, "grey"), dynamic=dynamic)


def _inputs(info: Mapping[str, Any], key: str) -> list[frozenset[str] | None]:
    rows: list[frozenset[str] | None] = []
    while f"input{len(rows)}" in info:
        text = str(_section(info, f"input{len(rows)}").get(key, ""))
        names = {part.strip().lower().removeprefix("dt_") for part in text.split(",")} - {"", "all"}
        rows.append(frozenset(_LONGER.get(name, name) for name in names) or None)
    return rows


def _section(info: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = info.get(key)
    return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}


def _operators(file: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    try:
        if file.stat().st_size > _LARGEST_BYTES:
            raise InfraError(f"operator information of {file.stat().st_size} bytes", place=str(file))
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InfraError(
            f"CANN's operator information cannot be read: {error}",
            place=str(file),
            hint="install CANN's operator package again, or unset ASCEND_OPP_PATH to use the shipped tables",
        ) from error
    if not isinstance(data, dict):
        raise InfraError("CANN's operator information is no object", place=str(file), hint="install CANN again")
    for name, info in cast("dict[str, Any]", data).items():
        if isinstance(info, dict):
            yield name, cast("dict[str, Any]", info)


def _matches(root: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in root.glob(pattern) if file.is_file()})


def _parsers(roots: Iterable[Path]) -> frozenset[ParserKey] | None:
    """Return the keys found in the plugin libraries; None for so few that the libraries must keep them otherwise."""
    found: set[ParserKey] = set()
    for file in (file for root in roots for file in _matches(root, _PLUGINS)):
        if file.stat().st_size > _LARGEST_BYTES:
            continue
        for domain, opset, op_type in _KEY.findall(file.read_bytes()):
            name = domain.decode()
            found.add(("" if name in ONNX_DOMAINS else name, int(opset), op_type.decode()))
    return frozenset(found) if len(found) >= _FEWEST_KEYS else None


def _version(opp: Path) -> str:
    for file in (opp / "version.info", opp.parent / "version.cfg", opp.parent / "compiler" / "version.info"):
        if file.is_file():
            found = re.search(
                r"(?im)^\s*version\s*=\s*\[?([\w.+-]+)", file.read_text(encoding="utf-8", errors="replace")
            )
            if found:
                return found.group(1)
    return ""
