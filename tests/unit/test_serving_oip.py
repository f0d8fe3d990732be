"""The OIP codec: whatever a client sends is understood exactly or refused with a typed 4xx."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.serving.client import decode_response, encode_request
from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.answer import split_rows, write_answer
from orchestrator.serving.protocol.oip import parse_request
from orchestrator.serving.protocol.signature import Signature, fit
from orchestrator.serving.protocol.tensors import TensorSpec, from_array, join_bytes

EXACT = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
}


def values(datatype: str) -> st.SearchStrategy[Any]:
    dtype = np.dtype(EXACT[datatype])
    if dtype.kind == "b":
        return st.booleans()
    if dtype.kind == "f":
        return st.floats(width=dtype.itemsize * 8, allow_nan=False, allow_infinity=False)
    return st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


@st.composite
def arrays(draw: st.DrawFn, binary: bool) -> np.ndarray:
    shape = tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)))
    count = int(np.prod(shape))
    if draw(st.integers(0, 4)) == 0:
        item = (
            st.binary(max_size=5)
            if binary
            else st.text(st.characters(exclude_categories=["Cs"]), max_size=5).map(str.encode)
        )
        items = np.empty(count, dtype=object)
        items[:] = draw(st.lists(item, min_size=count, max_size=count))
        return items.reshape(shape)
    datatype = draw(st.sampled_from(sorted(EXACT)))
    found = draw(st.lists(values(datatype), min_size=count, max_size=count))
    return np.array(found, dtype=EXACT[datatype]).reshape(shape)


@given(st.data(), st.booleans(), st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_every_value_survives_json_and_binary(data: st.DataObject, binary: bool, request_id: str | None) -> None:
    inputs = {f"t{i}": data.draw(arrays(binary)) for i in range(data.draw(st.integers(1, 3)))}
    body, headers = encode_request(inputs, binary=binary, request_id=request_id)
    length = headers.get("Inference-Header-Content-Length")
    request = parse_request(body, length.encode() if length else None)
    assert request.id == request_id
    assert list(request.inputs) == list(inputs)
    for name, array in inputs.items():
        tensor = request.inputs[name]
        assert bytes(tensor.data) == bytes(from_array(name, array).data)
        assert tensor.shape == array.shape


@given(st.data(), st.booleans())
def test_every_answer_survives(data: st.DataObject, binary: bool) -> None:
    outputs = [from_array(f"o{i}", data.draw(arrays(binary))) for i in range(data.draw(st.integers(1, 3)))]
    x = np.zeros((1, 1), np.float32)
    specs = tuple(TensorSpec(t.name, t.datatype, ("",) * len(t.shape)) for t in outputs)
    body, headers = encode_request({"x": x}, binary=binary)
    length = headers.get("Inference-Header-Content-Length")
    request = parse_request(body, length.encode() if length else None)
    fitted = fit(request, Signature((TensorSpec("x", "FP32", (1, 1)),), specs, 1))
    pieces, json_size = write_answer({}, fitted, outputs, "m", "3", "i")
    reply_headers = {"Inference-Header-Content-Length": str(json_size)} if json_size is not None else {}
    assert (json_size is None) is not binary
    answer = decode_response(b"".join(pieces), reply_headers)
    assert (answer.generation, answer.id) == (3, "i")
    for tensor in outputs:
        found = from_array(tensor.name, answer.outputs[tensor.name])
        assert (found.datatype, found.shape, bytes(found.data)) == (tensor.datatype, tensor.shape, bytes(tensor.data))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.booleans())
def test_rows_are_cut_where_they_were_joined(rows: list[int], text: bool) -> None:
    total = sum(rows)
    if text:
        array = np.empty((total, 2), dtype=object)
        array[:] = [[b"x" * i, b"y"] for i in range(total)] or array
    else:
        array = np.arange(total * 2, dtype=np.int32).reshape(total, 2)
    pieces = split_rows([from_array("o", array)], rows)
    place = 0
    for size, (piece,) in zip(rows, pieces, strict=True):
        assert piece.shape == (size, 2)
        assert np.array_equal(piece.array(), array[place : place + size])
        place += size


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "datatype", "data", "parameters", "binary_data_size", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
dims = st.sampled_from([0, 1, 2, -1, 2**31, 2**32, 2**62, 2**63, 1.5, "3", None, True])
tensor_like = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | json_values,
        "shape": st.lists(dims, max_size=10) | json_values,
        "datatype": st.sampled_from([*EXACT, "FP16", "BF16", "BYTES", "fp32", "FP8"]) | json_values,
        "data": json_values,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "shared_memory_region", "a"]), json_values)
        | json_values,
    },
)
request_like = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "inputs": st.lists(tensor_like, max_size=3) | json_values,
        "outputs": json_values,
        "parameters": json_values,
    },
)


@given(
    request_like,
    st.binary(max_size=20),
    st.none() | st.integers(0, 300).map(lambda n: str(n).encode()) | st.binary(max_size=8),
)
def test_nonsense_is_a_typed_client_error(request_json: Any, blob: bytes, header: bytes | None) -> None:
    body = json.dumps(request_json).encode() + blob
    for length in (header, str(len(body) - len(blob)).encode()):
        status, request = 200, None
        try:
            request = parse_request(body, length)
        except RequestError as error:
            status = error.status
        assert status == (200 if request else 400)


def infer(**tensor: Any) -> bytes:
    return orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2], **tensor}]})


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT8", [999, 1]), ("INT8", [1.0, 2.0]), ("INT8", [True, False]), ("INT8", ["1", "2"]), ("UINT8", [-1, 0]),
        ("UINT64", [-1, 0]), ("INT64", [2**63, 0]), ("UINT64", [2**64, 0]), ("FP32", [1e39, 0]), ("FP32", ["a", "b"]),
        ("FP32", [None, 1]), ("FP32", [True, False]), ("BOOL", [0, 1]), ("BOOL", ["true", "false"]), ("BOOL", [None, True]),
        ("FP16", [1, 2]), ("BF16", [1, 2]), ("BYTES", [1, 2]), ("BYTES", [None, "a"]), ("BYTES", [["a"], "b"]),
        ("FP32", [[1, 2], [3]]), ("FP32", [[1], [2]]), ("FP32", [[[1, 2]]]), ("FP32", {"a": 1}), ("FP32", 5),
        ("FP32", [{"a": 1}, 2]), ("FP32", []), ("FP32", [1, 2, 3]), ("FP99", [1, 2]), ("fp32", [1, 2]), ("BYTES", [[[["a", "b"]]]]),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_its_datatype(datatype: str, data: Any) -> None:
    try:
        body = infer(datatype=datatype, data=data)
    except TypeError:  # orjson writes at most 64 bits
        body = json.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": [2], "data": data}]}).encode()
    with pytest.raises(RequestError):
        parse_request(body, None)


@pytest.mark.parametrize("data", [[2**64 - 1, 0], [2**53 + 1, 2**63], [0, 1]])
def test_uint64_is_exact(data: list[int]) -> None:
    tensor = parse_request(infer(datatype="UINT64", data=data), None).inputs["x"]
    assert tensor.array().tolist() == data


@pytest.mark.parametrize(
    "shape", [[2**32, 2**32], [2**62], [64 << 20], [-1, 2], [2.0], ["2"], [True], None, 2, [1] * 9, [2**63]]
)
def test_shapes_are_checked_before_anything_is_allocated(shape: Any) -> None:
    with pytest.raises(RequestError):
        parse_request(infer(shape=shape), None)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"null", b"[]", b"\xef\xbb\xbf{}", b'{"inputs":[]} x', b'{"inputs":[NaN]}', b"[" * 200_000, b'{"a":' * 900 + b"1" + b"}" * 900,
        b'{"inputs":null}', b'{"inputs":[]}', b'{"inputs":[1]}', b'{"inputs":[{}]}', b'{"inputs":"\xff"}', b'{"inputs":["\\ud800"]}',
        b'{"id":{},"inputs":[]}', b'{"inputs":[],"inputs":[]}',
    ],
)  # fmt: skip
def test_texts_that_are_no_request(text: bytes) -> None:
    with pytest.raises(RequestError):
        parse_request(text, None)


def test_duplicate_keys_are_refused_wherever_they_are() -> None:
    good = b'{"inputs" : [{"name":"x","datatype":"BYTES","shape":[1],"data":["a\\": b"],"parameters":{"p":1}}]}'
    assert bytes(parse_request(good, None).inputs["x"].data) == join_bytes([b'a": b'])
    for bad in (
        good.replace(b'"name":"x"', b'"name":"y","name":"x"'),
        good.replace(b'"p":1', b'"p":1,"p" : 2'),
        good.replace(b'"inputs" :', b'"id":"a","id":"b","inputs":'),
    ):
        with pytest.raises(RequestError, match="two equal keys"):
            parse_request(bad, None)


def test_duplicate_keys_are_found_beside_a_mebibyte_of_numbers() -> None:
    numbers = b",".join([b"-1.25e+2"] * 140_000)
    good = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[140000],"data":[' + numbers + b"]}]}"
    assert len(good) > 1 << 20
    assert len(parse_request(good, None).inputs["x"].data) == 560_000
    for bad in (
        good.replace(b'"name":"x"', b'"name":"y","name":"x"'),
        good.replace(b'"data":', b'"data":[1],"data":'),
        good.replace(b'{"inputs":', b'{"id":"a","id":"b","inputs":'),
    ):
        with pytest.raises(RequestError, match="two equal keys"):
            parse_request(bad, None)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x" * 257}, {"id": 5}, {"parameters": []}, {"parameters": {"a": {}}}, {"parameters": {"a": None}},
        {"parameters": {"priority": -1}}, {"parameters": {"sequence_id": 1}}, {"parameters": {"triton_x": 1}},
        {"parameters": {"timeout": -1}}, {"parameters": {"timeout": "1"}}, {"parameters": {"binary_data_output": 1}},
        {"parameters": {str(i): 1 for i in range(65)}}, {"outputs": {}}, {"outputs": [1]}, {"outputs": [{}]},
        {"outputs": [{"name": "y"}, {"name": "y"}]}, {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
        {"outputs": [{"name": "y", "parameters": {"classification": 2}}]}, {"outputs": [{"name": "y"}] * 65},
    ],
)  # fmt: skip
def test_what_surrounds_the_tensors(change: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        parse_request(orjson.dumps({**orjson.loads(infer()), **change}), None)


@pytest.mark.parametrize(
    ("parameters", "blob", "header"),
    [
        ({"binary_data_size": 8}, b"12345678", b""), ({"binary_data_size": 8}, b"12345678", b"-1"), ({"binary_data_size": 8}, b"12345678", b"abc"),
        ({"binary_data_size": 8}, b"12345678", b"9" * 30), ({"binary_data_size": 9}, b"12345678", None), ({"binary_data_size": 4}, b"1234", None),
        ({"binary_data_size": -8}, b"12345678", None), ({"binary_data_size": 8}, b"123456789", None), ({"binary_data_size": "8"}, b"12345678", None),
        ({"binary_data_size": True}, b"12345678", None), ({"binary_data_size": 8, "shared_memory_region": "a"}, b"12345678", None), ({}, b"12345678", None),
    ],
)  # fmt: skip
def test_binary_sizes_that_lie(parameters: dict[str, Any], blob: bytes, header: bytes | None) -> None:
    text = orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": parameters}]})
    with pytest.raises(RequestError):
        parse_request(text + blob, str(len(text)).encode() if header is None else header)


@pytest.mark.parametrize("blob", [b"\xff\xff\xff\xff", b"\x01\0\0", b"\x02\0\0\0a", b"\0\0\0\0\0\0\0\0"])
def test_bytes_elements_that_lie(blob: bytes) -> None:
    row = {"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(blob)}}
    text = orjson.dumps({"inputs": [row]})
    with pytest.raises(RequestError):
        parse_request(text + blob, str(len(text)).encode())


SIGNATURE = Signature(
    (TensorSpec("a", "FP32", ("batch", "n")), TensorSpec("b", "INT64", ("batch", 2))),
    (TensorSpec("y", "FP32", ("batch",)),),
    4,
)


def test_a_request_is_put_into_the_models_order() -> None:
    body, _ = encode_request({"b": np.zeros((3, 2), np.int64), "a": np.zeros((3, 5), np.float32)}, binary=False)
    fitted = fit(parse_request(body, None), SIGNATURE)
    assert [tensor.name for tensor in fitted.inputs] == ["a", "b"]
    assert (fitted.rows, fitted.key, fitted.size_bytes) == (3, ((5,), (2,)), 3 * 5 * 4 + 3 * 2 * 8)


@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 5), (2, 2)), ((3, 5), (3, 3)), ((3,), (3, 2)), ((5, 5), (5, 2)), ((3, 5, 1), (3, 2))],
)
def test_shapes_that_the_model_does_not_take(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    body, _ = encode_request({"a": np.zeros(a, np.float32), "b": np.zeros(b, np.int64)}, binary=False)
    with pytest.raises(RequestError):
        fit(parse_request(body, None), SIGNATURE)


def test_names_and_types_that_the_model_does_not_have() -> None:
    good = {"a": np.zeros((1, 1), np.float32), "b": np.zeros((1, 2), np.int64)}
    for bad in ({"a": good["a"]}, {**good, "c": good["a"]}, {**good, "a": np.zeros((1, 1), np.float64)}):
        with pytest.raises(RequestError):
            fit(parse_request(encode_request(bad, binary=False)[0], None), SIGNATURE)
    body = orjson.loads(encode_request(good, binary=False)[0])
    body["outputs"] = [{"name": "z"}]
    with pytest.raises(RequestError, match="no output"):
        fit(parse_request(orjson.dumps(body), None), SIGNATURE)


@pytest.mark.parametrize(
    ("dims", "datatype", "max_batch", "body", "shape"),
    [
        (("batch", 2), "FP32", 8, b"12345678", (1, 2)),
        (("batch", "n"), "FP32", 8, b"12345678", (1, 2)),
        (("n",), "INT8", 1, b"123", (3,)),
        (("batch", 1), "BYTES", 8, b"hello", (1, 1)),
        (("batch", 2), "FP32", 8, b"1234567", None),
        (("a", "b"), "FP32", 1, b"12345678", None),
        (("n", 3), "FP32", 1, b"1234567", None),
        (("batch", 2), "BYTES", 8, b"hello", None),
    ],
)
def test_raw_requests(
    dims: tuple[Any, ...], datatype: str, max_batch: int, body: bytes, shape: tuple[int, ...] | None
) -> None:
    signature = Signature((TensorSpec("x", datatype, dims),), (TensorSpec("y", "FP32", ("batch",)),), max_batch)
    request = parse_request(body, b"0")
    if shape is None:
        with pytest.raises(RequestError):
            fit(request, signature)
        return
    fitted = fit(request, signature)
    assert fitted.inputs[0].shape == shape
    assert fitted.wanted[0].binary


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_json_never_hides_a_nan(value: float) -> None:
    body, _ = encode_request({"a": np.zeros((1, 1), np.float32), "b": np.zeros((1, 2), np.int64)}, binary=False)
    fitted = fit(parse_request(body, None), SIGNATURE)
    with pytest.raises(RequestError) as caught:
        write_answer({}, fitted, [from_array("y", np.array([value], np.float32))], "m", "1", None)
    assert (caught.value.status, caught.value.kind) == (500, "non_finite")
