"""Interpreters that hold the real Ascend tools: the environment names them, else `tests/install-tools.sh` made them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]


@cache
def mindspore_lite_python() -> Path | None:
    """Return the CPython 3.7 that has mindspore-lite 2.0.0, or None."""
    return _find("ORCHESTRATE_TEST_MINDSPORE_LITE_PYTHON", ".venv-mindspore-lite")


@cache
def onnxruntime_cann_python() -> Path | None:
    """Return the interpreter that has onnxruntime-cann 1.24.4 with numpy 1, or None."""
    return _find("ORCHESTRATE_TEST_CANN_PYTHON", ".venv-onnxruntime-cann")


def _find(variable: str, folder: str) -> Path | None:
    named = os.environ.get(variable)
    if named:
        return Path(named)  # a wrong one must fail, not skip
    python = _ROOT / folder / "bin" / "python"  # a link, dead where its interpreter was removed
    return python if python.is_file() and (_ROOT / folder / "installed").is_file() else None


needs_mindspore_lite = pytest.mark.skipif(
    mindspore_lite_python() is None,
    reason="no mindspore-lite 2.0.0: tests/install-tools.sh installs it where there is a CPython 3.7",
)
needs_onnxruntime_cann = pytest.mark.skipif(
    onnxruntime_cann_python() is None, reason="no onnxruntime-cann 1.24.4: tests/install-tools.sh installs it"
)
