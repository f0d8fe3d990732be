"""What a peer serves, for all peers: an echo, or an ONNX Runtime session with the options that ours has. Runs in the peer's Python."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

SETTINGS: dict[str, Any] = json.loads(os.environ["SERVED"])
MODEL: str = SETTINGS["model"]
BATCH: int = SETTINGS["batch"]
DELAY_S: float = SETTINGS["delay_s"]


def session() -> Any:
    """Return the session, or None for the echo."""
    if not MODEL:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = SETTINGS["threads"]
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def inputs_of(model: Any) -> list[tuple[str, tuple[int, ...], Any]]:
    """Return name, shape of one row and dtype of each input."""
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    return [(node.name, tuple(node.shape[1:]), kinds[node.type]) for node in model.get_inputs()]


def split(body: bytes, inputs: list[tuple[str, tuple[int, ...], Any]]) -> dict[str, Any]:
    """Return one row of every input, from their bytes in a row."""
    found, at = {}, 0
    for name, shape, kind in inputs:
        array = np.frombuffer(body, kind, int(np.prod(shape)), at).reshape(1, *shape)
        found[name] = array
        at += array.nbytes
    return found
