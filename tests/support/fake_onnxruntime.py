"""A contract fake of onnxruntime-cann: the real onnxruntime's CPU provider under the other name, with the provider's rules.

`install(folder)` makes a folder for PYTHONPATH. `mode`: `ok`; `silent` (falls back to the CPU, as it does without CANN).
Every session writes what it was given to `log.jsonl` of the folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.fake_acl import install as install_acl

_CODE = """
import importlib, json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
paths, sys.path[:] = list(sys.path), [p for p in sys.path if os.path.abspath(p or ".") != here]
mine = sys.modules.pop("onnxruntime")
real = importlib.import_module("onnxruntime")
sys.path[:] = paths
CANN, MODE = "CANNExecutionProvider", MODE_HERE
OPTIONS = OPTIONS_HERE


class InferenceSession(real.InferenceSession):
    def __init__(self, model, options, providers):
        (name, given), = providers
        assert name == CANN
        unknown = set(given) - OPTIONS
        if unknown:
            raise RuntimeError("Unknown provider option: " + sorted(unknown)[0])
        with open(os.path.join(here, "log.jsonl"), "a") as log:
            log.write(json.dumps({"options": given, "cwd": os.getcwd(), "there": sorted(os.listdir())}) + "\\n")
        plain = real.SessionOptions()
        plain.intra_op_num_threads = 1
        super().__init__(model, plain, providers=["CPUExecutionProvider"])

    def get_providers(self):
        return [CANN, "CPUExecutionProvider"] if MODE == "ok" else ["CPUExecutionProvider"]


real.InferenceSession = InferenceSession
real.get_available_providers = lambda: [CANN, "CPUExecutionProvider"]
sys.modules["onnxruntime"] = real
"""


def install(folder: Path, mode: str = "ok", **acl: Any) -> Path:
    """Make the folder; `acl` configures the fake of pyACL in it, which names the SoC."""
    from orchestrator.ascend.cann_provider import OPTIONS

    install_acl(folder, **acl)
    code = _CODE.replace("MODE_HERE", repr(mode)).replace("OPTIONS_HERE", repr(set(OPTIONS)))
    (folder / "onnxruntime.py").write_text(code)
    return folder


def sessions(folder: Path) -> list[dict[str, Any]]:
    """Return what each session was given."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
