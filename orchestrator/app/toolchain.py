"""Which compilers this machine has, as identities for fingerprints: a compiler that comes, goes or changes compiles anew."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from orchestrator.core.digests import sha256_json
from orchestrator.environment.model import Tools


def toolchain_identities(tools: Tools) -> Mapping[str, str]:
    """Return format -> identity of its compiler, by looking at files only; nothing is started.

    Args:
        tools: Of the environment; ATC is also looked for on PATH.

    Returns:
        Formats without a compiler here are absent.
    """
    found: dict[str, str] = {}
    atc = tools.atc or shutil.which("atc")
    if atc and Path(atc).is_file():
        found["om"] = _identity(Path(atc), _cann(Path(atc)))
    for name, python, package in (
        ("mindir", tools.mindspore_lite_python, "mindspore_lite"),
        ("onnx", tools.onnxruntime_cann_python, "onnxruntime_cann"),
    ):
        if python and Path(python).is_file():
            found[name] = _identity(Path(python), _installed(Path(python), package))
    return found


def _identity(tool: Path, version: str) -> str:
    status = tool.stat()
    return sha256_json({"path": str(tool), "size": status.st_size, "mtime_ns": status.st_mtime_ns, "version": version})


def _installed(python: Path, package: str) -> str:
    """Return the metadata folder of a package beside an interpreter, whose name holds the version."""
    found = sorted(python.absolute().parent.parent.glob(f"lib/python*/site-packages/{package}-*.dist-info"))
    return found[0].name if found else ""


def _cann(atc: Path) -> str:
    """Return the version files of the CANN that holds this ATC, as text."""
    for folder in atc.resolve().parents:
        for name in ("compiler/version.info", "version.info", "version.cfg"):
            file = folder / name
            if file.is_file() and file.stat().st_size < 65536:
                return file.read_text(encoding="utf-8", errors="replace")
    return ""
