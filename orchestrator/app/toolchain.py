"""Which compilers this machine has, as identities for fingerprints: a compiler that comes, goes or changes compiles anew."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from orchestrator.ascend.atc_install import find_atc
from orchestrator.core.digests import sha256_json
from orchestrator.core.errors import PlanError
from orchestrator.environment.model import Tools


def toolchain_identities(tools: Tools) -> Mapping[str, str]:
    """Return format -> identity of its compiler, by looking at files only; nothing is started.

    Args:
        tools: Of the environment; ATC is also looked for where it is usually installed.

    Returns:
        Formats without a compiler here are absent.

    Raises:
        InternalError: The environment names an ATC that is not there.
        PlanError: It names an interpreter that is not there.
    """
    found: dict[str, str] = {}
    atc = find_atc(tools.atc)
    if atc is not None:
        found["om"] = _identity(atc.program, atc.version)
    for name, key, package in (
        ("mindir", "mindspore_lite_python", "mindspore_lite"),
        ("onnx", "onnxruntime_cann_python", "onnxruntime_cann"),
    ):
        python: str | None = getattr(tools, key)
        if python:
            _check(Path(python).expanduser(), f"tools.{key}")
            found[name] = _identity(Path(python), _installed(Path(python), package))
    return found


def _check(python: Path, place: str) -> None:
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise PlanError(
            f"{str(python)!r} is no program here",
            place=place,
            hint="correct the path in the environment, or leave it null",
        )


def _identity(tool: Path, version: str) -> str:
    status = tool.stat()
    return sha256_json({"path": str(tool), "size": status.st_size, "mtime_ns": status.st_mtime_ns, "version": version})


def _installed(python: Path, package: str) -> str:
    """Return the metadata folder of a package beside an interpreter, whose name holds the version."""
    found = sorted(python.absolute().parent.parent.glob(f"lib/python*/site-packages/{package}-*.dist-info"))
    return found[0].name if found else ""
