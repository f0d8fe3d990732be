"""Triton's own gRPC clients and plain grpc.aio, unmodified, against our router."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from support.serving_site import ServingSite, gather_bundle, generation, identity_bundle, scale_bundle
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from orchestrator.serving.protocol.proto import load_messages

PROTO = Path(__file__).parents[2] / "orchestrator" / "serving"
X = np.arange(8, dtype=np.float32).reshape(2, 4)
LIMIT = 80
"""More than one stream may have under way, so that a stream alone never finds the queue full."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    folder = tmp_path_factory.mktemp("grpc")
    site = ServingSite(folder / "site", queue_limit=LIMIT)
    try:
        site.start_router()
        site.start_agent()
        one, two = scale_bundle(folder / "one", 1.0), scale_bundle(folder / "two", 2.0)
        site.serve("scale", generation(1, one, 0), generation(2, two, 100))
        site.serve("same", generation(1, identity_bundle(folder / "same")))
        site.serve("gather", generation(1, gather_bundle(folder / "gather")))
        yield site
    finally:
        site.stop()


@pytest.fixture
def client(site: ServingSite) -> Iterator[Any]:
    with triton.InferenceServerClient(site.grpc) as client:
        yield client


@pytest.fixture
def stub(site: ServingSite) -> Iterator[Any]:
    with grpc.insecure_channel(site.grpc, [("grpc.max_send_message_length", -1)]) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@contextlib.contextmanager
def frozen(site: ServingSite, endpoint: str) -> Iterator[None]:
    """The replicas of an endpoint answer nothing."""
    pids = site.replica_pids(endpoint)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def scale_input(x: np.ndarray, kind: Any = triton) -> Any:
    return kind.InferInput("x", list(x.shape), np_to_triton_dtype(x.dtype)).set_data_from_numpy(x)


def test_our_messages_are_those_of_the_public_protocol() -> None:
    ours = load_messages(PROTO / "protocol" / "inference.proto")
    assert len(ours) > 30
    for name, kind in ours.items():
        source = model_config_pb2 if hasattr(model_config_pb2, name.split(".")[0]) else service_pb2
        theirs = source
        for part in name.split("."):
            theirs = getattr(theirs, part)
        known = {field.name: field for field in theirs.DESCRIPTOR.fields}
        for field in kind.DESCRIPTOR.fields:
            other = known[field.name]
            same = (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)
            assert same, (name, field.name)
            assert (field.containing_oneof is None) == (other.containing_oneof is None), (name, field.name)


