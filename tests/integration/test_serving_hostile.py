"""What a client may do wrong: each is answered with a typed 4xx, and the next good request works."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.serving_site import ServingSite, generation, scale_bundle

GOOD: dict[str, Any] = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
PATH = "/v2/models/double/infer"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    folder = tmp_path_factory.mktemp("hostile")
    site = ServingSite(folder / "site")
    try:
        site.start_router()
        site.start_agent()
        site.serve("double", generation(1, scale_bundle(folder / "double", 2.0)))
        yield site
    finally:
        site.stop()


class Wire:
    """A raw connection."""

    def __init__(self, site: ServingSite) -> None:
        host, port = site.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.buffer = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def response(self, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        size = 0 if head_only else int(headers.get("content-length", "0"))
        while len(self.buffer) < size:
            self._more()
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return int(lines[0].split()[1]), headers, body

    def _more(self) -> None:
        data = self.socket.recv(65536)
        assert data, f"closed after {self.buffer!r}"
        self.buffer += data

    def closed(self) -> bool:
        return self.socket.recv(65536) == b""


def post(body: bytes, headers: str = "", path: str = PATH, method: str = "POST") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


def good() -> bytes:
    return post(json.dumps(GOOD).encode())


def changed(**tensor: Any) -> bytes:
    return json.dumps({**GOOD, "inputs": [{**GOOD["inputs"][0], **tensor}]}).encode()


def check_good(site: ServingSite) -> None:
    with Wire(site) as wire:
        wire.send(good())
        status, headers, body = wire.response()
        assert (status, json.loads(body)["outputs"][0]["data"]) == (200, [2, 4, 6, 8])
        assert headers["x-orchestrate-device"] == "cpu (rehearsal)"


def error_of(body: bytes) -> str:
    found = json.loads(body)
    assert list(found) == ["error"]
    assert found["error"]
    assert found["error"].isprintable()
    return found["error"]


BINARY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}]}
).encode()
MANY = [{**GOOD["inputs"][0], "name": f"x{i}"} for i in range(10_000)]

LENGTHS = BINARY.replace(b"FP32", b"BYTES")

BODIES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "", "zero-length"),
    "not JSON": (b"hello", "", "expected a JSON value"),
    "null": (b"null", "", "must be a JSON object"),
    "array": (b"[]", "", "must be a JSON object"),
    "no inputs": (b"{}", "", "inputs must be a list"),
    "no input": (b'{"inputs":[]}', "", "1 to 64 inputs, not 0"),
    "inputs null": (b'{"inputs":null}', "", "inputs must be a list"),
    "no name": (b'{"inputs":[{"datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}', "", "needs a name of 1 to 256 characters"),
    "wrong name": (changed(name="y"), "", "inputs are ['y'], the model takes ['x']"),
    "duplicate names": (json.dumps({"inputs": [GOOD["inputs"][0]] * 2}).encode(), "", "'x' is given twice"),
    "10 000 inputs": (json.dumps({"inputs": MANY}).encode(), "", "1 to 64 inputs, not 10000"),
    "no shape": (b'{"inputs":[{"name":"x","datatype":"FP32","data":[1,2,3,4]}]}', "", "shape must be a list of at most 8"),
    "negative dim": (changed(shape=[-1, 4]), "", "whole numbers of 0 or more"),
    "overflowing shape": (changed(shape=[2**32, 2**32]), "", "at most 67108864 are allowed"),
    "shape over data": (changed(shape=[2, 4]), "", "data has 4 elements, shape [2, 4] needs 8"),
    "float dim": (changed(shape=[1.0, 4]), "", "whole numbers of 0 or more"),
    "rank 5000": (changed(shape=[1] * 5000), "", "a list of at most 8 sizes"),
    "unknown datatype": (changed(datatype="FP31"), "", "datatype must be one of BOOL"),
    "lower case datatype": (changed(datatype="fp32"), "", "datatype must be one of BOOL"),
    "other datatype": (changed(datatype="INT32"), "", "is INT32, the model takes FP32"),
    "texts in FP32": (changed(data=["a", "b", "c", "d"]), "", "FP32 data must be numbers"),
    "NaN literal": (json.dumps(GOOD).replace("[1, 2", "[NaN, 2").encode(), "", "expected a JSON value"),
    "1e999": (json.dumps(GOOD).replace("[1, 2", "[1e999, 2").encode(), "", "number is infinity"),
    "5000 digits": (json.dumps(GOOD).replace("[1, 2", "[" + "9" * 5000 + ", 2").encode(), "", "number is infinity"),
    "null element": (changed(data=[1, None, 3, 4]), "", "FP32 data must be numbers"),
    "ragged": (changed(data=[[1, 2], [3]]), "", "ragged"),
    "200 000 deep": (b'{"inputs":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "", "depth limit"),
    "duplicate keys": (json.dumps(GOOD).replace('"datatype"', '"name": "x", "datatype"').encode(), "", "two equal keys"),
    "bad UTF-8": (b'{"inputs": "\xff"}', "", "not valid UTF-8"),
    "lone surrogate": (b'{"inputs":["\\ud800"]}', "", "surrogate"),
    "unknown output": (json.dumps({**GOOD, "outputs": [{"name": "z"}]}).encode(), "", "no output ['z'], it has ['y']"),
    "duplicate outputs": (json.dumps({**GOOD, "outputs": [{"name": "y"}, {"name": "y"}]}).encode(), "", "asked for twice"),
    "shared memory": (changed(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 2**62}), "", "shared memory is not supported"),
    "huge parameters": (json.dumps({**GOOD, "parameters": {str(i): 1 for i in range(10_000)}}).encode(), "", "at most 64"),
    "1 MB id": (json.dumps({**GOOD, "id": "x" * 1_000_000}).encode(), "", "at most 256 bytes"),
    "id object": (json.dumps({**GOOD, "id": {}}).encode(), "", "at most 256 bytes"),
    "trailing data": (json.dumps(GOOD).encode() + b" x", "", "unexpected content after document"),
    "BOM": (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "", "byte order mark"),
    "header length over body": (BINARY + b"\0" * 16, "inference-header-content-length: 100000\r\n", "b'100000' must be a number of at most"),
    "header length no number": (BINARY + b"\0" * 16, "inference-header-content-length: 0x10\r\n", "b'0x10' must be a number"),
    "header length empty": (BINARY + b"\0" * 16, "inference-header-content-length:\r\n", "b'' must be a number"),
    "binary size lies": (BINARY.replace(b"16", b"17") + b"\0" * 16, f"inference-header-content-length: {len(BINARY)}\r\n", "is 17, 16 bytes are left"),
    "binary size short": (BINARY.replace(b"16", b"12") + b"\0" * 12, f"inference-header-content-length: {len(BINARY)}\r\n", "holds 12 bytes, shape [1, 4] of FP32 needs 16"),
    "binary left over": (BINARY + b"\0" * 17, f"inference-header-content-length: {len(BINARY)}\r\n", "1 bytes of the body belong to no input"),
    "33 rows": (changed(shape=[33, 4], data=[1] * 132), "", "33 rows are too many"),
    "text as a dim": (changed(shape=["1", 4]), "", "whole numbers of 0 or more"),
    "true as a dim": (changed(shape=[True, 4]), "", "whole numbers of 0 or more"),
    "0 beside what no array can have": (changed(shape=[0, 2**62, 2], data=[]), "", "are allowed"),
    "0 rows with data": (changed(shape=[0, 4]), "", "data has 4 elements, shape [0, 4] needs 0"),
    "FP16 in JSON": (changed(datatype="FP16"), "", "FP16 must be sent as binary data"),
    "BF16 in JSON": (changed(datatype="BF16"), "", "BF16 must be sent as binary data"),
    "BOOL as numbers": (changed(datatype="BOOL", data=[0, 1, 0, 1]), "", "must be true or false"),
    "BOOL as texts": (changed(datatype="BOOL", data=["true"] * 4), "", "must be true or false"),
    "INT8 999": (changed(datatype="INT8", data=[999] * 4), "", "out of the range of INT8"),
    "UINT64 2^64": (changed(datatype="UINT64", data=[2**64] * 4), "", "whole numbers in range"),
    "INT64 1.5": (changed(datatype="INT64", data=[1.5] * 4), "", "must be whole numbers"),
    "BYTES as numbers": (changed(datatype="BYTES"), "", "BYTES data must be texts"),
    "nested deeper than the shape": (changed(data=[[[1, 2, 3, 4]]]), "", "nested as [1, 1, 4]"),
    "neither data nor size": (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4]}]}', "", "neither data nor"),
    "both data and size": (changed(parameters={"binary_data_size": 16}), "", "both data and binary_data_size"),
    "negative size": (BINARY.replace(b"16", b"-4"), f"inference-header-content-length: {len(BINARY)}\r\n", "number of bytes"),
    "size without a header length": (BINARY, "", "0 bytes are left in the body"),
    "BYTES of 4 GiB": (LENGTHS + b"\xff" * 16, f"inference-header-content-length: {len(LENGTHS)}\r\n", "claims 4294967295 bytes"),
    "BYTES cut short": (LENGTHS + b"\x01\0\0\0a" + bytes(11), f"inference-header-content-length: {len(LENGTHS)}\r\n", "no room for its length"),
    "raw request of another size": (bytes(15), "inference-header-content-length: 0\r\n", "holds 15 bytes"),
    "sequence": (json.dumps({**GOOD, "parameters": {"sequence_id": 1}}).encode(), "", "'sequence_id' is not supported"),
    "parameter that is an object": (json.dumps({**GOOD, "parameters": {"a": {}}}).encode(), "", "texts, numbers or booleans"),
    "priority as a text": (json.dumps({**GOOD, "parameters": {"priority": "high"}}).encode(), "", "priority must be a whole number"),
    "negative timeout": (json.dumps({**GOOD, "parameters": {"timeout": -1}}).encode(), "", "number of microseconds"),
    "outputs as an object": (json.dumps({**GOOD, "outputs": {}}).encode(), "", "outputs must be a list"),
    "classification": (json.dumps({**GOOD, "outputs": [{"name": "y", "parameters": {"classification": 3}}]}).encode(), "", "not supported"),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
def test_a_bad_body_is_400_and_the_connection_lives(site: ServingSite, case: str) -> None:
    body, headers, expected = BODIES[case]
    with Wire(site) as wire:
        wire.send(post(body, headers))
        status, _, text = wire.response()
        assert (status, expected in error_of(text)) == (400, True), text
        wire.send(good())
        assert wire.response()[0] == 200


PATHS: list[tuple[str, str, int, str]] = [
    ("POST", "/v2/models/nothing/infer", 404, ""),
    ("POST", "/v2/models/double/versions/999/infer", 404, ""),
    ("POST", "/v2/models/double/versions/-1/infer", 404, ""),
    ("POST", "/v2/models/double/versions/%d9%a1/infer", 404, ""),
    ("POST", "/v2/models/..%2fdouble/infer", 404, ""),
    ("POST", "/v2/models/m%00%0d%0aX:y/infer", 404, ""),
    ("POST", "/v2/models//infer", 404, ""),
    ("GET", "/", 404, ""),
    ("GET", "/v2/models/double/nothing", 404, ""),
    ("GET", "/v2/models/double/versions//config", 404, ""),
    ("GET", "/v2/models/double/versions/9/stats", 404, ""),
    ("POST", "/v2/repository/models/double/unload", 403, ""),
    ("PUT", "/table", 404, ""),
    ("GET", PATH, 405, "POST"),
    ("DELETE", PATH, 405, "POST"),
    ("POST", "/v2/health/live", 405, "GET, HEAD"),
    ("POST", "/v2/models/double", 405, "GET, HEAD"),
    ("POST", "/v2/models/double/stats", 405, "GET, HEAD"),
    ("GET", "/v2/repository/index", 405, "POST"),
]


@pytest.mark.parametrize(("method", "path", "status", "allow"), PATHS)
def test_paths_and_methods(site: ServingSite, method: str, path: str, status: int, allow: str) -> None:
    with Wire(site) as wire:
        wire.send(post(b"{}", path=path, method=method))
        found, headers, text = wire.response()
        assert found == status
        assert headers.get("allow", "") == allow
        error_of(text)
        wire.send(good())
        assert wire.response()[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("content-type: text/plain\r\n", 415),
        ("content-encoding: br\r\n", 415),
        ("content-encoding: gzip\r\n", 400),
        ("content-encoding: deflate\r\n", 400),
        ("x-request-timeout-seconds: soon\r\n", 400),
        ("x-request-timeout-seconds: -1\r\n", 400),
        ("x-request-timeout-seconds: 9.5\r\n", 200),
        ("content-type: Application/JSON; charset=utf-8\r\n", 200),
        ("content-encoding: identity\r\n", 200),
        ("x-request-id: a\tb\r\n", 200),
    ],
)
def test_headers(site: ServingSite, headers: str, status: int) -> None:
    with Wire(site) as wire:
        wire.send(post(json.dumps(GOOD).encode(), headers))
        assert wire.response()[0] == status
    check_good(site)


RAW: dict[str, tuple[bytes, int]] = {
    "length -1": (b"POST /v2 HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
    "length and chunked": (b"POST /v2 HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", 400),
    "two lengths": (b"POST /v2 HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc", 400),
    "two hosts": (b"GET /v2 HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400),
    "no host": (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
    "bad chunk": (b"POST /v2 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    "not HTTP": (b"\x16\x03\x01\x02\0\x01\0", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "bare CR LF in a header": (b"GET /v2 HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n", 400),
    "100 KB of headers": (b"GET /v2 HTTP/1.1\r\nhost: x\r\n" + b"a: " + b"b" * 100_000 + b"\r\n\r\n", 431),
    "endless header": (b"GET /v2 HTTP/1.1\r\nhost: x\r\na: " + b"b" * 600_000, 431),
    "announced 65 MiB": (b"POST " + PATH.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 68157440\r\n\r\n", 413),
    "strange expectation": (b"POST /v2 HTTP/1.1\r\nhost: x\r\nexpect: miracles\r\ncontent-length: 3\r\n\r\nabc", 417),
    "two header lengths": (post(BINARY, "inference-header-content-length: 3\r\n" * 2), 400),
}  # fmt: skip


@pytest.mark.parametrize("case", RAW)
def test_broken_http_is_answered_and_closed(site: ServingSite, case: str) -> None:
    data, expected = RAW[case]
    with Wire(site) as wire:
        wire.send(data)
        status, headers, text = wire.response()
        assert (status, headers["connection"]) == (expected, "close")
        error_of(text)
        assert wire.closed()
    check_good(site)


def test_66_megabytes_are_refused_and_not_kept(site: ServingSite) -> None:
    assert site.router is not None
    process = psutil.Process(site.router.pid)
    before = process.memory_info().rss
    chunk = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
    with Wire(site) as wire:
        wire.send(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for _ in range(66):
            wire.send(chunk)
        status, _, text = wire.response()
        assert (status, error_of(text)) == (413, "body is over 67108864 bytes")
    check_good(site)
    assert process.memory_info().rss - before < 50 << 20


def test_65_000_chunks_of_one_byte(site: ServingSite) -> None:
    body = json.dumps(GOOD).encode().rjust(65_000)
    with Wire(site) as wire:
        wire.send(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        wire.send(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        assert wire.response()[0] == 200


def test_pipelining_keeps_the_order(site: ServingSite) -> None:
    with Wire(site) as wire:
        requests = [post(changed(data=[i, 0, 0, 0])) for i in range(1000)]
        requests[500] = post(b"{}")
        wire.send(b"".join(requests) + b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        for i in range(1000):
            status, _, text = wire.response()
            if i == 500:
                assert status == 400
            else:
                assert json.loads(text)["outputs"][0]["data"][0] == 2 * i
        status, headers, _ = wire.response()
        assert (status, headers["connection"]) == (200, "close")
        assert wire.closed()


def test_a_body_in_single_bytes_and_expect_continue(site: ServingSite) -> None:
    body = json.dumps(GOOD).encode()
    with Wire(site) as wire:
        wire.send(
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        )
        assert wire.response()[0] == 100
        for byte in body:
            wire.send(bytes([byte]))
        assert wire.response()[0] == 200


def test_head_has_no_body(site: ServingSite) -> None:
    with Wire(site) as wire:
        wire.send(b"HEAD /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n")
        status, headers, _ = wire.response(head_only=True)
        assert (status, headers["content-length"]) == (200, "26")
        wire.send(good())
        assert wire.response()[0] == 200


def test_a_client_that_goes_away(site: ServingSite) -> None:
    for size in (10, len(good()) - 1, len(good())):
        with Wire(site) as wire:
            wire.send(good()[:size])
    check_good(site)


def test_slow_clients_are_cut_off(site: ServingSite) -> None:
    """Slow headers and a body that never completes; the deadlines are 10 s and 30 s, so only the first is waited for."""
    with Wire(site) as slow:
        slow.send(b"GET /v2 HTTP/1.1\r\nhost: x\r\n")
        begun = time.monotonic()
        slow.socket.settimeout(15)
        status, _, text = slow.response()
        assert (status, error_of(text)) == (408, "the request did not arrive in time")
        assert 8 < time.monotonic() - begun < 14
        assert slow.closed()
    check_good(site)


def test_many_idle_connections_and_their_memory(site: ServingSite) -> None:
    wires = [Wire(site) for _ in range(400)]
    try:
        check_good(site)
        for wire in wires:
            wire.send(good())
        assert all(wire.response()[0] == 200 for wire in wires)
    finally:
        for wire in wires:
            wire.socket.close()
    check_good(site)


def test_curl(site: ServingSite, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    assert curl is not None
    body = tmp_path / "body.json"
    body.write_text(json.dumps({**GOOD, "id": "c"}))
    done = subprocess.run(
        [curl, "-sS", "-i", "-H", "content-type: application/json", "-H", "expect: 100-continue", "--data-binary", f"@{body}", site.url + PATH],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )  # fmt: skip
    assert "HTTP/1.1 200 OK" in done.stdout
    assert "x-orchestrate-bundle: sha256:" in done.stdout
    assert '"id":"c"' in done.stdout
    chunked = subprocess.run(
        [curl, "-sS", "-H", "content-type: application/json", "-H", "transfer-encoding: chunked", "-d", f"@{body}", site.url + PATH],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert json.loads(chunked.stdout)["model_version"] == "1"
