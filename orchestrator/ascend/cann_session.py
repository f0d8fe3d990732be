"""Opens a model with onnxruntime's CANN provider and proves that it is the one that runs: a script for another interpreter.

    python cann_session.py REQUEST.json ANSWER.json

It imports onnxruntime and numpy, nothing of ours. Without CANN onnxruntime makes a session on the CPU and says so only in
its log, and `get_available_providers` lists the provider all the same; so the session's own list is asked, and after the
runs the profile, which names the provider of every node.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

CANN = "CANNExecutionProvider"
_TYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(int64)": "int64",
    "tensor(int32)": "int32", "tensor(int16)": "int16", "tensor(int8)": "int8", "tensor(uint8)": "uint8",
    "tensor(bool)": "bool", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
}  # fmt: skip


def main(request_path: str, answer_path: str) -> int:
    """Do what the request says and write the answer."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    answer: dict[str, Any] = {"version": "", "active": [], "runs": [], "nodes": {}, "error": "", "files": []}
    try:
        _work(request, answer)
    except Exception as error:  # noqa: BLE001  whatever it is, it is the answer
        answer["error"] = f"{type(error).__name__}: {error}"[:2000]
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def _work(request: dict[str, Any], answer: dict[str, Any]) -> None:
    import numpy
    import onnxruntime

    ort: Any = onnxruntime
    answer["version"] = ort.__version__
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = "profile"
    providers = [(CANN, request["options"]), "CPUExecutionProvider"]
    session = ort.InferenceSession(request["model"], options, providers=providers)
    answer["active"] = session.get_providers()
    if CANN not in answer["active"]:
        return
    for shapes in request["buckets"]:
        feeds = {item.name: numpy.zeros(shapes[item.name], _TYPES[item.type]) for item in session.get_inputs()}
        started = time.monotonic()
        session.run(None, feeds)
        answer["runs"].append({"shapes": shapes, "elapsed_s": time.monotonic() - started})
    answer["nodes"] = _placement(Path(session.end_profiling()))
    answer["files"] = sorted(path.name for path in Path().glob("*.om"))


def _placement(profile: Path) -> dict[str, int]:
    """Return provider -> number of different nodes that ran on it."""
    events: list[dict[str, Any]] = json.loads(profile.read_text(encoding="utf-8"))
    profile.unlink()
    nodes: dict[str, set[str]] = {}
    for event in events:
        provider = event.get("args", {}).get("provider")
        if event.get("cat") == "Node" and provider:
            nodes.setdefault(provider, set()).add(str(event["args"].get("node_index", event["name"])))
    return {provider: len(names) for provider, names in nodes.items()}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
