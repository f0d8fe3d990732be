"""Requests of a known form come out exactly as the parser makes them, and are refused exactly as it refuses them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import orjson
import pytest

from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.forms import Forms
from orchestrator.serving.protocol.oip import InferRequest, parse_request
from orchestrator.serving.protocol.oip_json import decode
from orchestrator.serving.protocol.signature import Signature, fit
from orchestrator.serving.protocol.tensors import Buffer, Tensor, TensorSpec

ROW = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
SIGNATURE = Signature((TensorSpec("x", "FP32", ("batch", 4)),), (TensorSpec("y", "FP32", ("batch", 4)),), 8)


def outcome(parse: Callable[[Buffer, bytes | None], InferRequest], body: Buffer, length: bytes | None) -> object:
    """Return everything that a request says, or the error's text."""
    try:
        found = parse(body, length)
        tensors = [(x.name, x.datatype, x.shape, bytes(x.data)) for x in found.inputs.values()]
        fitted = fit(found, SIGNATURE)
    except RequestError as error:
        return error.message
    sent = [(x.name, bytes(x.data)) for x in fitted.inputs], fitted.wanted, fitted.rows, fitted.key, fitted.size_bytes
    return tensors, found._replace(inputs={}, form=None), sent


def bodies() -> Iterator[bytes]:
    """Yield JSON requests, whole and broken, of forms that repeat."""
    for data in (
        b"[1.5,2,3,4]",
        b"[0.1, 1e30, -0.0, 7]",
        b"[[1,2,3,4]]",
        b"[1.5,true,3,4]",
        b"[1,2,3]",
        b"[1,2,3,null]",
        b"[]",
    ):
        for rest in (
            b"",
            b',"outputs":[{"name":"y"}]',
            b',"parameters":{"timeout":5000}',
            b',"id":"7"',
            b',"note":"\\"data\\":"',
        ):
            yield b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":' + data + b"}]" + rest + b"}"
    for data in (b"1e39,1,1,1", b"1,2,3,4],[", b'1,2,3,4],"data":[1,2,3,4', b"NaN,1,1,1", b"{,1,1,1", b"1,2,3,4]}],[{"):
        yield b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[' + data + b"]}]}"
    yield b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4],"data":[1.5,2,3,4]}]}'
    yield b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}],"x":{"a\\"data":[1,2,3,4]}}'
    yield b'{"x":{"data":[1,2,3,4]},"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1.5,2,3,4]}]}'


def test_json_requests_of_a_known_form_are_parsed_alike() -> None:
    forms = Forms()
    found = list(bodies())
    random.Random(0).shuffle(found)
    for body in found * 2:
        assert outcome(forms.parse, body, None) == outcome(parse_request, body, None), body
        changed = bytearray(body)
        assert outcome(forms.parse, changed, None) == outcome(parse_request, changed, None), body


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (  # over 1 MiB two equal keys pass the parser
            b'"shape":[1,4],"data":[1,2,3,4],' + b" " * (1 << 20) + b'"shape":[4,1]',
            b'"shape":[1,4],"data":[1,2,3,4]',
        ),
        (b'"data":[1,2,3,4],"shape":[1,4]', b'"data":[1,2,3,4]'),
    ],
)
def test_keys_behind_the_data_say_nothing_about_the_next_request(first: bytes, then: bytes) -> None:
    forms = Forms()
    for body in (b'{"inputs":[{"name":"x","datatype":"FP32",' + rest + b"}]}" for rest in (first, then, then)):
        assert outcome(forms.parse, body, None) == outcome(parse_request, body, None)


def test_binary_requests_of_a_known_form_are_parsed_alike() -> None:
    forms = Forms()
    for rest in (
        {},
        {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
        {"id": "7"},
        {"parameters": {"priority": 3}},
    ):
        text = orjson.dumps({"inputs": [{**ROW, "parameters": {"binary_data_size": 16}}], **rest})
        for value in range(3):
            for blob in (bytes([value]) * 16, b"", bytes(15), bytes(17)):
                length = str(len(text)).encode()
                assert outcome(forms.parse, text + blob, length) == outcome(parse_request, text + blob, length)
    for length in (b"0", b"9999", b"", b"-1", b"abc", b"1" * 13):
        assert outcome(forms.parse, b"1234", length) == outcome(parse_request, b"1234", length)


def test_data_under_an_escaped_key_is_no_binary_form() -> None:
    head = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"\\u0064ata":[1,2,3,4]}]}'
    forms, length = Forms(), str(len(head)).encode()
    for body in (head, head + bytes(16), head):
        assert outcome(forms.parse, body, length) == outcome(parse_request, body, length)


def test_a_form_is_fitted_to_each_signature_on_its_own() -> None:
    forms = Forms()
    body = orjson.dumps({"inputs": [{**ROW, "data": [1.5, 2, 3, 4]}]})
    other = Signature((TensorSpec("x", "FP32", (1, 4)),), (TensorSpec("z", "FP32", (1, 4)),), 1)
    for _ in range(2):
        request = forms.parse(body, None)
        assert [row.name for row in fit(request, SIGNATURE).wanted] == ["y"]
        assert [row.name for row in fit(request, other).wanted] == ["z"]
        with pytest.raises(RequestError, match="FP64"):
            fit(request, Signature((TensorSpec("x", "FP64", (1, 4)),), (), 1))


@pytest.mark.parametrize(
    "datatype", ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP32", "FP64"]
)
def test_packed_numbers_are_those_of_numpy(datatype: str) -> None:
    """A flat list is packed, a nested one is converted by numpy: the same bytes, and the same errors."""
    rng = random.Random(1)
    pools: list[list[object]] = [
        [0, 1, -1, 127, 128, 255, 256, -129, 2**31, 2**32, -(2**31), 2**63 - 1, 2**53 + 1, True],
        [0.5, -0.0, 1e-45, 3.4028235e38, 3.4028236e38, 1e300, 1.0000000596046448, 16777217.0, 2**53 + 1, 3, True],
        [1, 2, 3, 100],
        [0.1, 0.7, 1 / 3, 1e-40],
        [1.5, None, "2"],
    ]
    seen = set[bool]()
    for pool in pools:
        for _ in range(60):
            values = [rng.choice(pool) for _ in range(3)]
            found: list[object] = []
            for data, shape in (values, (3,)), ([values], (1, 3)):
                try:
                    found.append(decode("x", datatype, shape, data))
                except RequestError as error:
                    found.append(error.message)
            same = found[0] == found[1]
            seen.add(isinstance(found[0], bytes))
            assert same or "nested" in str(found[1]) or "ragged" in str(found), (values, found)
    assert seen == {True, False}
    if datatype == "FP32":
        assert decode("x", "FP32", (2,), [0.1, 16777217.0]) == np.array([0.1, 16777217.0], np.float32).tobytes()


def test_inputs_of_one_request_have_as_many_rows_even_where_axis_0_has_no_name() -> None:
    specs = (TensorSpec("a", "FP32", ("", 1)), TensorSpec("b", "FP32", ("", 1)))
    inputs = {"a": Tensor("a", "FP32", (1, 1), bytes(4)), "b": Tensor("b", "FP32", (3, 1), bytes(12))}
    request = InferRequest(None, inputs, None, binary_output=True, timeout_us=None)
    with pytest.raises(RequestError, match=r"inputs have \[1, 3\] rows"):
        fit(request, Signature(specs, specs, 8))
    assert fit(request, Signature(specs, specs, 1)).rows == 1  # without batches axis 0 means nothing
