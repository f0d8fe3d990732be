"""REST beyond the plain request: content codings under attack, large answers, deadlines, and clients that go."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from support.serving_site import ServingSite, gather_bundle, generation, identity_bundle, scale_bundle

GOOD = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}).encode()
INFER = "/v2/models/double/infer"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    folder = tmp_path_factory.mktemp("rest")
    site = ServingSite(folder / "site", queue_limit=8)
    try:
        site.start_router()
        site.start_agent()
        site.serve("double", generation(1, scale_bundle(folder / "double", 2.0)))
        site.serve("wide", generation(1, identity_bundle(folder / "wide")))
        site.serve("gather", generation(1, gather_bundle(folder / "gather")))
        yield site
    finally:
        site.stop()


@pytest.fixture
def http(site: ServingSite) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, timeout=20) as client:
        yield client


@pytest.fixture
def frozen(site: ServingSite) -> Iterator[None]:
    """The replica of `double` answers nothing until the end of the test."""
    (pid,) = site.replica_pids("double")
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


def row(site: ServingSite, endpoint: str = "double") -> dict[str, Any]:
    return next(found for found in site.admin.status()["generations"] if found["endpoint"] == endpoint)


def rss(site: ServingSite) -> int:
    assert site.router is not None
    return psutil.Process(site.router.pid).memory_info().rss


def test_a_bomb_costs_nothing(site: ServingSite, http: httpx.Client) -> None:
    bombs = {"gzip": gzip.compress(bytes(100 << 20), 9), "deflate": zlib.compress(bytes(100 << 20), 9)}
    before = rss(site)
    for coding, bomb in bombs.items():
        answer = http.post(INFER, content=bomb, headers={"content-encoding": coding})
        assert answer.status_code == 413
        assert "over" in answer.json()["error"]
    assert rss(site) - before < 50 << 20
    assert http.post(INFER, content=GOOD).status_code == 200


def test_a_large_coded_body_is_decoded_aside_and_keeps_its_turn(site: ServingSite) -> None:
    index = np.tile(np.array([0, 1, 2, 3], np.int64), 8)
    numbers = ",".join(str(value) for value in index.tolist())
    text = b'{"inputs":[{"name":"index","datatype":"INT64","shape":[32],"data":[%s]}]%s}' % (
        numbers.encode(),
        b" " * 900_000 + os.urandom(30_000).hex().encode().join((b',"note":"', b'"')),
    )
    body = gzip.compress(text, 1)
    assert len(body) > 16 << 10
    head = "POST /v2/models/gather/infer HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\n"
    first = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    second = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as wire:
        wire.sendall(first + second)
        found = b""
        while data := wire.recv(65536):
            found += data
    answers = found.split(b"HTTP/1.1 200 OK\r\n")
    assert len(answers) == 3
    assert b'"picked"' in answers[1]
    assert answers[2].endswith(b'{"live":true}')


@pytest.mark.parametrize(("width", "coded"), [(100, False), (4000, True), (60_000, True)])
def test_large_answers_are_coded_where_the_client_accepts_it(
    site: ServingSite, http: httpx.Client, width: int, coded: bool
) -> None:
    kinds = {"flag": "BOOL", "u64": "UINT64", "i8": "INT8", "half": "FP16"}
    sizes = {"flag": 1, "u64": 8, "i8": 1, "half": 2}
    inputs = [
        {"name": k, "datatype": v, "shape": [1, width], "parameters": {"binary_data_size": sizes[k] * width}}
        for k, v in kinds.items()
    ]
    head = json.dumps({"parameters": {"binary_data_output": True}, "inputs": inputs}).encode()
    body = head + np.ones(width, "?").tobytes() + np.arange(width, dtype="<u8").tobytes() + bytes(3 * width)
    headers = {"inference-header-content-length": str(len(head))}
    for accept in ("gzip", "deflate", "identity"):
        answer = http.post("/v2/models/wide/infer", content=body, headers={**headers, "accept-encoding": accept})
        assert answer.status_code == 200, answer.text
        expected = accept if coded and accept != "identity" else None
        assert answer.headers.get("content-encoding") == expected
        size = int(answer.headers["inference-header-content-length"])
        assert len(answer.content) == size + 12 * width
        assert np.array_equal(np.frombuffer(answer.content[size + width : size + 9 * width], "<u8"), np.arange(width))


def test_a_raw_request_is_one_row(http: httpx.Client) -> None:
    x = np.arange(4, dtype=np.float32)
    answer = http.post(INFER, content=x.tobytes(), headers={"inference-header-content-length": "0"})
    size = int(answer.headers["inference-header-content-length"])
    assert np.array_equal(np.frombuffer(answer.content[size:], np.float32), x * 2)


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("way", ["parameter", "header"])
def test_what_is_too_late_never_reaches_the_device(site: ServingSite, http: httpx.Client, way: str) -> None:
    before = row(site)["in_flight"]
    body: dict[str, Any] = json.loads(GOOD)
    headers = {"x-request-timeout-seconds": "0.1"} if way == "header" else {}
    if way == "parameter":
        body["parameters"] = {"timeout": 100_000}
    # One after the other: what arrives together would leave in one batch.
    found = [http.post(INFER, json=body, headers=headers) for _ in range(4)]
    assert [answer.status_code for answer in found] == [504] * 4
    found_row = row(site)
    assert found_row["queued"] == 0
    assert found_row["in_flight"] - before <= 2  # what its credits let it take at once


@pytest.mark.usefixtures("frozen")
def test_a_client_that_goes_frees_its_place_and_a_full_queue_says_when_to_come_back(site: ServingSite) -> None:
    host, port = site.url.removeprefix("http://").split(":")
    request = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(GOOD)}\r\n\r\n".encode() + GOOD
    wires = [socket.create_connection((host, int(port)), timeout=20) for _ in range(16)]
    for number, wire in enumerate(wires):
        wire.sendall(request)
        if number < 2:  # what arrives together would leave in one batch
            site.wait(lambda: row(site)["in_flight"] + row(site)["queued"] > number, 5, "it is here")  # noqa: B023
    site.wait(lambda: row(site)["queued"] == 8, 5, "the queue is full")
    with httpx.Client(base_url=site.url, timeout=20) as client:
        answer = client.post(INFER, content=GOOD)
    assert (answer.status_code, 1 <= int(answer.headers["retry-after"]) <= 60) == (429, True)
    for wire in wires:
        wire.close()
    site.wait(lambda: row(site)["queued"] == 0, 1, "nobody waits")