def test_health_and_descriptions(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scale")
    assert client.is_model_ready("scale", "1")
    assert not client.is_model_ready("scale", "9")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata().name == "orchestrate"
    model = client.get_model_metadata("scale", as_json=True)
    assert model["versions"] == ["1", "2"]
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    config = client.get_model_config("scale", "2").config
    assert (config.name, config.max_batch_size, config.backend) == ("scale", 32, "onnx-cpu")
    assert (config.input[0].name, config.input[0].data_type, list(config.input[0].dims)) == (
        "x",
        model_config_pb2.TYPE_FP32,
        [4],
    )
    index = {(m.name, m.version, m.state) for m in client.get_model_repository_index().models}
    assert ("scale", "1", "READY") in index
    assert {(m.name, m.version) for m in client.get_inference_statistics().model_stats} >= {("scale", "1")}


def test_statistics_count(client: Any) -> None:
    before = client.get_inference_statistics("scale", "2").model_stats[0]
    client.infer("scale", [scale_input(X)])
    after = client.get_inference_statistics("scale", "2").model_stats[0]
    assert after.inference_count == before.inference_count + 2
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.inference_stats.success.ns > before.inference_stats.success.ns


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_infer(client: Any, compression: str | None) -> None:
    wanted = [triton.InferRequestedOutput("y")]
    result = client.infer(
        "scale", [scale_input(X)], outputs=wanted, request_id="7", priority=1, timeout=9_000_000,
        client_timeout=9, compression_algorithm=compression,
    )  # fmt: skip
    answer = result.get_response()
    assert np.array_equal(result.as_numpy("y"), X * 2)
    assert (answer.model_name, answer.model_version, answer.id) == ("scale", "2", "7")
    assert answer.parameters["device"].string_param == "cpu (rehearsal)"
    assert answer.parameters["bundle"].string_param.startswith("sha256:")
    assert np.array_equal(client.infer("scale", [scale_input(X)], model_version="1").as_numpy("y"), X)


def test_every_datatype_raw_and_typed(client: Any, stub: Any) -> None:
    arrays = {
        "flag": np.array([[True, False, True]]),
        "u64": np.array([[0, 2**53 + 1, 2**64 - 1]], np.uint64),
        "i8": np.array([[-128, 0, 127]], np.int8),
        "half": np.array([[0.5, -1, 65504]], np.float16),
    }
    inputs = [
        triton.InferInput(name, [1, 3], np_to_triton_dtype(array.dtype)).set_data_from_numpy(array)
        for name, array in arrays.items()
    ]
    result = client.infer("same", inputs)
    for name, array in arrays.items():
        assert np.array_equal(result.as_numpy(f"{name}_out"), array)
    index = service_pb2.ModelInferRequest.InferInputTensor(name="index", datatype="INT64", shape=[2])
    index.contents.int64_contents.extend([3, 1])
    answer = stub.ModelInfer(service_pb2.ModelInferRequest(model_name="gather", inputs=[index]))
    assert list(answer.outputs[0].contents.fp32_contents) == [30, 10]
    assert not answer.raw_output_contents


def _request(**changes: Any) -> Any:
    message = service_pb2.ModelInferRequest(model_name="scale", raw_input_contents=[X.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=[2, 4])
    for name, value in changes.items():
        if name in ("name", "datatype"):
            setattr(message.inputs[0], name, value)
        elif name == "shape":
            del message.inputs[0].shape[:]
            message.inputs[0].shape.extend(value)
        elif name == "raw":
            del message.raw_input_contents[:]
            message.raw_input_contents.extend(value)
        elif name == "typed":
            message.inputs[0].contents.MergeFrom(service_pb2.InferTensorContents(**value))
        elif name == "parameter":
            message.parameters[value].int64_param = 1
        else:
            setattr(message, name, value)
    return message


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown model": ({"model_name": "nothing"}, "NOT_FOUND", "Request for unknown model"),
    "unknown version": ({"model_version": "9"}, "NOT_FOUND", "version 9 is not found"),
    "line ends in a name": ({"model_name": "a\r\nb"}, "NOT_FOUND", r"a\\r\\nb"),
    "wrong input": ({"name": "z"}, "INVALID_ARGUMENT", "inputs are"),
    "no name": ({"name": ""}, "INVALID_ARGUMENT", "name"),
    "datatype": ({"datatype": "fp32"}, "INVALID_ARGUMENT", "datatype must be one of"),
    "negative shape": ({"shape": [-1, 4]}, "INVALID_ARGUMENT", "0 or more"),
    "huge shape": ({"shape": [2**62, 4]}, "INVALID_ARGUMENT", "are allowed"),
    "rank": ({"shape": [1] * 5000}, "INVALID_ARGUMENT", "at most 8"),
    "short data": ({"raw": [b"123"]}, "INVALID_ARGUMENT", "holds 3 bytes"),
    "two blobs": ({"raw": [X.tobytes()] * 2}, "INVALID_ARGUMENT", "2 entries for 1 inputs"),
    "both forms": ({"typed": {"fp32_contents": [1.0]}}, "INVALID_ARGUMENT", "beside raw_input_contents"),
    "wrong field": ({"raw": [], "typed": {"int_contents": [1]}}, "INVALID_ARGUMENT", "fp32_contents, not int_contents"),
    "few values": ({"raw": [], "typed": {"fp32_contents": [1]}}, "INVALID_ARGUMENT", "has 1 elements"),
    "no values": ({"raw": []}, "INVALID_ARGUMENT", "has 0 elements"),
    "typed half": ({"raw": [], "datatype": "FP16"}, "INVALID_ARGUMENT", "raw_input_contents"),
    "small integer": ({"raw": [], "datatype": "INT8", "shape": [1], "typed": {"int_contents": [999]}},
                      "INVALID_ARGUMENT", "out of the range"),
    "reserved": ({"parameter": "sequence_id"}, "INVALID_ARGUMENT", "not supported"),
    "long id": ({"id": "x" * 300}, "INVALID_ARGUMENT", "256 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(stub: Any, case: str) -> None:
    changes, code, text = BAD[case]
    with pytest.raises(grpc.RpcError, match=text) as found:
        stub.ModelInfer(_request(**changes))
    assert found.value.code() is grpc.StatusCode[code]
    assert "\n" not in found.value.details()
    assert np.frombuffer(stub.ModelInfer(_request()).raw_output_contents[0], np.float32)[7] == 14


def test_garbage_and_unserved_calls(site: ServingSite, stub: Any) -> None:
    with grpc.insecure_channel(site.grpc) as channel:
        for method in ("ModelInfer", "ModelMetadata"):
            with pytest.raises(grpc.RpcError) as found:
                channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"\xff\xff\xff")
            assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as found:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"\xff\xff\xff")
        assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as found:
        stub.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(model_name="scale"))
    assert found.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_oversize_is_refused_and_not_kept(site: ServingSite, stub: Any, compression: Any) -> None:
    assert site.router is not None
    process = psutil.Process(site.router.pid)
    before = process.memory_info().rss
    with pytest.raises(grpc.RpcError) as found:
        stub.ModelInfer(_request(raw=[bytes(80 << 20)]), compression=compression)
    assert found.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert process.memory_info().rss - before < 150 << 20
    stub.ModelInfer(_request())


def test_a_stream_answers_in_order_and_survives_errors(client: Any) -> None:
    found: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: found.put((result, error)))
    for i in range(100):
        model = "nothing" if i == 50 else "scale"
        client.async_stream_infer(model, [scale_input(X + i)], request_id=str(i), enable_empty_final_response=True)
    for i in range(100):
        result, error = found.get(timeout=20)
        if i == 50:
            assert "unknown model" in str(error)
            continue
        assert error is None
        answer = result.get_response()
        assert (answer.id, answer.parameters["triton_final_response"].bool_param) == (str(i), True)
        assert np.array_equal(result.as_numpy("y"), (X + i) * 2)
    client.stop_stream()


