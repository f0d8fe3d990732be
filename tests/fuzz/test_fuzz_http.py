"""HTTP as bytes: cut anywhere, pipelined, damaged, smuggled. Every answer is whole, typed and that of its own request."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.link_replica import specs
from support.memory_router import MemoryRouter, MemoryTransport, Response, read_responses

PATH = b"/v2/models/int32/infer"
CALM = settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ALLOWED = {200, 400, 404, 405, 408, 413, 415, 417, 431, 503}
"""503: only `the server holds too many request bodies` and a model without replica, neither of which is here."""


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryRouter]:
    router = MemoryRouter(tmp_path_factory.mktemp("fuzz"), {"int32": specs("INT32"), "bytes": specs("BYTES")})
    yield router
    router.close()


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An error in the log is a fault of ours that was answered with 500."""
    yield
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


def post(body: bytes, *headers: bytes, chunks: int = 0, path: bytes = PATH) -> bytes:
    head = b"POST %b HTTP/1.1\r\nhost: x\r\n%b" % (path, b"".join(header + b"\r\n" for header in headers))
    if not chunks:
        return head + b"content-length: %d\r\n\r\n" % len(body) + body
    cut = [body[i : i + chunks] for i in range(0, len(body), chunks)]
    return (
        head
        + b"transfer-encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in cut)
        + b"0\r\n\r\n"
    )


def numbered(number: int, form: str = "json") -> bytes:
    """Return a request whose answer must hold `number`."""
    tensor: dict[str, Any] = {"name": "int32", "datatype": "INT32", "shape": [1, 1], "data": [number]}
    if form in ("json", "chunked", "gzip"):
        body = json.dumps({"id": str(number), "inputs": [tensor]}).encode()
        if form == "gzip":
            return post(zlib.compress(body), b"content-encoding: deflate")
        return post(body, b"content-type: application/json", chunks=7 if form == "chunked" else 0)
    del tensor["data"]
    tensor["parameters"] = {"binary_data_size": 4}
    body = json.dumps({"id": str(number), "inputs": [tensor]}).encode()
    length = b"Inference-Header-Content-Length: %d" % len(body)
    return post(body + np.int32(number).tobytes(), length, chunks=11 if form == "binary chunked" else 0)


FORMS = ("json", "chunked", "gzip", "binary", "binary chunked")
forms = st.lists(st.sampled_from(FORMS), min_size=1, max_size=6)


def check_answer(answer: Response, number: int) -> None:
    assert answer.status == 200, answer.body
    assert (answer.json["id"], answer.json["outputs"][0]["data"]) == (str(number), [number])


def check_typed(answers: list[Response]) -> None:
    for answer in answers:
        assert answer.status in ALLOWED, answer
        if answer.status != 200:
            assert list(answer.json) == ["error"]
            assert answer.json["error"].isprintable()
    assert all("connection" not in answer.headers for answer in answers[:-1])


@CALM
@given(forms=forms, cuts=st.lists(st.integers(0, 3000), max_size=12))
def test_pipelined_requests_cut_anywhere(router: MemoryRouter, forms: list[str], cuts: list[int]) -> None:
    data = b"".join(numbered(i, form) for i, form in enumerate(forms))
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    answers, _ = router.talk(*(data[a:b] for a, b in itertools.pairwise(places)))
    assert len(answers) == len(forms)
    for i, answer in enumerate(answers):
        check_answer(answer, i)


@CALM
@given(forms=forms, data=st.data())
def test_damaged_bytes_get_typed_answers(router: MemoryRouter, forms: list[str], data: st.DataObject) -> None:
    stream = bytearray(b"".join(numbered(i, form) for i, form in enumerate(forms)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(stream) - 1))
        act = data.draw(st.sampled_from(["set", "drop", "insert", "repeat"]))
        if act == "set":
            stream[place] = data.draw(st.integers(0, 255))
        elif act == "drop":
            del stream[place : place + data.draw(st.integers(1, 40))]
        elif act == "insert":
            stream[place:place] = data.draw(
                st.sampled_from([b"\r\n", b"\0", b"\xff", b"0", b": ", b"\n", b"chunked", b"-", b"%0d"])
            )
        else:
            stream[place:place] = stream[max(0, place - data.draw(st.integers(1, 80))) : place]
        if not stream:
            break
    answers, _ = router.talk(bytes(stream))
    check_typed(answers)
    # Whatever was damaged, an answer with an id carries the number of that id: never another request's.
    for answer in answers:
        told = answer.json if answer.status == 200 and answer.body.startswith(b"{") else {}
        if "id" in told and told["id"].isdigit() and int(told["id"]) < len(forms):
            assert "data" in told["outputs"][0]
    (good,), _ = router.talk(numbered(77))
    check_answer(good, 77)


@CALM
@given(st.binary(max_size=400))
def test_any_bytes(router: MemoryRouter, data: bytes) -> None:
    answers, _ = router.talk(data)
    check_typed(answers)
    assert len(answers) <= 1 or data.count(b"HTTP/") >= len(answers) - 1


