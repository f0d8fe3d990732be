"""What is fuzzed: each target takes any bytes, and raises where the data plane does what it must not.

Hypothesis calls them in the tests, atheris in `tests/fuzz/fuzz_*.py`.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from orchestrator.serving.errors import RequestError
from orchestrator.serving.link.frames import FrameReader, Kind, LinkError, decode_tensors
from orchestrator.serving.link.reports import read_report
from orchestrator.serving.link.wire import (
    read_credit,
    read_hello,
    read_placements,
    read_rows,
    read_statuses,
)
from orchestrator.serving.protocol.oip import InferRequest, parse_request
from orchestrator.serving.protocol.oip_grpc import MESSAGES
from orchestrator.serving.protocol.oip_grpc import parse_request as parse_message
from orchestrator.serving.protocol.signature import Signature, fit
from orchestrator.serving.protocol.tensors import TensorSpec
from support.link_replica import specs
from support.memory_router import MemoryRouter

TYPED = {200, 400, 404, 405, 413, 415, 417, 431, 503}
LARGEST_BYTES = 64 << 20
_ROUTERS: list[MemoryRouter] = []
SIGNATURE = Signature((TensorSpec("x", "FP32", ("batch", 4)),), (TensorSpec("y", "FP32", ("batch", 4)),), 32)


def _router() -> MemoryRouter:
    if not _ROUTERS:
        folder = Path(tempfile.mkdtemp(prefix="orc-fuzz-"))
        _ROUTERS.append(MemoryRouter(folder, {"int32": specs("INT32"), "bytes": specs("BYTES")}))
    return _ROUTERS[0]


def http(data: bytes) -> None:
    """A connection's bytes, in two pieces: every answer is whole and typed, and the next request is served."""
    if b"HEAD" in data:
        return  # an answer without a body says how long it would be: what follows it cannot be told from a body
    router = _router()
    answers, _ = router.talk(data[: len(data) // 2], data[len(data) // 2 :])
    for answer in answers:
        assert answer.status in TYPED, answer
        assert answer.status == 200 or list(answer.json) == ["error"], answer
    assert router.router.public.buffered_bytes == 0
    (good,), _ = router.talk(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
    assert good.json == {"live": True}


def link(data: bytes) -> None:
    """A peer's bytes: frames that hold what they say, or `LinkError`."""
    with contextlib.suppress(LinkError):
        for frame in FrameReader().feed(data):
            for read in (read_hello, read_placements, read_report, read_credit, read_rows):
                with contextlib.suppress(LinkError):
                    read(frame)
            with contextlib.suppress(LinkError):
                read_statuses(frame, 1)
            key = "outputs" if frame.kind is Kind.REPLY else "inputs"
            tensors = decode_tensors(frame, key)
            assert sum(len(tensor.data) for tensor in tensors) <= len(frame.body)
            for tensor in tensors:
                assert tensor.array().shape == tensor.shape


def tensors(data: bytes) -> None:
    """A request's body, over REST with its header length in the first two bytes, and over gRPC."""
    length, body = int.from_bytes(data[:2], "little"), data[2:]
    for header in (None, str(length).encode()):
        with contextlib.suppress(RequestError):
            _check(parse_request(body, header))
    with contextlib.suppress(RequestError, DecodeError):
        _check(parse_message(MESSAGES["ModelInferRequest"].FromString(body)))


def _check(asked: InferRequest) -> None:
    for tensor in asked.inputs.values():
        found = tensor.array()
        assert found.shape == tensor.shape
        assert len(tensor.data) <= LARGEST_BYTES
    with contextlib.suppress(RequestError):
        fitted = fit(asked, SIGNATURE)
        assert fitted.inputs[0].shape[1:] == (4,)
        assert np.asarray(fitted.inputs[0].array()).dtype == np.float32
