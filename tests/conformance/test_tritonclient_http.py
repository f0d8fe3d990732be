"""Triton's own client, unmodified, against our router."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from support.serving_site import ServingSite, gather_bundle, generation, identity_bundle, scale_bundle
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    folder = tmp_path_factory.mktemp("triton")
    site = ServingSite(folder / "site")
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
    with triton.InferenceServerClient(site.url.removeprefix("http://"), concurrency=4) as client:
        yield client


def scale_input(x: np.ndarray, binary: bool = True) -> Any:
    tensor = triton.InferInput("x", list(x.shape), np_to_triton_dtype(x.dtype))
    tensor.set_data_from_numpy(x, binary_data=binary)
    return tensor


X = np.arange(8, dtype=np.float32).reshape(2, 4)


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scale")
    assert client.is_model_ready("scale", "1")
    assert not client.is_model_ready("scale", "9")
    assert not client.is_model_ready("nothing")
    server = client.get_server_metadata()
    assert server["name"] == "orchestrate"
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("scale")
    assert model["versions"] == ["1", "2"]
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert model["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}]
    assert client.get_model_metadata("scale", "1")["name"] == "scale"


def test_binary_is_the_default(client: Any) -> None:
    result = client.infer("scale", [scale_input(X)], request_id="7")
    response = result.get_response()
    assert np.array_equal(result.as_numpy("y"), X * 2)
    assert (response["model_name"], response["model_version"], response["id"]) == ("scale", "2", "7")
    assert response["outputs"][0]["parameters"]["binary_data_size"] == X.nbytes


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_requested_outputs_in_any_mix(client: Any, binary_in: bool, binary_out: bool) -> None:
    wanted = [triton.InferRequestedOutput("y", binary_data=binary_out)]
    result = client.infer("scale", [scale_input(X, binary_in)], outputs=wanted)
    assert np.array_equal(result.as_numpy("y"), X * 2)
    assert ("data" in result.get_output("y")) is not binary_out
    assert "id" not in result.get_response()


def test_versions(client: Any) -> None:
    for version, factor in (("1", 1), ("2", 2), ("", 2)):
        result = client.infer("scale", [scale_input(X)], model_version=version)
        assert np.array_equal(result.as_numpy("y"), X * factor)
        assert result.get_response()["model_version"] == (version or "2")


def test_selection_and_order_of_outputs_and_every_type(client: Any) -> None:
    values = {
        "flag": np.array([[True, False]]),
        "u64": np.array([[2**64 - 1, 2**53 + 1]], np.uint64),
        "i8": np.array([[-128, 127]], np.int8),
        "half": np.array([[0.5, 65504]], np.float16),
    }
    inputs = []
    for name, array in reversed(values.items()):
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array, binary_data=name in ("half", "u64")))
    result = client.infer("same", inputs)
    for name, array in values.items():
        assert np.array_equal(result.as_numpy(f"{name}_out"), array)
        assert result.as_numpy(f"{name}_out").dtype == array.dtype
    chosen = ["i8_out", "half_out", "u64_out"]
    wanted = [triton.InferRequestedOutput(name, binary_data=name == "half_out") for name in chosen]
    result = client.infer("same", inputs, outputs=wanted)
    assert [output["name"] for output in result.get_response()["outputs"]] == chosen
    assert np.array_equal(result.as_numpy("u64_out"), values["u64"])
    with pytest.raises(InferenceServerException, match="FP16, which JSON cannot carry"):
        client.infer("same", inputs, outputs=[triton.InferRequestedOutput("half_out", binary_data=False)])


def test_prepared_bodies(client: Any) -> None:
    body, size = triton.InferenceServerClient.generate_request_body([scale_input(X)])
    response = client._post("v2/models/scale/infer", body, {"Inference-Header-Content-Length": size}, None)
    assert response.status_code == 200
    result = triton.InferenceServerClient.parse_response_body(
        response.read(), header_length=int(response.get("Inference-Header-Content-Length"))
    )
    assert np.array_equal(result.as_numpy("y"), X * 2)


def test_errors_are_what_the_client_understands(client: Any) -> None:
    cases = [
        (("nothing", [scale_input(X)]), "404", "Request for unknown model"),
        (("scale", [scale_input(X)], "9"), "404", "version 9 is not found"),
        (("scale", [scale_input(X.astype(np.int32))]), "400", "is INT32, the model takes FP32"),
        (("scale", [scale_input(X[:, :3])]), "400", "shape"),
    ]
    for call, status, text in cases:
        with pytest.raises(InferenceServerException, match=text) as caught:
            client.infer(*call)
        assert caught.value.status() == status
    index = triton.InferInput("index", [1], "INT64").set_data_from_numpy(np.array([9]))
    with pytest.raises(InferenceServerException, match="the model refuses this input") as caught:
        client.infer("gather", [index])
    assert caught.value.status() == "400"


def test_timeout_parameter_and_concurrency(client: Any) -> None:
    assert client.infer("scale", [scale_input(X)], timeout=5_000_000).as_numpy("y") is not None
    calls = [client.async_infer("scale", [scale_input(X + i)]) for i in range(20)]
    for i, call in enumerate(calls):
        assert np.array_equal(call.get_result().as_numpy("y"), (X + i) * 2)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_client_that_accepts_compression_gets_plain_answers(client: Any, algorithm: str) -> None:
    result = client.infer("scale", [scale_input(X)], response_compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("y"), X * 2)


def test_the_asyncio_client(site: ServingSite) -> None:
    import asyncio

    async def run() -> Any:
        async with triton_aio.InferenceServerClient(site.url.removeprefix("http://")) as client:
            tensor = triton_aio.InferInput("x", list(X.shape), "FP32").set_data_from_numpy(X)
            return (await client.infer("scale", [tensor])).as_numpy("y")

    assert np.array_equal(asyncio.run(run()), X * 2)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("rows", [2, 30])
def test_compressed_both_ways(client: Any, coding: str, binary: bool, rows: int) -> None:
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    result = client.infer(
        "scale",
        [scale_input(x, binary)],
        outputs=[triton.InferRequestedOutput("y", binary_data=binary)],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert np.array_equal(result.as_numpy("y"), x * 2)


def test_config_statistics_and_index(client: Any) -> None:
    assert client.get_model_config("scale")["max_batch_size"] == 32
    assert client.get_model_config("scale", "1")["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
    before = client.get_inference_statistics("scale", "2")["model_stats"][0]
    client.infer("scale", [scale_input(X)])
    with pytest.raises(InferenceServerException):
        client.infer("scale", [scale_input(X[:, :3])], model_version="2")
    (after,) = client.get_inference_statistics("scale", "2")["model_stats"]
    assert (after["name"], after["version"]) == ("scale", "2")
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["execution_count"] == before["execution_count"] + 1
    for name in ("success", "fail"):
        old, new = before["inference_stats"][name], after["inference_stats"][name]
        assert new["count"] == old["count"] + 1
        assert new["ns"] > old["ns"]
    assert {row["batch_size"] for row in after["batch_stats"]} >= {2}
    assert {(row["name"], row["version"]) for row in client.get_inference_statistics()["model_stats"]} >= {
        ("scale", "1"),
        ("scale", "2"),
        ("gather", "1"),
    }
    index = client.get_model_repository_index()
    assert {"name": "scale", "version": "1", "state": "READY", "reason": ""} in index
    with pytest.raises(InferenceServerException):
        client.load_model("scale")


def test_priority_and_timeout_parameters(client: Any) -> None:
    result = client.infer("scale", [scale_input(X)], priority=1, timeout=5_000_000)
    assert np.array_equal(result.as_numpy("y"), X * 2)
