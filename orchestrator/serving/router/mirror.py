"""Copies of answered requests for the generation that is tried: its answers are compared with those that users got, and never sent.

A copy is made after its user has the answer, waits here and not where users wait, and goes out while nobody else waits for
either generation. What does not get its turn is dropped and counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from orchestrator.serving.dispatch.dispatcher import Dispatcher
from orchestrator.serving.dispatch.lanes import Caller, Lane, Request
from orchestrator.serving.errors import RequestError
from orchestrator.serving.observe.arms import Arm
from orchestrator.serving.protocol.oip import LAST, InferRequest
from orchestrator.serving.protocol.signature import Fitted, fit
from orchestrator.serving.protocol.tensors import Tensor
from orchestrator.serving.router.between import Between
from orchestrator.serving.router.chain import signature_of, start
from orchestrator.serving.split import BLOCK, Splitter

MOST_WAITING: Final = 64
MOST_RUNNING: Final = 8
MOST_BYTES: Final = 32 << 20
"""Of what waits; a single larger request is not copied."""
WAIT_S: Final = 5.0
"""A copy that waits for longer is dropped."""
RUN_S: Final = 30.0
COPY_PRIORITY: Final = LAST + 1
"""After everybody else."""

NOTHING: Final = Fitted((), (), 0, (), 0)
"""Of a request that was not compared with a model yet."""


class _Pair(NamedTuple):
    """An answered request, and what its user sent and got."""

    asked: InferRequest
    request: Request
    outputs: Sequence[Tensor]
    answered: float

    @property
    def size_bytes(self) -> int:
        """What it keeps in memory, at most: the outputs are a part of those of their batch."""
        fitted, rows = self.request.fitted, self.request.ran[1]
        return fitted.size_bytes + sum(len(tensor.data) for tensor in self.outputs) * max(
            1, rows // max(1, fitted.rows)
        )


class Mirror:
    """The copies of one endpoint.

    Args:
        percent: Of stable's requests that are copied: exact in every hundred.
        canary: Where the copies go.
        arm: What they are counted under.
    """

    def __init__(self, dispatcher: Dispatcher, canary: Lane, stable: Lane, arm: Arm, percent: int, seed: str) -> None:
        self.percent = percent
        self.arm = arm
        self.canary, self.stable = canary, stable
        self._dispatcher = dispatcher
        self._dealer = Splitter({1: percent, 0: BLOCK - percent}, seed)
        self._waiting: deque[_Pair] = deque()
        self._bytes = self._running = 0
        self._timed = False

    @property
    def waiting(self) -> int:
        """Copies that have not had their turn."""
        return len(self._waiting)

    def takes(self) -> bool:
        """Tell whether the next of stable's requests is to be copied."""
        return self.percent > 0 and self._dealer.next() == 1

    def offer(self, asked: InferRequest, request: Request, outputs: Sequence[Tensor]) -> None:
        """Copy a request that stable has just answered."""
        if not self.percent:
            return
        pair = _Pair(asked, request, outputs, self._dispatcher.clock())
        size = pair.size_bytes
        if len(self._waiting) >= MOST_WAITING or self._bytes + size > MOST_BYTES:
            self._count("dropped")
            return
        self._waiting.append(pair)
        self._bytes += size
        if not self._timed:  # those who wait for the replica that has just become free go first
            self._timed = True
            self._dispatcher.soon(self._soon)

    def _soon(self) -> None:
        self._timed = False
        self.tick(self._dispatcher.clock())

    def tick(self, now: float) -> None:
        """Send what may go now, drop what has waited too long; call this every 50 ms or so."""
        while self._waiting:
            late = now - self._waiting[0].answered > WAIT_S
            if not late and not self._is_quiet():
                return
            pair = self._waiting.popleft()
            self._bytes -= pair.size_bytes
            if late or not self.canary.ready or self.canary.retired:
                self._count("dropped")
                continue
            self._running += 1
            copy = Copy(self, pair)
            try:
                self._start(copy, pair.asked, now)
            except RequestError as error:
                copy.refuse(error, self.canary)

    def _start(self, copy: Copy, asked: InferRequest, now: float) -> None:
        lane = self.canary
        fitted = fit(asked, signature_of(lane))
        request = Request(copy, lane, fitted, None, now, now + RUN_S, True, COPY_PRIORITY, arm=self.arm)
        request.leave_at = now + WAIT_S
        start(request, self._dispatcher)

    def close(self) -> None:
        """Make no more copies; what runs is still compared."""
        self.percent = 0
        while self._waiting:
            self._waiting.popleft()
            self._count("dropped")
        self._bytes = 0

    def _is_quiet(self) -> bool:
        """Tell whether no user waits for either generation."""
        if self._running >= MOST_RUNNING:
            return False
        lanes = (*self.stable.stages, *self.canary.stages)
        return all(not lane.queue or lane.queue[0].priority == COPY_PRIORITY for lane in lanes)

    def compared(self, pair: _Pair, request: Request, outputs: Sequence[Tensor]) -> None:
        """Called by a copy that was answered."""
        self._running -= 1
        if self._dispatcher.witness is not None:
            self._dispatcher.witness.paired(pair.request, pair.outputs, request, outputs)

    def failed(self, error: RequestError) -> None:
        """Called by a copy that was not."""
        self._running -= 1
        self._count("dropped" if error.status in (429, 503) else "failed")

    def _count(self, why: str) -> None:
        if self._dispatcher.witness is not None:
            self._dispatcher.witness.unpaired(self.arm, "dropped" if why == "dropped" else "failed")


class Copy:
    """The caller of a copy: nobody but the comparison waits."""

    __slots__ = ("_mirror", "_pair", "done", "gone")

    def __init__(self, mirror: Mirror, pair: _Pair) -> None:
        self._mirror = mirror
        self._pair = pair
        self.done = self.gone = False

    def answer(self, request: Request, outputs: Sequence[Tensor]) -> None:
        """Compare."""
        if not self.done:
            self.done = True
            self._mirror.compared(self._pair, request, outputs)

    def refuse(self, error: RequestError, lane: Lane | None) -> None:  # noqa: ARG002 - there is one
        """Count it."""
        if not self.done:
            self.done = True
            self._mirror.failed(error)


class Original(Between):
    """The caller of a request that is copied once it is answered."""

    __slots__ = ("_asked", "_mirror")

    def __init__(self, outer: Caller, asked: InferRequest, mirror: Mirror) -> None:
        super().__init__(outer)
        self._asked = asked
        self._mirror = mirror

    def answer(self, request: Request, outputs: Sequence[Tensor]) -> None:
        """Answer the client; the copy comes after it.

        Raises:
            RequestError: Its protocol cannot carry these outputs.
        """
        self.outer.answer(request, outputs)
        self._mirror.offer(self._asked, request, outputs)

    def refuse(self, error: RequestError, lane: Lane | None) -> None:
        """Answer the client with an error; it is not copied."""
        self.outer.refuse(error, lane)
