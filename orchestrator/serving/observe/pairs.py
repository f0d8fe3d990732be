"""Pairs of answers to one request, compared by a thread beside the event loop: it takes little time, and what is too much is dropped."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from orchestrator.serving.observe.likeness import Likeness, likeness
from orchestrator.serving.protocol.tensors import Tensor

_MOST_WAITING: Final = 256
_MOST_BYTES: Final = 64 << 20
_COPIED_BYTES: Final = 1 << 16
"""A smaller tensor is copied, so that it does not hold the frame of its whole batch."""
_PAUSE_S: Final = 0.02
_WORK_S: Final = 0.002
"""Between two pauses: the thread takes a tenth of a core at most, apart from pairs that take longer alone."""

Ran = tuple[str, int, int]
"""Replica, rows of the batch, device time in us."""


class PairCounts:
    """What was compared of one canary.

    Attributes:
        dropped: Copies that were not taken, or pairs that were not compared, for load.
        failed: Copies that the canary did not answer.
        faster: Pairs in which the canary's batch took less time on its device than one of as many rows of the stable generation.
    """

    __slots__ = (
        "agree", "canary", "dropped", "failed", "faster", "flips", "max_abs", "misfit", "n", "nonfinite", "slower", "stable", "top1",
    )  # fmt: skip

    def __init__(self, stable: int, canary: int) -> None:
        self.stable, self.canary = stable, canary
        self.n = self.agree = self.top1 = self.flips = self.nonfinite = self.misfit = 0
        self.dropped = self.failed = self.faster = self.slower = 0
        self.max_abs = 0.0

    def add(self, found: Likeness, stable: Ran, canary: Ran) -> None:
        """Count a pair."""
        self.n += 1
        self.agree += found.agree
        self.misfit += found.misfit
        self.nonfinite += found.nonfinite
        self.top1 += found.same_top is True
        self.flips += found.same_top is False
        self.max_abs = max(self.max_abs, found.max_abs)
        if stable[1] == canary[1]:
            self.faster += canary[2] < stable[2]
            self.slower += canary[2] > stable[2]

    def to_json(self) -> dict[str, object]:
        """Return the form that `RouterAdmin.evidence` describes."""
        return {name: getattr(self, name) for name in self.__slots__}


class _Pair(NamedTuple):
    counts: PairCounts
    stable: Sequence[Tensor]
    canary: Sequence[Tensor]
    ran: tuple[Ran, Ran]
    tolerances: tuple[float, float]
    size: int


class Comparer:
    """Compares pairs as they come. Only the methods without `_` are called, by the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[_Pair] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self._more = threading.Event()
        self._thread: threading.Thread | None = None
        self._over = False

    def offer(
        self,
        counts: PairCounts,
        stable: Sequence[Tensor],
        canary: Sequence[Tensor],
        ran: tuple[Ran, Ran],
        tolerances: tuple[float, float],
    ) -> None:
        """Take a pair, or drop it where too many wait.

        Args:
            counts: Where it is counted.
            stable: The outputs of the stable generation.
            canary: Those of the canary.
            ran: How the two ran.
            tolerances: rtol, atol.
        """
        if len(self._waiting) >= _MOST_WAITING or self._over:
            counts.dropped += 1
            return
        stable, canary = [_held(tensor) for tensor in stable], [_held(tensor) for tensor in canary]
        size = sum(_held_bytes(tensor) for tensor in (*stable, *canary))
        with self._lock:
            if self._waiting and self._bytes + size > _MOST_BYTES:
                counts.dropped += 1
                return
            self._bytes += size
            self._waiting.append(_Pair(counts, stable, canary, ran, tolerances, size))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pairs", daemon=True)
            self._thread.start()
        self._more.set()

    def read(self, counts: PairCounts) -> dict[str, object]:
        """Return counts, no pair half counted."""
        with self._lock:
            return counts.to_json()

    def settle(self, timeout_s: float) -> bool:
        """Wait until all that was taken is counted; returns whether it is."""
        deadline = time.monotonic() + timeout_s
        while self._bytes or self._waiting:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def close(self) -> None:
        """End the thread; what waits is left."""
        self._over = True
        self._more.set()

    def _run(self) -> None:
        while not self._over:
            self._more.wait()
            self._more.clear()
            while self._waiting and not self._over:
                self._work()
                time.sleep(_PAUSE_S)

    def _work(self) -> None:
        until = time.thread_time() + _WORK_S
        while self._waiting:
            with self._lock:
                pair = self._waiting.popleft()
            found = likeness(pair.stable, pair.canary, *pair.tolerances)
            with self._lock:
                pair.counts.add(found, *pair.ran)
                self._bytes -= pair.size
            if time.thread_time() > until:
                return
            time.sleep(0)  # the event loop goes first


def _held(tensor: Tensor) -> Tensor:
    if len(tensor.data) > _COPIED_BYTES or isinstance(tensor.data, bytes):
        return tensor
    return tensor._replace(data=bytes(tensor.data))


def _held_bytes(tensor: Tensor) -> int:
    """Return what the tensor keeps in memory: of a view, all that it is a view of."""
    held = tensor.data.obj if isinstance(tensor.data, memoryview) else tensor.data
    return 64 + memoryview(held).nbytes
