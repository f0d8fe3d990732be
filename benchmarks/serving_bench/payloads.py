"""The same tensors in every server's own words; every number is exact in every notation, so that answers can be compared as text."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from serving_bench.wire import Request

VARIANTS: Final = 8
"""Different requests of a kind: an answer that belongs to another request is seen."""
FLOATS, BINARY_FLOATS = 100, 256
PROTO: Final = Path(__file__).parents[2] / "orchestrator" / "serving" / "protocol" / "inference.proto"
GRPC_PATH: Final = "/inference.GRPCInferenceService/ModelInfer"
OIP_PATH: Final = "/v2/models/{}/infer"
_TYPES: Final = {"float32": "FP32", "int64": "INT64"}

Arrays = Mapping[str, np.ndarray[Any, Any]]


def small(count: int) -> list[Arrays]:
    """Return the variants of one row of floats that print as `dd.125` everywhere."""
    steps = np.arange(count)
    return [{"x": ((10 + (steps * 7 + 13 * k) % 90) + 0.125).astype(np.float32)[None, :]} for k in range(VARIANTS)]


def http(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a whole HTTP/1.1 request."""
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def oip_json(path: str, arrays: Arrays, needle: bytes | None = None) -> Request:
    """Return an OIP request in JSON; the answer must hold the numbers of the first input unless told otherwise."""
    inputs = [
        {"name": name, "datatype": _TYPES[str(array.dtype)], "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in arrays.items()
    ]
    body = json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
    first = json.dumps(inputs[0]["data"], separators=(",", ":")).encode()[1:-1]
    return Request(http(path, body, {"content-type": "application/json"}), first if needle is None else needle)


def oip_binary(path: str, arrays: Arrays, needle: bytes | None = None) -> Request:
    """Return an OIP request whose tensors are binary, and are wanted so."""
    blobs = [array.tobytes() for array in arrays.values()]
    inputs = [
        {"name": name, "datatype": _TYPES[str(array.dtype)], "shape": list(array.shape),
         "parameters": {"binary_data_size": array.nbytes}}
        for name, array in arrays.items()
    ]  # fmt: skip
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return Request(http(path, head + b"".join(blobs), headers), blobs[0] if needle is None else needle)


def raw(path: str, arrays: Arrays, needle: bytes | None = None) -> Request:
    """Return the bare bytes of all inputs, one after the other: for servers that have no word for tensors."""
    body = b"".join(array.tobytes() for array in arrays.values())
    wanted = next(iter(arrays.values())).tobytes() if needle is None else needle
    return Request(http(path, body, {"content-type": "application/octet-stream"}), wanted)


def oip_base64(path: str, arrays: Arrays, needle: bytes) -> Request:
    """Return an OIP request whose bytes are text in JSON."""
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(array.tobytes()).decode()],
         "parameters": {"content_type": "base64"}}
        for name, array in arrays.items()
    ]  # fmt: skip
    return Request(http(path, json.dumps({"inputs": inputs}).encode(), {"content-type": "application/json"}), needle)


def grpc(model: str, arrays: Arrays) -> Request:
    """Return an OIP ModelInfer message with raw contents; the answer must hold the bytes of the first input."""
    from orchestrator.serving.protocol.proto import load_messages

    message = load_messages(PROTO)["ModelInferRequest"](model_name=model)
    for name, array in arrays.items():
        message.inputs.add(name=name, datatype=_TYPES[str(array.dtype)], shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return Request(message.SerializeToString(), next(iter(arrays.values())).tobytes())


def every(variants: Sequence[Arrays], kind: str, path: str) -> tuple[Request, ...]:
    """Return all variants of small tensors as `json`, `binary`, `raw` or `grpc`."""
    makers = {"json": oip_json, "binary": oip_binary, "raw": raw, "grpc": grpc}
    return tuple(makers[kind](path, arrays) for arrays in variants)


def bento_json(path: str, arrays: Arrays) -> Request:
    """Return BentoML's own form of an array argument."""
    body = {name: array.tolist() for name, array in arrays.items()}
    text = json.dumps(body, separators=(",", ":")).encode()
    needle = json.dumps(next(iter(body.values()))[0], separators=(",", ":")).encode()[1:-1]
    return Request(http(path, text, {"content-type": "application/json"}), needle)
