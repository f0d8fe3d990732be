"""Measured curves: how long one kind of device takes for a batch of each size. Nothing is sized without one.

A curve belongs to what was measured: bundle, variant and device. It lies in a file of the environment's state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.core.digests import sha256_json
from orchestrator.core.files import private_folder, write_json
from orchestrator.ledger import Generation
from orchestrator.serving.admin import RouterAdmin

FOLDER: Final = "curves"
"""Below the environment's state."""
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Point:
    """Device time of batches with this many rows; `p99_us` of few batches is that of the slowest."""

    batch: int
    batches: int
    mean_us: float
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What was measured.

    Attributes:
        bundle: Digest of the bundle.
        variant: Digest of the variant that the device loaded; empty for the bundle's own graph.
        device: What computed: a SoC, or `cpu (rehearsal)`.
        points: By batch size, smallest first.
        overhead_us: Median of what a request of one row takes beside the device: router, link, stages before and after the model.
        measured_at: Unix seconds.
        slots: How many slots took part; they did not compute at the same time.
    """

    endpoint: str
    bundle: str
    variant: str
    device: str
    runtime: str
    points: tuple[Point, ...]
    overhead_us: float
    measured_at: float
    slots: int = 1

    @property
    def rehearsal(self) -> bool:
        """Whether a CPU stood in for the device: such a curve says nothing about a real one."""
        return "rehearsal" in self.device

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        return {"curve": _VERSION, **asdict(self), "points": [asdict(point) for point in self.points]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Curve:
        """Rebuild a curve.

        Raises:
            ValueError: It is of another version.
        """
        if data.get("curve") != _VERSION:
            raise ValueError(f"a curve of version {data.get('curve')!r}")
        fields: dict[str, Any] = {name: value for name, value in data.items() if name in cls.__dataclass_fields__}
        fields["points"] = tuple(Point(**row) for row in cast("list[Mapping[str, Any]]", data["points"]))
        return cls(**fields)


def save_curve(state: Path, curve: Curve) -> Path:
    """Keep a curve in place of an older one of the same build and device; returns the file."""
    path = _path(state, curve.bundle, curve.variant, curve.device)
    private_folder(path.parent)
    write_json(path, curve.to_json())
    return path


def find_curve(state: Path, bundle: str, variant: str, device: str) -> Curve | None:
    """Return the curve of a build on a kind of device; None where none was measured."""
    try:
        return Curve.from_json(json.loads(_path(state, bundle, variant, device).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # one that cannot be read is measured anew


def measured_devices(state: Path, bundle: str) -> list[str]:
    """Return the devices for which this bundle has a curve, for a message."""
    return sorted({curve.device for curve in _all(state) if curve.bundle == bundle})


def _all(state: Path) -> Iterator[Curve]:
    for path in sorted((state / FOLDER).glob("*.json")):
        try:
            yield Curve.from_json(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _path(state: Path, bundle: str, variant: str, device: str) -> Path:
    key = sha256_json({"bundle": bundle, "variant": variant, "device": device})
    return state / FOLDER / f"{key.removeprefix('sha256:')}.json"


def curves_of(events: Mapping[int, list[Mapping[str, Any]]], generation: Generation, now: float) -> list[Curve]:
    """Make one curve for each device that has answered.

    Args:
        events: Batch size -> the router's events of the requests that were sent with so many rows.
        generation: Who was asked.
        now: Unix seconds.
    """
    devices = sorted({str(event["device"]) for rows in events.values() for event in rows})
    return [_curve(device, events, generation, now) for device in devices]


def _curve(device: str, events: Mapping[int, list[Mapping[str, Any]]], generation: Generation, now: float) -> Curve:
    own = {size: [event for event in rows if event["device"] == device] for size, rows in sorted(events.items())}
    points = tuple(_point(size, [int(event["compute_us"]) for event in rows]) for size, rows in own.items() if rows)
    ones = own[points[0].batch]
    beside = sorted(max(0, int(event["total_us"]) - int(event["compute_us"])) for event in ones)
    build = next((each for each in generation.builds if each["device"] == device), None)
    return Curve(
        endpoint=generation.endpoint,
        bundle=generation.bundle,
        variant=str(build["variant"]) if build is not None else generation.variant,
        device=device,
        runtime=str(build["runtime"]) if build is not None else generation.runtime,
        points=points,
        overhead_us=float(beside[len(beside) // 2]),
        measured_at=now,
        slots=len({str(event["replica"]) for rows in own.values() for event in rows}),
    )


def _point(size: int, times: list[int]) -> Point:
    ordered = sorted(times)
    last = len(ordered) - 1
    return Point(
        size,
        len(ordered),
        sum(ordered) / len(ordered),
        float(ordered[last // 2]),
        float(ordered[min(last, -(-99 * len(ordered) // 100) - 1)]),
    )


class Watch:
    """Reads the router's events of one generation's probes from now on."""

    def __init__(self, admin: RouterAdmin, generation: Generation) -> None:
        self._admin, self._generation = admin, generation
        self._cursor: int | str = 0
        self.read(0)

    def read(self, rows: int) -> list[Mapping[str, Any]]:
        """Return the new events of successful probes whose batch had this many rows: their own, and nobody else's beside them."""
        found: list[Mapping[str, Any]] = []
        while True:
            answer = self._admin.events(after=self._cursor, limit=_PAGE)
            self._cursor = answer["last"]
            found += [event for event in answer["events"] if self._is_ours(event, rows)]
            if len(answer["events"]) < _PAGE:
                return found

    def _is_ours(self, event: Mapping[str, Any], rows: int) -> bool:
        place = (event["endpoint"], event["generation"]) == (self._generation.endpoint, self._generation.number)
        return place and bool(event["synthetic"]) and event["status"] == 200 and event["batch_size"] == rows


_PAGE: Final = 10_000


def merged(old: Curve | None, new: Curve) -> Curve:
    """Return the new curve with the sizes of an older one that it lacks; a pool in use may not give every size."""
    if old is None:
        return new
    have = {point.batch for point in new.points}
    points = sorted([*new.points, *(point for point in old.points if point.batch not in have)], key=lambda p: p.batch)
    return replace(new, points=tuple(points))
