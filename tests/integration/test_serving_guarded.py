"""Tokens, TLS and client certificates on both public ports; the admin socket needs none of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from orchestrator.serving.client import OipClient
from orchestrator.serving.router.auth import add_token
from tests.support.certificates import Authority
from tests.support.serving_site import ServingSite, generation, scale_bundle

INFER = "/v2/models/double/infer"
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]})


class Guarded:
    """A site behind tokens and mTLS, and what its clients need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ours, self.strangers = Authority(folder, "ours"), Authority(folder, "strangers")
        self.cert, self.key = self.ours.issue("server")
        self.client, self.stranger = self.ours.issue("client"), self.strangers.issue("stranger")
        self.tokens = folder / "tokens"
        self.token, self.slow = add_token(self.tokens, "line"), add_token(self.tokens, "slow", 0.1, 2)
        self.site = ServingSite(
            folder / "site",
            tokens_file=str(self.tokens),
            tls_cert=str(self.cert),
            tls_key=str(self.key),
            tls_client_ca=str(self.ours.path),
        )

    def http(self, client: tuple[Path, Path] | None = None, token: str | None = None) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.ours.path))
        if client is not None:
            context.load_cert_chain(*client)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.site.url, verify=context, headers=headers, trust_env=False, timeout=10)

    def grpc(self, client: tuple[Path, Path] | None) -> triton_grpc.InferenceServerClient:
        pair = [path.read_bytes() for path in client] if client else [None, None]
        credentials = grpc.ssl_channel_credentials(self.ours.path.read_bytes(), pair[1], pair[0])
        return triton_grpc.InferenceServerClient(self.site.grpc, creds=credentials, ssl=True)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Generator[Guarded]:
    guarded = Guarded(tmp_path_factory.mktemp("guarded"))
    try:
        guarded.site.start_router()
        guarded.site.start_agent()
        guarded.site.serve("double", generation(1, scale_bundle(guarded.folder / "double", 2.0)))
        yield guarded
    finally:
        guarded.site.stop()


def test_with_certificate_and_token_one_gets_in(guarded: Guarded) -> None:
    assert guarded.site.url.startswith("https://127.0.0.1:")
    with guarded.http(guarded.client, guarded.token) as client:
        answer = client.post(INFER, content=BODY)
        assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, [2, 2, 2, 2])


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/models/double", "/v2//health/live", "/v2/health/live/", "/nothing", INFER]
)
@pytest.mark.parametrize("token", [None, "orc_wrong"])
def test_without_a_token_every_path_but_health_is_shut(guarded: Guarded, path: str, token: str | None) -> None:
    with guarded.http(guarded.client, token) as client:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
            answer = client.request(method, path, content=BODY if method == "POST" else None)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert method == "HEAD" or "bearer token" in answer.json()["error"]
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("who", ["nobody", "stranger"])
def test_without_a_certificate_of_ours_there_is_no_answer(guarded: Guarded, who: str) -> None:
    cert = guarded.stranger if who == "stranger" else None
    with guarded.http(cert, guarded.token) as client, pytest.raises(httpx.TransportError):
        client.get("/v2/health/live")
    with pytest.raises(InferenceServerException, match=r"UNAVAILABLE|failed to connect|handshake"):
        guarded.grpc(cert).is_server_live(client_timeout=5)


def test_old_tls_and_plain_text_are_refused(guarded: Guarded) -> None:
    address = ("127.0.0.1", int(guarded.site.url.rpartition(":")[2]))
    context = ssl.create_default_context(cafile=str(guarded.ours.path))
    context.load_cert_chain(*guarded.client)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(address, 5) as link, pytest.raises(OSError):  # noqa: PT011 (several texts)
        context.wrap_socket(link, server_hostname="127.0.0.1")
    with socket.create_connection(address, 5) as link:
        link.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" not in _rest(link)


def _rest(link: socket.socket) -> bytes:
    try:
        return link.recv(1000)
    except ConnectionResetError:
        return b""


def test_a_token_over_its_rate_waits(guarded: Guarded) -> None:
    with guarded.http(guarded.client, guarded.slow) as client:
        assert [client.post(INFER, content=BODY).status_code for _ in range(3)] == [200, 200, 429]
        answer = client.post(INFER, content=BODY)
        assert 1 <= int(answer.headers["retry-after"]) <= 10
        assert "token slow may send 0.1" in answer.json()["error"]
    with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
        guarded.grpc(guarded.client).get_server_metadata(headers=_bearer(guarded.slow))


def test_grpc_asks_for_the_same(guarded: Guarded) -> None:
    client = guarded.grpc(guarded.client)
    assert client.is_server_live()
    for headers in ({}, _bearer("orc_wrong")):
        with pytest.raises(InferenceServerException, match=r"UNAUTHENTICATED.*bearer token"):
            client.infer("double", _inputs(), headers=headers)
    found = client.infer("double", _inputs(), headers=_bearer(guarded.token))
    assert found.as_numpy("y").tolist() == [[2, 2, 2, 2]]
    with pytest.raises(InferenceServerException, match=r"UNIMPLEMENTED|PERMISSION_DENIED"):
        client.load_model("double", headers=_bearer(guarded.token))
    assert _streamed(guarded, guarded.token).as_numpy("y").tolist() == [[2, 2, 2, 2]]
    assert "UNAUTHENTICATED" in str(_streamed(guarded, "orc_wrong"))


