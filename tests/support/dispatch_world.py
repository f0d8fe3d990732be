"""A dispatcher in a world without sockets and with a clock of its own: slots compute one batch after the other."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.serving.dispatch.dispatcher import Dispatcher
from orchestrator.serving.dispatch.fairness import Slot
from orchestrator.serving.dispatch.lanes import Lane, Replica, Request
from orchestrator.serving.errors import RequestError
from orchestrator.serving.link.frames import Frame, FrameReader, Kind, encode_tensors
from orchestrator.serving.observe.record import Recorder
from orchestrator.serving.protocol.oip import LAST
from orchestrator.serving.protocol.signature import Fitted, Signature
from orchestrator.serving.protocol.tensors import Tensor, TensorSpec
from orchestrator.serving.serve_settings import ServeSettings
from orchestrator.serving.table import Generation

DEVICE = "cpu (rehearsal)"


class Client:
    """One request's caller; remembers how and when it was answered."""

    def __init__(self, world: World, again: Callable[[], object] | None = None) -> None:
        self.world = world
        self.again = again
        self.done = self.gone = False
        self.at = self.arrived = world.now
        self.error: RequestError | None = None

    def answer(self, request: Any, outputs: Any) -> None:
        self.done, self.at = True, self.world.now
        if self.again is not None:
            self.again()

    def refuse(self, error: RequestError, lane: Any) -> None:
        self.done, self.at, self.error = True, self.world.now, error

    @property
    def took_s(self) -> float:
        return self.at - self.arrived


class World:
    def __init__(self, *, queue_limit: int = 100_000, grace_s: float = 10.0) -> None:
        self.now = 100.0
        self.timers = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._busy_until: dict[str, float] = {}
        self.batches: list[tuple[float, str, int]] = []
        self.in_flight: dict[str, int] = {}
        self.most_in_flight = 0
        self.dispatcher = Dispatcher(
            Recorder(),
            queue_limit=queue_limit,
            replica_grace_s=grace_s,
            soon=lambda call: self.at(self.now, call),
            later=self._later,
            clock=lambda: self.now,
        )

    def at(self, when: float, call: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, call))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers += 1

        def fired() -> None:
            self.timers -= 1
            call()

        self.at(self.now + seconds, fired)

    def run(self, seconds: float = 1e9) -> None:
        """Let time pass until nothing is left to do, at most so long."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, call = heapq.heappop(self._events)
            call()
        self.now = max(self.now, end) if seconds < 1e9 else self.now

    def lane(self, endpoint: str, settings: ServeSettings | None = None, generation: int = 1) -> Lane:
        bundle = f"sha256:{endpoint}"
        row = Generation(generation, bundle, "/none", "onnx-cpu", 100, "live", DEVICE)
        lane = Lane(endpoint, row, self.now, settings=settings or ServeSettings())
        self.dispatcher.lanes.append(lane)
        return lane

    def replica(
        self,
        endpoint: str,
        slot: str,
        cost_s: Callable[[int], float],
        *,
        depth: int = 2,
        max_batch: int = 8,
        gears: Any = None,
    ) -> Replica:
        specs = (TensorSpec("x", "FP32", ("batch", 1)),), (TensorSpec("y", "FP32", ("batch", 1)),)
        reader = FrameReader()

        def send(pieces: Sequence[Any]) -> None:
            for frame in reader.feed(b"".join(bytes(piece) for piece in pieces)):
                if frame.kind is Kind.BATCH:
                    self._compute(replica, frame, cost_s)

        signature = Signature(*specs, max_batch)
        replica = Replica(
            f"{slot}.{endpoint}",
            1,
            endpoint,
            f"sha256:{endpoint}",
            "onnx-cpu",
            DEVICE,
            signature,
            send,
            slot=Slot(slot),
            depth=depth,
        )
        replica.gears = gears or {}
        self.dispatcher.register(replica, self.now)
        self.dispatcher.credit(replica, depth, self.now)
        return replica

    def _compute(self, replica: Replica, frame: Frame, cost_s: Callable[[int], float]) -> None:
        rows: Any = frame.head["rows"]
        slot, total = replica.slot.name, sum(rows)
        took_s = cost_s(total)
        self.batches.append((self.now, replica.endpoint, total))
        self.in_flight[slot] = self.in_flight.get(slot, 0) + 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight[slot])
        done = self._busy_until[slot] = max(self.now, self._busy_until.get(slot, 0.0)) + took_s
        head = {"status": [None] * len(rows), "compute_us": int(took_s * 1e6), "credit": 1}
        y = ("y", "FP32", (total, 1), [bytes(4 * total)])
        answer = next(
            iter(FrameReader().feed(b"".join(encode_tensors(Kind.REPLY, head, "outputs", [y], number=frame.id))))
        )

        def reply() -> None:
            if replica in replica.slot.replicas:
                self.in_flight[slot] -= 1
                self.dispatcher.reply(replica, answer, self.now)

        self.at(done, reply)

    def ask(
        self,
        lane: Lane,
        *,
        rows: int = 1,
        timeout_s: float = 1e6,
        priority: int = LAST,
        shape: int = 1,
        forever: bool = False,
    ) -> Client:
        """Send a request; with `forever` the same again whenever it is answered."""
        client = Client(self, (lambda: self.ask(lane, rows=rows, forever=True)) if forever else None)
        tensor = Tensor("x", "FP32", (rows, shape), bytes(4 * rows * shape))
        fitted = Fitted((tensor,), (), rows, ((shape,),), 4 * rows)
        request = Request(client, lane, fitted, None, self.now, self.now + timeout_s, False, priority)
        try:
            self.dispatcher.submit(request)
        except RequestError as error:
            client.refuse(error, lane)
        return client
