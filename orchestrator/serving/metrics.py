"""Counters and histograms of the router, written as Prometheus text when asked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from orchestrator.serving.events import Event

EDGES_US: Final = (
    100,
    250,
    500,
    1000,
    2500,
    5000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    5_000_000,
)
_PHASES: Final = ("queue", "compute", "total")


class Metrics:
    """What has happened since the router's start."""

    __slots__ = ("_requests", "_times")

    def __init__(self) -> None:
        self._requests: dict[tuple[str, int, int, str], int] = {}
        self._times: dict[tuple[str, int], tuple[_Histogram, _Histogram, _Histogram]] = {}

    def count(self, event: Event) -> None:
        """Take one event in; probes are not counted."""
        if event.synthetic:
            return
        key = (event.endpoint, event.generation, event.status, event.error)
        self._requests[key] = self._requests.get(key, 0) + 1
        if event.status == 200:
            times = self._times.get(key[:2])
            if times is None:
                times = self._times[key[:2]] = (_Histogram(), _Histogram(), _Histogram())
            times[0].add(event.queue_us)
            times[1].add(event.compute_us)
            times[2].add(event.total_us)

    def text(self, gauges: Iterable[tuple[str, str, int, int]]) -> bytes:
        """Return the exposition; `gauges` are (name, endpoint, generation, value)."""
        lines = ["# TYPE orchestrate_requests_total counter"]
        for (endpoint, generation, status, error), value in self._requests.items():
            labels = f'endpoint="{endpoint}",generation="{generation}",status="{status}",error="{error}"'
            lines.append(f"orchestrate_requests_total{{{labels}}} {value}")
        for place, phase in enumerate(_PHASES):
            lines.append(f"# TYPE orchestrate_request_{phase}_seconds histogram")
            for (endpoint, generation), times in self._times.items():
                labels = f'endpoint="{endpoint}",generation="{generation}"'
                lines.extend(times[place].lines(f"orchestrate_request_{phase}_seconds", labels))
        seen: set[str] = set()
        for name, endpoint, generation, value in sorted(gauges):
            if name not in seen:
                seen.add(name)
                lines.append(f"# TYPE {name} gauge")
            lines.append(f'{name}{{endpoint="{endpoint}",generation="{generation}"}} {value}')
        return ("\n".join(lines) + "\n").encode()


class _Histogram:
    __slots__ = ("_counts", "_sum_us")

    def __init__(self) -> None:
        self._counts = [0] * (len(EDGES_US) + 1)
        self._sum_us = 0

    def add(self, value_us: int) -> None:
        self._counts[bisect_left(EDGES_US, value_us)] += 1
        self._sum_us += value_us

    def lines(self, name: str, labels: str) -> Iterable[str]:
        total = 0
        for edge, found in zip((*EDGES_US, None), self._counts, strict=True):
            total += found
            le = "+Inf" if edge is None else repr(edge / 1e6)
            yield f'{name}_bucket{{{labels},le="{le}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum_us / 1e6}"
        yield f"{name}_count{{{labels}}} {total}"