def test_a_stream_ends_with_its_token(guarded: Guarded) -> None:
    before = guarded.tokens.read_text()
    client, found = guarded.grpc(guarded.client), list[Any]()
    token = add_token(guarded.tokens, "short")
    assert guarded.site.router is not None
    os.kill(guarded.site.router.pid, signal.SIGHUP)
    with guarded.http(guarded.client, token) as http:
        ServingSite.wait(lambda: http.get("/v2").status_code == 200, 5, "the token")
    client.start_stream(lambda result, error: found.append(error or result), headers=_bearer(token))
    client.async_stream_infer("double", _inputs())
    ServingSite.wait(lambda: found, 10, "the first answer")
    guarded.tokens.write_text(before)
    os.kill(guarded.site.router.pid, signal.SIGHUP)
    with guarded.http(guarded.client, token) as http:
        ServingSite.wait(lambda: http.get("/v2").status_code == 401, 5, "the token's end")
    client.async_stream_infer("double", _inputs())
    ServingSite.wait(lambda: len(found) > 1, 10, "the stream's end")
    client.stop_stream(cancel_requests=True)
    assert found[0].as_numpy("y").tolist() == [[2, 2, 2, 2]]
    assert "UNAUTHENTICATED" in str(found[1])


def _streamed(guarded: Guarded, token: str) -> Any:
    client = guarded.grpc(guarded.client)
    found: list[Any] = []
    client.start_stream(lambda result, error: found.append(error or result), headers=_bearer(token))
    with contextlib.suppress(InferenceServerException):  # a stream that is refused may have ended by now
        client.async_stream_infer("double", _inputs())
    ServingSite.wait(lambda: found, 10, "the stream's answer")
    client.stop_stream(cancel_requests=True)
    return found[0]


def _bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def _inputs() -> list[triton_grpc.InferInput]:
    x = triton_grpc.InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(np.ones((1, 4), np.float32))
    return [x]


def test_our_own_clients_need_neither(guarded: Guarded) -> None:
    with OipClient(guarded.site.url, socket=guarded.site.short / "admin.sock") as client:
        assert client.infer("double", {"x": np.ones((1, 4), np.float32)}).outputs["y"].tolist() == [[2, 2, 2, 2]]


def test_models_are_not_loaded_from_outside(guarded: Guarded) -> None:
    with guarded.http(guarded.client, guarded.token) as client:
        for verb in ("load", "unload"):
            answer = client.post(f"/v2/repository/models/double/{verb}")
            assert answer.status_code == 403
            assert "admin socket" in answer.json()["error"]


@pytest.mark.parametrize(
    ("model", "verb", "status", "text"),
    [
        ("double", "load", 200, '"load":true'),
        ("nothing", "load", 404, "unknown model"),
        ("double", "unload", 400, "its pool holds every model always"),
    ],
)
def test_the_admin_socket_takes_load_and_unload(
    guarded: Guarded, model: str, verb: str, status: int, text: str
) -> None:
    transport = httpx.HTTPTransport(uds=str(guarded.site.short / "admin.sock"))
    with httpx.Client(transport=transport, base_url="http://router") as client:
        answer = client.post(f"/v2/repository/models/{model}/{verb}")
        assert (answer.status_code, text in answer.text) == (status, True)
        assert client.get(f"/v2/repository/models/{model}/{verb}").status_code == 405


def test_new_tokens_and_certificates_count_without_a_restart(guarded: Guarded) -> None:
    fresh = add_token(guarded.tokens, "fresh")
    assert guarded.site.router is not None
    old = _serial(guarded)
    for source, target in zip(guarded.ours.issue("server-2"), (guarded.cert, guarded.key), strict=True):
        shutil.copy(source, target)
    os.kill(guarded.site.router.pid, signal.SIGHUP)
    ServingSite.wait(lambda: _serial(guarded) != old, 5, "the new certificate")
    with guarded.http(guarded.client, fresh) as client:
        assert client.post(INFER, content=BODY).status_code == 200
    assert guarded.grpc(guarded.client).is_server_live()


def _serial(guarded: Guarded) -> bytes:
    with guarded.http(guarded.client) as client, client.stream("GET", "/v2/health/live") as answer:
        return answer.extensions["network_stream"].get_extra_info("ssl_object").getpeercert(True)


def test_a_handshake_that_stops_half_way_holds_nobody_up(guarded: Guarded) -> None:
    address = ("127.0.0.1", int(guarded.site.url.rpartition(":")[2]))
    idle = [socket.create_connection(address, 5) for _ in range(20)]
    began = time.monotonic()
    with guarded.http(guarded.client, guarded.token) as client:
        assert client.post(INFER, content=BODY).status_code == 200
    assert time.monotonic() - began < 5
    for link in idle:
        link.close()


def test_no_secret_is_in_logs_or_state(guarded: Guarded) -> None:
    found = subprocess.run(
        ["grep", "-rl", "-e", guarded.token, "-e", guarded.slow, str(guarded.folder)], capture_output=True, check=False
    )
    assert found.stdout == b""


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tokens_file": "/nothing/here"}, "cannot read the tokens"),
        ({"tls_cert": "/nothing/here", "tls_key": "/nothing/key"}, "cannot use /nothing/here and /nothing/key for TLS"),
        ({"tls_cert": "/nothing/here"}, "TLS needs a certificate and its key"),
    ],
)
def test_a_guard_that_cannot_stand_stops_the_router(tmp_path: Path, change: dict[str, str], text: str) -> None:
    site = ServingSite(tmp_path / "site", **change)
    try:
        with pytest.raises(AssertionError, match=text):
            site.start_router()
        assert site.router is not None
        assert site.router.wait(5) == 2
    finally:
        site.stop()
