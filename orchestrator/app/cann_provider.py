"""Whether onnxruntime-cann really runs on an NPU: without CANN it falls back to the CPU, and says so only in a log line.

It needs NumPy below 2 and stands in place of `onnxruntime`, so it lives in an interpreter of its own, which is asked to
load a graph of one node.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PROVIDER: Final = "CANNExecutionProvider"

_GRAPH: Final = (
    "08073a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a00100d"
)
"""An ONNX file in hex: `y = Identity(x)`, one float, opset 13."""

_PROBE: Final = """
import json, os, sys
out = os.dup(1)
os.dup2(2, 1)  # libraries print where they like; the answer goes to the old stdout
found = {"version": "", "available": [], "active": [], "error": ""}
try:
    import onnxruntime
    found["version"] = onnxruntime.__version__
    found["available"] = onnxruntime.get_available_providers()
    if "CANNExecutionProvider" in found["available"]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        graph = bytes.fromhex(sys.argv[1])
        session = onnxruntime.InferenceSession(graph, options, providers=["CANNExecutionProvider", "CPUExecutionProvider"])
        found["active"] = session.get_providers()
except BaseException as error:
    found["error"] = f"{type(error).__name__}: {error}"[:500]
os.write(out, json.dumps(found).encode())
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the interpreter said.

    Attributes:
        version: Of ONNX Runtime; empty where it cannot be imported.
        available: Providers that the package was built with.
        active: Providers of the session that was made; a fallback leaves only the CPU's.
        error: What went wrong; empty when nothing did.
    """

    version: str
    available: tuple[str, ...]
    active: tuple[str, ...]
    error: str

    @property
    def works(self) -> bool:
        """Whether a session is on the NPU."""
        return PROVIDER in self.active


def probe(python: Path, *, timeout_s: float = 90.0, variables: Mapping[str, str] | None = None) -> Probe:
    """Load a one-node graph with the CANN provider in `python`, a child process."""
    try:
        done = subprocess.run(
            [str(python), "-c", _PROBE, _GRAPH],
            capture_output=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env=dict(os.environ if variables is None else variables),
        )
    except subprocess.TimeoutExpired:
        return Probe("", (), (), f"no answer in {timeout_s:g} s")
    except OSError as error:
        return Probe("", (), (), f"cannot start: {error.strerror}")
    try:
        found: dict[str, Any] = json.loads(done.stdout)
        return Probe(str(found["version"]), tuple(found["available"]), tuple(found["active"]), str(found["error"]))
    except (ValueError, KeyError, TypeError):
        words = done.stderr.decode(errors="replace").strip().splitlines()
        return Probe("", (), (), f"exit code {done.returncode}: {words[-1][:300] if words else 'it said nothing'}")
