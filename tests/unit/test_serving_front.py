"""The public door: what it remembers of paths, and whom it believes to be a probe."""

from __future__ import annotations

import asyncio
import gzip
import random
from typing import Any

import pytest
from support.trial_world import TrialWorld

from orchestrator.serving.protocol import codings
from orchestrator.serving.protocol.exchange import Exchange
from orchestrator.serving.protocol.heads import Head
from orchestrator.serving.protocol.limits import Limits
from orchestrator.serving.router.front import Front

BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[1]}]}'


class Channel:
    lost = False

    def __init__(self) -> None:
        self.failures: list[int] = []

    def hold(self, more: int) -> None: ...

    def answered(self, exchange: Exchange, size: int) -> None: ...

    def failed(self, status: int) -> None:
        self.failures.append(status)


class Door:
    def __init__(self, *, probes: bool = False) -> None:
        self.world = TrialWorld()
        self.world.put({1: 100})
        self.world.serve(1)
        self.front = Front(self.world.routes, self.world.admission, Limits(), "", probes=probes)

    def post(self, target: bytes, **headers: bytes) -> bytes:
        """Return the first line of the answer."""
        named: dict[bytes, bytes] = {name.replace("_", "-").encode(): value for name, value in headers.items()}
        exchange = Exchange(Channel(), Head(b"POST", target, named, keep_alive=True), BODY)
        self.front.handle(exchange)
        self.world.wait(0.1)
        answer: Any = exchange.take_answer()
        assert answer is not None
        return bytes(answer[0]).split(b"\r\n")[0]


def test_ever_other_targets_fill_no_memory() -> None:
    door = Door()
    targets = [b"/v2/models/digits/infer", b"/v2/models/digits/versions/1/infer"]
    targets += [b"/v2/models/digits/infer?number=%d" % n for n in range(20)]
    targets += [b"/v2/models/%%%x%s/infer" % (ord("d"), b"igits"), b"/v2/models/digit%73/infer"]
    targets += [b"/v2/models/digits/versions/" + b"0" * n + b"1/infer" for n in range(8)]
    for target in targets * 2:
        assert door.post(target) == b"HTTP/1.1 200 OK", target
    assert set(door.front._infer) == {b"/v2/models/digits/infer", b"/v2/models/digits/versions/1/infer"}
    door.front.table_changed()
    assert door.front._infer == {}


@pytest.mark.parametrize("probes", [False, True])
def test_only_the_admin_socket_believes_in_probes(probes: bool) -> None:
    door = Door(probes=probes)
    assert door.post(b"/v2/models/digits/infer", x_orchestrate_probe=b"1") == b"HTTP/1.1 200 OK"
    (event,) = door.world.dispatcher.recorder.events.read(0, 10)["events"]  # type: ignore[misc]
    assert event["synthetic"] is probes  # type: ignore[index]


def test_a_table_that_comes_while_a_body_is_decoded() -> None:
    async def ask() -> bytes:
        door = Door()
        blanks = "".join(random.Random(1).choices(" \t\n\r", k=1 << 17)).encode()
        packed = gzip.compress(BODY + blanks)
        assert len(packed) > codings.INLINE_BYTES
        head = Head(b"POST", b"/v2/models/digits/infer", {b"content-encoding": b"gzip"}, keep_alive=True)
        exchange = Exchange(Channel(), head, packed)
        door.front.handle(exchange)
        assert not exchange.done
        door.world.put({2: 100})
        door.front.table_changed()
        door.world.serve(2)
        for _ in range(500):
            await asyncio.sleep(0.01)
            door.world.wait(0.05)
            if exchange.done:
                break
        answer: Any = exchange.take_answer()
        return b"".join(bytes(piece) for piece in answer)

    assert b'"model_version":"2"' in asyncio.run(ask())
