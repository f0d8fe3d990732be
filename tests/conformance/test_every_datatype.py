"""Triton's four clients, unmodified, over every datatype and every way to send it; the replicas are echoes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from ml_dtypes import bfloat16
from support.link_replica import DATATYPES
from support.serving_site import ServingSite
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

VALUES: dict[str, np.ndarray] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 255, 7]], np.uint8),
    "UINT16": np.array([[0, 2**16 - 1, 7]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1, 7]], np.uint32),
    "UINT64": np.array([[2**53 + 1, 2**64 - 1, 0]], np.uint64),
    "INT8": np.array([[-128, 127, 0]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1, 0]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1, 0]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1, 2**53 + 1]], np.int64),
    "FP16": np.array([[0.5, -65504, 6e-8]], np.float16),
    "BF16": np.array([[0.5, -256.0, 2.0**100]], bfloat16),
    "FP32": np.array([[0.1, -3.4e38, 1e-45]], np.float32),
    "FP64": np.array([[0.1, -1.7e308, 5e-324]], np.float64),
    "BYTES": np.array([[b"", "größe ✓".encode(), b"a\0\nb"]], object),
}
BINARY_ONLY = ("FP16", "BF16")
FIELDS = {
    "BOOL": "bool", "UINT8": "uint", "UINT16": "uint", "UINT32": "uint", "UINT64": "uint64", "INT8": "int", "INT16": "int",
    "INT32": "int", "INT64": "int64", "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes",
}  # fmt: skip

Sent = Sequence[tuple[str, np.ndarray, bool]]
Wanted = Sequence[tuple[str, bool]] | None
Infer = Callable[..., Any]


def _http(kind: Any, sent: Sent, wanted: Wanted) -> tuple[list[Any], list[Any] | None]:
    inputs = [
        kind.InferInput(datatype.lower(), list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary)
        for datatype, array, binary in sent
    ]
    return inputs, wanted and [kind.InferRequestedOutput(name, binary_data=binary) for name, binary in wanted]


def _grpc(kind: Any, sent: Sent, wanted: Wanted) -> tuple[list[Any], list[Any] | None]:
    inputs = [kind.InferInput(d.lower(), list(a.shape), d).set_data_from_numpy(a) for d, a, _ in sent]
    return inputs, wanted and [kind.InferRequestedOutput(name) for name, _ in wanted]


CLIENTS: dict[str, tuple[Any, Callable[..., tuple[list[Any], list[Any] | None]]]] = {
    "http": (triton_http, _http),
    "http.aio": (triton_http_aio, _http),
    "grpc": (triton_grpc, _grpc),
    "grpc.aio": (triton_grpc_aio, _grpc),
}


@pytest.fixture(params=CLIENTS)
def infer(echo_site: ServingSite, request: pytest.FixtureRequest) -> Infer:
    """Ask a model through one of the clients: (model, what is sent, what is wanted, the client's own options)."""
    name: str = request.param
    kind, make = CLIENTS[name]
    address = echo_site.url.removeprefix("http://") if name.startswith("http") else echo_site.grpc

    def ask(model: str, sent: Sent, wanted: Wanted = None, **options: Any) -> Any:
        inputs, outputs = make(kind, sent, wanted)
        if not name.endswith("aio"):
            with kind.InferenceServerClient(address) as client:
                return client.infer(model, inputs, outputs=outputs, **options)

        async def run() -> Any:
            async with kind.InferenceServerClient(address) as client:
                return await client.infer(model, inputs, outputs=outputs, **options)

        return asyncio.run(run())

    return ask


def same(found: np.ndarray, sent: np.ndarray) -> bool:
    if sent.dtype == object:
        items = [item.encode() if isinstance(item, str) else item for item in found.reshape(-1)]
        return found.shape == sent.shape and items == list(sent.reshape(-1))
    return found.dtype == sent.dtype and found.shape == sent.shape and found.tobytes() == sent.tobytes()


@pytest.mark.parametrize("datatype", DATATYPES)
def test_each_datatype_comes_back_bit_by_bit(infer: Infer, datatype: str, request: pytest.FixtureRequest) -> None:
    name, output, array = datatype.lower(), f"{datatype.lower()}_out", VALUES[datatype]
    json_too = datatype not in BINARY_ONLY and "http" in request.node.name
    for binary_in in (True, False) if json_too else (True,):
        for binary_out in (True, False) if json_too else (True,):
            result = infer(name, [(datatype, array, binary_in)], [(output, binary_out)])
            assert same(result.as_numpy(output), array), (binary_in, binary_out)
    empty = infer(name, [(datatype, array[:, :0], True)])
    assert empty.as_numpy(output).shape == (1, 0)


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_nan_and_infinity_travel_as_binary(infer: Infer, datatype: str) -> None:
    array = np.array([[np.nan, np.inf, -np.inf]], VALUES[datatype].dtype)
    assert same(infer(datatype.lower(), [(datatype, array, True)]).as_numpy(f"{datatype.lower()}_out"), array)


def test_all_datatypes_in_one_request_in_any_mix(infer: Infer) -> None:
    order = list(reversed(DATATYPES))
    sent = [(d, VALUES[d], d in BINARY_ONLY or i % 2 == 0) for i, d in enumerate(order)]
    result = infer("all", sent)
    for datatype in DATATYPES:
        assert same(result.as_numpy(f"{datatype.lower()}_out"), VALUES[datatype]), datatype
    wanted = [("bytes_out", False), ("fp16_out", True), ("uint64_out", False), ("bf16_out", True), ("bool_out", True)]
    result = infer("all", sent, wanted)
    response = result.get_response()
    rows = response["outputs"] if isinstance(response, dict) else response.outputs
    names = [row["name"] if isinstance(row, dict) else row.name for row in rows]
    assert names == [name for name, _ in wanted]
    for name, _ in wanted:
        assert same(result.as_numpy(name), VALUES[name.removesuffix("_out").upper()]), name


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_ids_parameters_and_compression(infer: Infer, coding: str, request: pytest.FixtureRequest) -> None:
    over_http = "http" in request.node.name
    wide = np.arange(8_000, dtype=np.int32).reshape(1, 8_000)
    codings = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
    result = infer(
        "int32",
        [("INT32", wide, True)],
        request_id="größe-7",
        model_version="1",
        priority=3,
        timeout=9_000_000,
        parameters={"text": "a", "number": 7, "share": 0.5, "flag": True},
        **(codings if over_http else {"compression_algorithm": coding}),
    )
    response = result.get_response()
    told = response if isinstance(response, dict) else {"id": response.id, "model_version": response.model_version}
    assert (told["id"], told["model_version"]) == ("größe-7", "1")
    assert same(result.as_numpy("int32_out"), wide)


def test_errors_are_typed_in_every_client(infer: Infer, request: pytest.FixtureRequest) -> None:
    over_http = "http" in request.node.name
    good = [("INT32", VALUES["INT32"], True)]
    bad: list[tuple[str, Sent, Wanted, dict[str, Any], tuple[str, str], str]] = [
        ("nothing", good, None, {}, ("404", "NOT_FOUND"), "unknown model"),
        ("int32", good, None, {"model_version": "9"}, ("404", "NOT_FOUND"), "version 9 is not found"),
        ("int64", good, None, {}, ("400", "INVALID_ARGUMENT"), r"inputs are \['int32'\], the model takes \['int64'\]"),
        ("int32", good, [("other", True)], {}, ("400", "INVALID_ARGUMENT"), r"no output \['other'\]"),
        ("int32", good * 2, None, {}, ("400", "INVALID_ARGUMENT"), "given twice"),
        ("int32", good, None, {"sequence_id": 5}, ("400", "INVALID_ARGUMENT"), r"'sequence_\w+' is not supported"),
        ("int32", good, None, {"request_id": "x" * 300}, ("400", "INVALID_ARGUMENT"), "at most 256 bytes"),
        ("int32", [("INT32", np.zeros((33, 1), np.int32), True)], None, {}, ("400", "INVALID_ARGUMENT"), "at most 32"),
        ("int32", [("INT32", np.zeros((1, 1, 1), np.int32), True)], None, {}, ("400", "INVALID_ARGUMENT"), "has shape"),
    ]  # fmt: skip
    for model, sent, wanted, options, codes, text in bad:
        with pytest.raises(InferenceServerException, match=text) as caught:
            infer(model, sent, wanted, **options)
        assert codes[0 if over_http else 1] in str(caught.value.status()), text
    assert same(infer("int32", good).as_numpy("int32_out"), VALUES["INT32"])


@pytest.mark.parametrize("datatype", BINARY_ONLY)
def test_json_cannot_carry_half_precision(echo_site: ServingSite, datatype: str) -> None:
    name = datatype.lower()
    tensor = {"name": name, "datatype": datatype, "shape": [1, 1], "data": [0.5]}
    answer = httpx.post(f"{echo_site.url}/v2/models/{name}/infer", json={"inputs": [tensor]})
    assert (answer.status_code, "must be sent as binary data" in answer.json()["error"]) == (400, True)
    array = VALUES[datatype]
    with triton_http.InferenceServerClient(echo_site.url.removeprefix("http://")) as client:
        sent, wanted = _http(triton_http, [(datatype, array, True)], [(f"{name}_out", False)])
        with pytest.raises(InferenceServerException, match="JSON cannot carry") as caught:
            client.infer(name, sent, outputs=wanted)
        assert caught.value.status() == "400"


@pytest.mark.parametrize("datatype", FIELDS)
def test_typed_contents_over_grpc(echo_site: ServingSite, datatype: str) -> None:
    array = VALUES[datatype]
    message = service_pb2.ModelInferRequest(model_name=datatype.lower())
    tensor = message.inputs.add(name=datatype.lower(), datatype=datatype, shape=array.shape)
    field = f"{FIELDS[datatype]}_contents"
    getattr(tensor.contents, field).extend(array.reshape(-1).tolist())
    with grpc.insecure_channel(echo_site.grpc) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message)
    assert not answer.raw_output_contents
    assert list(getattr(answer.outputs[0].contents, field)) == array.reshape(-1).tolist()
