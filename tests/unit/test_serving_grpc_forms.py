"""Messages of a known form come out exactly as protobuf and the parser make them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.serving.dispatch.lanes import Lane, Request
from orchestrator.serving.protocol.grpc_forms import RawForms, render
from orchestrator.serving.protocol.oip_grpc import MESSAGES, lane_part, parse_request, write_answer
from orchestrator.serving.protocol.signature import Signature, fit
from orchestrator.serving.protocol.tensors import Tensor, TensorSpec
from orchestrator.serving.table import Generation

KIND = MESSAGES["ModelInferRequest"]
SIGNATURE = Signature((TensorSpec("x", "FP32", ("batch", 4)),), (TensorSpec("y", "FP32", ("batch", 4)),), 8)


def message(values: bytes, model: str = "m", rows: int = 1, request_id: str = "", outputs: tuple[str, ...] = ()) -> Any:
    """Return a request with one raw input."""
    made = KIND(model_name=model, id=request_id, raw_input_contents=[values])
    made.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    for name in outputs:
        made.outputs.add(name=name)
    return made


def told(request: Any) -> object:
    """Return everything that a request says."""
    tensors = [(x.name, x.datatype, x.shape, bytes(x.data)) for x in request.inputs.values()]
    return tensors, request._replace(inputs={}, form=None)


def test_messages_of_a_known_form_are_read_alike() -> None:
    forms, known = RawForms(always_raw=False), 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        for rows in (1, 2, 40):
            raw = rng.bytes(16 * rows)
            for more in ({}, {"model": "other"}, {"request_id": "7"}, {"outputs": ("y",)}):
                made = message(raw, rows=rows, **more)  # type: ignore[arg-type]
                found = forms.open(made.SerializeToString())
                known += found.known is not None
                assert found.model == (made.model_name, "")
                assert told(forms.parse(found)) == told(parse_request(made))
    assert known == 3 * 3 * 3  # all but the first of each, and those with an id


def test_bytes_that_only_look_like_the_raw_input_are_never_a_form() -> None:
    forms = RawForms(always_raw=False)
    raw = bytes(range(16))
    # The raw input comes first, and an unknown field at the end repeats its bytes.
    head = b"\x3a\x10" + raw + message(b"").SerializeToString().replace(b"\x3a\x00", b"")
    for value in (raw, raw[::-1]):
        data = head + b"\xfa\x7f\x10" + value
        found = forms.open(data)
        assert found.known is None
        assert bytes(forms.parse(found).inputs["x"].data) == raw


@pytest.mark.parametrize("last", [{"model_name": "other"}, {"id": "a"}, {"model_version": "2"}])
def test_fields_behind_the_raw_input_are_read(last: dict[str, str]) -> None:
    forms = RawForms(always_raw=False)
    data = message(bytes(range(16))).SerializeToString() + KIND(**last).SerializeToString()
    for _ in range(2):
        found = forms.open(data)
        assert found.known is None
        assert told(forms.parse(found)) == told(parse_request(KIND.FromString(data)))


@pytest.mark.parametrize("request_id", [None, "7"])
def test_answers_of_a_known_form_are_written_alike(request_id: str | None) -> None:
    generation = Generation(3, "sha256:" + "0" * 64, "/x", "onnx-cpu", 100, "live", "cpu (rehearsal)")
    lane = Lane("m", generation, 0.0)
    for rows in (1, 3, 8):
        fitted = fit(parse_request(message(bytes(16 * rows), rows=rows)), SIGNATURE)
        for value in range(3):
            data = np.full((rows, 4), value, np.float32).tobytes()
            request = Request(None, lane, fitted, request_id, 0.0, 1.0, False)  # type: ignore[arg-type]
            outputs = [Tensor("y", "FP32", (rows, 4), memoryview(data))]
            expected = MESSAGES["ModelInferResponse"].FromString(lane_part(lane) + write_answer(request, outputs))
            assert MESSAGES["ModelInferResponse"].FromString(render(request, outputs)) == expected