def test_a_deadline_is_kept_and_a_cancelled_call_leaves_the_queue(site: ServingSite, client: Any) -> None:
    def queued(what: str = "queued") -> int:
        return sum(r[what] for r in site.admin.status()["generations"] if r["endpoint"] == "gather")

    index = triton.InferInput("index", [1], "INT64").set_data_from_numpy(np.array([1]))
    with frozen(site, "gather"):
        calls = []
        for number in range(LIMIT + 2):
            calls.append(client.async_infer("gather", [index], callback=lambda *_: None))
            if number < 2:  # the replica holds two batches; what arrives together would leave in one
                site.wait(lambda number=number: queued("in_flight") > number, 10, "the replica has a batch")
        site.wait(lambda: queued() == LIMIT, 10, "the queue is full")
        with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
            client.infer("gather", [index])
        for call in calls:
            call.cancel()
        site.wait(lambda: queued() == 0, 2, "nobody waits")
        with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED"):
            client.infer("gather", [index], client_timeout=0.2)
        with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED"):
            client.infer("gather", [index], timeout=100_000)
        site.wait(lambda: queued() == 0, 2, "nobody waits")
    assert client.infer("gather", [index]).as_numpy("picked")[0] == 10
    assert "Traceback" not in (site.folder / "router.log").read_text()


def test_no_replica_is_unavailable_and_health_says_so(site: ServingSite, client: Any, tmp_path: Path) -> None:
    messages = load_messages(PROTO / "router" / "health.proto")
    table = site.admin.table().to_json()["endpoints"]
    with grpc.insecure_channel(site.grpc) as channel:

        def check(service: str = "") -> int:
            ask = channel.unary_unary("/grpc.health.v1.Health/Check")
            data = ask(messages["HealthCheckRequest"](service=service).SerializeToString())
            return messages["HealthCheckResponse"].FromString(data).status

        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        told = (messages["HealthCheckResponse"].FromString(data).status for data in watch)
        assert check() == check("inference.GRPCInferenceService") == next(told) == 1
        with pytest.raises(grpc.RpcError) as found:
            check("other")
        assert found.value.code() is grpc.StatusCode.NOT_FOUND
        empty = {**table, "empty": {"pool": "other", "generations": [generation(1, scale_bundle(tmp_path / "e", 1.0))]}}
        site.put(empty)
        try:
            assert next(told) == 2
            assert not client.is_server_ready()
            with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
                client.infer("empty", [scale_input(X)])
        finally:
            site.put(table)
        assert next(told) == 1
        watch.cancel()


def test_the_aio_client(site: ServingSite) -> None:
    async def calls() -> None:
        async with triton_aio.InferenceServerClient(site.grpc) as client:
            assert await client.is_server_ready()
            found = await asyncio.gather(
                *(client.infer("scale", [scale_input(X + i, triton_aio)]) for i in range(4)), return_exceptions=False
            )
            assert all(np.array_equal(r.as_numpy("y"), (X + i) * 2) for i, r in enumerate(found))

            async def requests() -> Any:
                for i in range(5):
                    yield {"model_name": "scale", "inputs": [scale_input(X + i, triton_aio)], "request_id": str(i)}

            ids = [result.get_response().id async for result, error in client.stream_infer(requests()) if error is None]
            assert ids == ["0", "1", "2", "3", "4"]

    asyncio.run(calls())


def test_http_and_grpc_write_the_same_events(site: ServingSite, client: Any) -> None:
    before = site.admin.events(limit=10_000)["last"]
    client.infer(
        "scale", [scale_input(X)], headers={"x-orchestrate-probe": "1"}
    )  # nobody is believed to be a probe here
    with pytest.raises(InferenceServerException):
        client.infer("scale", [scale_input(X[:, :3])])
    rows = site.admin.events(after=before)["events"]
    assert [(e["status"], e["generation"], e["batch_size"], e["synthetic"]) for e in rows] == [
        (200, 2, 2, False),
        (400, 2, 0, False),
    ]


def test_plain_bytes_on_the_port_harm_nobody(site: ServingSite, stub: Any) -> None:
    host, port = site.grpc.rsplit(":", 1)
    for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(4096)):
        with socket.create_connection((host, int(port)), timeout=5) as wire:
            wire.sendall(data)
            with contextlib.suppress(OSError):
                wire.recv(100)
    stub.ModelInfer(_request())


def test_a_restarted_router_keeps_its_grpc_port(site: ServingSite) -> None:
    assert site.router is not None
    old = site.grpc
    site.router.terminate()
    site.router.wait(10)
    site.start_router()
    assert site.grpc == old
    with triton.InferenceServerClient(site.grpc) as client:
        site.wait(client.is_server_ready, 10, "replicas dial again")
        assert np.array_equal(client.infer("scale", [scale_input(X)]).as_numpy("y"), X * 2)
