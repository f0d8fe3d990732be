"""Counters and histograms of what the router has done. Filled from whole piles of finished requests and batches, never one by one."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

import numpy as np

from orchestrator.serving.observe.exposition import Family, Labels

SECONDS: Final = (
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_FEW: Final = 32
_FORGET_S: Final = 900.0
"""What is no longer in the table is shown this long after its last request, so that a last scrape sees the end of it."""

Place = tuple[str, int, str]
"""Endpoint, generation (0 where a request ended before one was chosen), stage."""


BatchRow = tuple[Place, str, str, int, int, int, int, int]
"""One batch that came back: place, replica, device, rows, compute_us, copy_us (-1 where the runtime does not know), bytes of its
inputs, bytes of its outputs.
"""


class Histogram:
    """Counts per bucket, and the sum; `edges` are upper bounds."""

    __slots__ = ("_bounds", "counts", "edges", "total")

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = edges
        self._bounds = np.asarray(edges, np.float64)
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0

    def add(self, values: Sequence[float], unit: float = 1.0) -> None:
        """Count many values at once, each times `unit`."""
        if len(values) < _FEW:
            for value in values:
                self.counts[bisect_left(self.edges, value * unit)] += 1
        else:
            places = self._bounds.searchsorted(np.asarray(values, np.float64) * unit)
            more = np.bincount(places, minlength=len(self.counts)).tolist()
            self.counts = [old + new for old, new in zip(self.counts, more, strict=True)]
        self.total += sum(values) * unit

    def to(self, family: Family, labels: Labels) -> None:
        """Write it down."""
        family.add_histogram(labels, self.edges, self.counts, self.total)


class _Requests:
    """What became of the requests of one place."""

    __slots__ = ("ended", "queue", "seen", "whole")

    def __init__(self) -> None:
        self.ended: dict[tuple[int, str], int] = {}
        self.queue, self.whole = Histogram(SECONDS), Histogram(SECONDS)
        self.seen = 0.0


class _Batches:
    """What one replica has computed of one place."""

    __slots__ = ("bytes_in", "bytes_out", "compute", "copy", "rows", "seen")

    def __init__(self) -> None:
        self.rows, self.compute, self.copy = Histogram(ROWS), Histogram(SECONDS), Histogram(SECONDS)
        self.bytes_in = self.bytes_out = 0
        self.seen = 0.0


class Metrics:
    """What has happened since the router's start.

    Labels come from the routing table and from agents, never from what a client sends, so their number is bounded.
    """

    def __init__(self) -> None:
        self._requests: dict[Place, _Requests] = {}
        self._batches: dict[tuple[Place, str, str], _Batches] = {}

    def count_requests(
        self, place: Place, status: int, kind: str, queue_s: Sequence[float], total_s: Sequence[float]
    ) -> None:
        """Take in requests that ended alike; only those that succeeded are in the histograms."""
        found = self._requests.get(place)
        if found is None:
            found = self._requests[place] = _Requests()
        found.ended[status, kind] = found.ended.get((status, kind), 0) + len(queue_s)
        found.seen = time.monotonic()
        if status == 200:
            found.queue.add(queue_s)
            found.whole.add(total_s)

    def count_batches(self, rows: Sequence[BatchRow]) -> None:
        """Take in batches."""
        groups: dict[tuple[Place, str, str], list[BatchRow]] = {}
        for row in rows:
            groups.setdefault(row[:3], []).append(row)
        for key, group in groups.items():
            place, replica, device = key
            lasting = (place, slot_of(place[0], replica), device)
            found = self._batches.get(lasting)
            if found is None:
                found = self._batches[lasting] = _Batches()
            found.seen = time.monotonic()
            found.rows.add([row[3] for row in group])
            found.compute.add([row[4] for row in group], 1e-6)
            copies = [row[5] for row in group if row[5] >= 0]
            if copies:
                found.copy.add(copies, 1e-6)
            found.bytes_in += sum([row[6] for row in group])
            found.bytes_out += sum([row[7] for row in group])

    def families(self, router: str, in_table: Collection[tuple[str, int]]) -> Iterator[Family]:
        """Give all of it, each family made when it is asked for; what is not in the table any more is forgotten a while after its last
        request.

        Args:
            router: Which router this is.
            in_table: Endpoint and generation of every lane.
        """
        self._forget(in_table)
        yield self._ended(router)
        for name, about, pick in _OF_REQUESTS:
            family = Family(name, "histogram", about)
            for place, found in self._requests.items():
                pick(found).to(family, place_labels(router, place))
            yield family
        for name, about, pick in _OF_BATCHES:
            family = Family(name, "histogram", about)
            for key, found in self._batches.items():
                histogram = pick(found)
                if any(histogram.counts):
                    histogram.to(family, _batch_labels(router, key))
            yield family
        yield self._bytes(router, "orchestrate_input_bytes_total", "Bytes of input tensors that replicas computed.")
        yield self._bytes(router, "orchestrate_output_bytes_total", "Bytes of output tensors that replicas gave.")

    def _ended(self, router: str) -> Family:
        about = "Requests that ended, by outcome; probes are not counted."
        family = Family("orchestrate_requests_total", "counter", about)
        for place, found in self._requests.items():
            labels = place_labels(router, place)
            for (status, kind), count in found.ended.items():
                family.add({**labels, "status": status, "kind": kind or "ok"}, count)
        return family

    def _bytes(self, router: str, name: str, about: str) -> Family:
        family = Family(name, "counter", about)
        for key, found in self._batches.items():
            family.add(_batch_labels(router, key), found.bytes_in if "input" in name else found.bytes_out)
        return family

    def _forget(self, in_table: Collection[tuple[str, int]]) -> None:
        until = time.monotonic() - _FORGET_S
        known = {*in_table, *((endpoint, 0) for endpoint, _ in in_table)}
        for place in [p for p, found in self._requests.items() if found.seen < until and p[:2] not in known]:
            del self._requests[place]
        # A replica may have left a generation that stays: agents come and go.
        for key in [k for k, found in self._batches.items() if found.seen < until and k[0][:2] not in known]:
            del self._batches[key]


_OF_REQUESTS: Final[tuple[tuple[str, str, Callable[[_Requests], Histogram]], ...]] = (
    (
        "orchestrate_request_queue_seconds",
        "From the whole request to the batch with it; over all stages where there are some.",
        lambda found: found.queue,
    ),
    ("orchestrate_request_duration_seconds", "From the whole request to its answer.", lambda found: found.whole),
)
_OF_BATCHES: Final[tuple[tuple[str, str, Callable[[_Batches], Histogram]], ...]] = (
    ("orchestrate_batch_rows", "Rows that ran together in one batch.", lambda found: found.rows),
    ("orchestrate_batch_compute_seconds", "Time of a batch in the replica's runtime.", lambda found: found.compute),
    ("orchestrate_batch_copy_seconds", "Its share that copied to and from the device.", lambda found: found.copy),
)


def _batch_labels(router: str, key: tuple[Place, str, str]) -> dict[str, object]:
    return {**place_labels(router, key[0]), "replica": key[1], "device": key[2]}


def slot_of(endpoint: str, replica: str) -> str:
    """Return the slot that a replica's name begins with: the same after a restart and for the next bundle, so that labels do
    not grow in number.
    """
    return replica.partition(f".{endpoint}.")[0]


def place_labels(router: str, place: Place) -> dict[str, object]:
    """Return the labels that name a lane."""
    return {"router": router, "endpoint": place[0], "generation": place[1], "stage": place[2]}