SECRET = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
SMUGGLED = {
    "length and chunked": b"content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nG",
    "chunked and length": b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": b"content-length: 0\r\ncontent-length: 42\r\n\r\n",
    "two equal lengths": b"content-length: 0\r\ncontent-length: 0\r\n\r\n",
    "list of lengths": b"content-length: 0, 42\r\n\r\n",
    "plus sign": b"content-length: +0\r\n\r\n",
    "minus sign": b"content-length: -0\r\n\r\n",
    "hex length": b"content-length: 0x0\r\n\r\n",
    "length with underscore": b"content-length: 1_0\r\n\r\n",
    "huge length": b"content-length: 99999999999999999999999\r\n\r\n",
    "space before the colon": b"content-length : 42\r\n\r\n",
    "space before the colon of TE": b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "tab before chunked": b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "xchunked": b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked not last": b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "gzip and chunked with a length": b"transfer-encoding: gzip, chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    "null in a header": b"a: b\0c\r\ncontent-length: 0\r\n\r\n",
    "null in a name": b"a\0b: c\r\ncontent-length: 0\r\n\r\n",
    "bare line feeds": b"a: b\ncontent-length: 0\n\n",
    "bare carriage return": b"a: b\rcontent-length: 42\r\n\r\n",
    "folded header": b"a: b\r\n content-length: 42\r\n\r\n",
    "folded length": b"content-length:\r\n 0\r\n\r\n",
    "chunk size with a sign": b"transfer-encoding: chunked\r\n\r\n+0\r\n\r\n",
    "chunk size in hex form": b"transfer-encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "chunk size overflow": b"transfer-encoding: chunked\r\n\r\n10000000000000000\r\n\r\n",
    "chunk without CR": b"transfer-encoding: chunked\r\n\r\n1\nZ\n0\n\n",
    "chunk longer than its size": b"transfer-encoding: chunked\r\n\r\n1\r\nZZ\r\n0\r\n\r\n",
    "chunk line end in extension": b"transfer-encoding: chunked\r\n\r\n0;a=\n\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("case", SMUGGLED)
def test_what_two_parsers_may_read_in_two_ways_ends_the_connection(router: MemoryRouter, case: str) -> None:
    """A proxy before us may see one request where we see two: so the bytes behind an ambiguous one are never a request."""
    head = b"POST /v2/models/nothing/infer HTTP/1.1\r\nhost: x\r\n"
    answers, transport = router.talk(head + SMUGGLED[case] + SECRET)
    check_typed(answers)
    assert b'"live"' not in transport.written, transport.written
    assert [a.status for a in answers] == [400], transport.written
    assert transport.ended


def test_endless_trailers_are_refused(router: MemoryRouter) -> None:
    chunked = post(b"{}", chunks=2)[:-2]
    answers, transport = router.talk(chunked, *(b"t%d: %b\r\n" % (i, b"x" * 1000) for i in range(100)))
    assert [a.status for a in answers] == [431]
    assert transport.ended
    answers, transport = router.talk(chunked, b"t: ", *([b"x" * 1000] * 100))
    assert [a.status for a in answers] == [431]


def test_a_limit_of_one_head_is_not_one_of_many(router: MemoryRouter) -> None:
    """Many small heads, cut inside the first and inside the last, are each below the limit."""
    data = SECRET * 1000
    answers, _ = router.talk(data[:7], data[7:-7], data[-7:])
    assert [a.status for a in answers] == [200] * 1000


def test_a_stopping_server_answers_all_that_it_has_taken(router: MemoryRouter) -> None:
    data = b"".join(map(numbered, range(5)))

    async def run() -> MemoryTransport:
        protocol, transport = router.router.public.protocol(), MemoryTransport()
        protocol.connection_made(transport)  # pyright: ignore[reportArgumentType]
        protocol.data_received(data)
        protocol.close_if_idle()
        for _ in range(10):
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        return transport

    finished = router.run(run())
    answers = read_responses(bytes(finished.written))
    assert [a.json["id"] for a in answers] == ["0", "1", "2", "3", "4"]
    assert answers[-1].headers["connection"] == "close"
    check_typed(answers)


@pytest.mark.parametrize(
    "name", [b"content-encoding: gzip", b"authorization: Bearer x", b"x-request-timeout-seconds: 0"]
)
def test_trailers_change_nothing(router: MemoryRouter, name: bytes) -> None:
    (answer,), _ = router.talk(numbered(5, "chunked")[:-2] + name + b"\r\n\r\n")
    check_answer(answer, 5)


def test_buffered_bytes_are_counted_back(router: MemoryRouter) -> None:
    """After all that has been thrown at it, the router holds no byte for anybody."""
    for cut in (20, 150, 400):
        router.talk(numbered(1, "gzip")[:cut], b"\0\0")
        router.talk(numbered(1)[:-1])
    assert router.router.public.buffered_bytes == 0
    assert not router.router.public.connections
