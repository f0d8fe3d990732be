"""A router with `compat: triton`: what Triton's example clients look for by name."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import httpx
import numpy as np
import pytest
from support.serving_site import ServingSite, gather_bundle, generation, identity_bundle
from tritonclient.grpc import service_pb2, service_pb2_grpc


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    folder = tmp_path_factory.mktemp("compat")
    site = ServingSite(folder / "site", compat="triton")
    try:
        site.start_router()
        site.start_agent()
        site.serve("gather", generation(1, gather_bundle(folder / "gather")))
        site.serve("same", generation(1, identity_bundle(folder / "same")))
        yield site
    finally:
        site.stop()


def test_the_server_says_triton(site: ServingSite) -> None:
    assert httpx.get(f"{site.url}/v2").json()["name"] == "triton"
    with grpc.insecure_channel(site.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerMetadata(service_pb2.ServerMetadataRequest()).name == "triton"


def test_typed_requests_get_raw_answers(site: ServingSite) -> None:
    message = service_pb2.ModelInferRequest(model_name="gather")
    row = message.inputs.add(name="index", datatype="INT64", shape=[2])
    row.contents.int64_contents.extend([3, 1])
    with grpc.insecure_channel(site.grpc) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message)
    assert list(np.frombuffer(answer.raw_output_contents[0], np.float32)) == [30, 10]


def test_texts_that_clients_look_for(site: ServingSite) -> None:
    raw = {"inference-header-content-length": "0"}
    answer = httpx.post(f"{site.url}/v2/models/same/infer", content=b"1234", headers=raw)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(
        "Raw request must only have 1 input (found 1) to be deduced but got 4 inputs"
    )
    answer = httpx.get(f"{site.url}/v2/models/nothing")
    assert answer.json()["error"].startswith("Request for unknown model")
