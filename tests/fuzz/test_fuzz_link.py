"""The router's end of the link: whatever a replica says, a client gets the answer to its own request or a typed error."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.link_replica import Answer, echo, reply, specs
from support.memory_router import MemoryRouter

from orchestrator.serving.link.frames import Frame, Kind, LinkError, decode_tensors, encode
from orchestrator.serving.link.reports import read_report
from orchestrator.serving.link.wire import (
    read_credit,
    read_hello,
    read_placements,
    read_rows,
    read_statuses,
)
from orchestrator.serving.protocol.tensors import Tensor

CALM = settings(max_examples=120, deadline=None, database=None, suppress_health_check=list(HealthCheck))
PREFIX_BYTES = 16


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryRouter]:
    made = make(tmp_path_factory.mktemp("link"), echo)
    yield made
    made.close()


@pytest.fixture
def router(shared: MemoryRouter) -> Iterator[MemoryRouter]:
    yield shared
    shared.answer = echo
    shared.byes.clear()


def make(folder: Path, answer: Answer) -> MemoryRouter:
    return MemoryRouter(folder, {"int32": specs("INT32", dims=("batch", 2))}, answer)


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


def ask(router: MemoryRouter, numbers: Sequence[int]) -> list[tuple[int, Any]]:
    bodies = [
        json.dumps({"id": str(n), "inputs": [{"name": "int32", "datatype": "INT32", "shape": [1, 2], "data": [n, -n]}]})
        for n in numbers
    ]
    wire = "".join(
        f"POST /v2/models/int32/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        for body in bodies
    )
    answers, _ = router.talk(wire.encode())
    assert len(answers) == len(numbers)
    return [(answer.status, answer.json) for answer in answers]


def check(told: Sequence[tuple[int, Any]], numbers: Sequence[int], errors: Sequence[int] = ()) -> None:
    for (status, answer), number in zip(told, numbers, strict=True):
        if status == 200:
            (output,) = answer["outputs"]
            assert (answer["id"], output["data"], output["shape"]) == (str(number), [number, -number], [1, 2])
        else:
            assert status in errors, answer
            assert list(answer) == ["error"]


def other(
    frame: Frame, tensors: Sequence[Tensor], name: str = "", kind: str = "", shape: tuple[int, ...] = ()
) -> list[bytes]:
    found = tensors[0]
    made = Tensor(name or "int32_out", kind or "INT32", shape or found.shape, found.data)
    return [reply(frame, [made], read_rows(frame))]


GARBAGE: dict[str, Answer] = {
    "no frame": lambda *_: [b"\0" * 64],
    "another version": lambda *_: [b"OL\x07\x06" + bytes(12)],
    "frame of an agent": lambda *_: [encode(Kind.REPORT, {"version": 1, "replicas": []})],
    "a second hello": lambda *_: [encode(Kind.HELLO, {"role": "replica"})],
    "unknown batch": lambda f, t, r: [reply(Frame(f.kind, f.id + 7, f.head, f.body), [], r)],
    "too few statuses": lambda f, t, r: [reply(f, [], r, status=[])],
    "unknown status": lambda f, t, r: [reply(f, [], r, status=[{"kind": "odd", "error": "x"}] * len(r))],
    "negative credit": lambda f, t, r: [reply(f, t, r, credit=-1)],
    "huge credit": lambda f, t, r: [reply(f, t, r, credit=10**9)],
    "no outputs": lambda f, t, r: [reply(f, [], r)],
    "another name": lambda f, t, r: other(f, t, name="z"),
    "another datatype": lambda f, t, r: other(f, t, kind="UINT32"),
    "another rank": lambda f, t, r: other(f, t, shape=(t[0].shape[0] * 2,)),
    "another width": lambda f, t, r: other(f, t, shape=(1, t[0].shape[0], 2)),
    "rows and columns exchanged": lambda f, t, r: other(f, t, shape=(t[0].shape[0] * 2, 1)),
    "a row too few": lambda f, t, r: [reply(f, [Tensor("int32_out", "INT32", (0, 2), b"")], r)],
    "twice": lambda f, t, r: [*echo(f, t, r), *echo(f, t, r)],
}


@pytest.mark.parametrize("case", GARBAGE)
def test_a_replica_that_answers_garbage_is_ended_and_its_requests_go_elsewhere(router: MemoryRouter, case: str) -> None:
    begun: list[int] = []

    def answer(frame: Frame, tensors: Sequence[Tensor], rows: Sequence[int]) -> Sequence[bytes]:
        begun.append(frame.id)
        return GARBAGE[case](frame, tensors, rows) if len(begun) == 1 else echo(frame, tensors, rows)

    router.answer = answer
    numbers = [5, 6, 7]
    check(ask(router, numbers), numbers)
    assert router.byes, "the router did not notice"
    assert len(begun) >= (1 if case == "twice" else 2), "nothing went elsewhere"
    check(ask(router, numbers), numbers)


def test_a_request_that_ends_two_replicas_is_503(router: MemoryRouter) -> None:
    router.answer = GARBAGE["no outputs"]
    assert [(status, answer["error"]) for status, answer in ask(router, [5])] == [
        (503, "two replicas ended while they computed this request")
    ]
    assert len(router.byes) == 2


def test_a_late_answer_reaches_nobody(router: MemoryRouter) -> None:
    """A reply that comes after its replica has been given up, over a new connection, answers no other request."""
    kept: list[bytes] = []

    def late(frame: Frame, tensors: Sequence[Tensor], rows: Sequence[int]) -> Sequence[bytes]:
        if not kept:
            kept.extend(echo(frame, tensors, rows))
            return [b"\0" * 16]
        return (
            [*kept, *echo(frame, tensors, rows)]
            if len(kept) == 1 and not kept.append(b"")
            else echo(frame, tensors, rows)
        )

    router.answer = late
    check(ask(router, [5]), [5], errors=[503])
    check(ask(router, [6, 7]), [6, 7])


@CALM
@given(
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4), count=st.integers(1, 4)
)
def test_damaged_heads_never_give_a_wrong_answer(
    router: MemoryRouter, flips: list[tuple[int, int]], count: int
) -> None:
    """Only prefix and head are damaged: a wrong value among the right number of bytes is beyond any check."""
    done: list[int] = []

    def answer(frame: Frame, tensors: Sequence[Tensor], rows: Sequence[int]) -> Sequence[bytes]:
        (good,) = echo(frame, tensors, rows)
        if done:
            return [good]
        done.append(1)
        damaged = bytearray(good)
        head = PREFIX_BYTES + int.from_bytes(good[4:8], "little")
        for place, value in flips:
            damaged[place % head] = value
        # What is damaged may make the router wait for more: so the connection ends, as it does when a process dies.
        return [bytes(damaged), b""]

    router.answer = answer
    numbers = list(range(10, 10 + count))
    check(ask(router, numbers), numbers, errors=(400, 500, 503))
    router.answer = echo
    check(ask(router, [3]), [3])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
KEYS = ("role", "replica", "pid", "endpoint", "bundle", "runtime", "device", "variant", "max_batch", "inputs", "outputs",
        "pool", "slot", "host", "version", "placements", "replicas", "credit", "rows", "status", "compute_us")  # fmt: skip


@settings(CALM, max_examples=100)
@given(head=st.dictionaries(st.sampled_from(KEYS), json_values, max_size=10), body=st.binary(max_size=20))
def test_any_head_is_read_or_refused(head: dict[str, object], body: bytes) -> None:
    for kind, read in (
        (Kind.HELLO, read_hello),
        (Kind.HELLO, lambda frame: read_hello(Frame(frame.kind, 0, {**frame.head, "role": "replica"}, b""))),
        (Kind.HELLO, lambda frame: read_hello(Frame(frame.kind, 0, {**frame.head, "role": "agent"}, b""))),
        (Kind.PLACEMENTS, read_placements),
        (Kind.REPORT, read_report),
        (Kind.CREDIT, read_credit),
        (Kind.BATCH, read_rows),
        (Kind.REPLY, lambda frame: read_statuses(frame, 1)),
        (Kind.REPLY, lambda frame: decode_tensors(frame, "outputs")),
    ):
        with contextlib.suppress(LinkError):
            read(Frame(kind, 1, head, body))


@CALM
@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_of_a_peer_end_only_its_own_connection(router: MemoryRouter, noise: bytes) -> None:
    async def send() -> None:
        stranger = router.router.links.protocol()
        end = _Sink()
        stranger.connection_made(end)  # pyright: ignore[reportArgumentType]
        stranger.data_received(noise)
        stranger.connection_lost(None)

    router.run(send())
    check(ask(router, [4]), [4])


class _Sink:
    """A transport that keeps nothing."""

    def __init__(self) -> None:
        self.closing = False

    def writelines(self, _: object) -> None:
        pass

    def write(self, _: object) -> None:
        pass

    def close(self) -> None:
        self.closing = True

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def is_closing(self) -> bool:
        return self.closing
