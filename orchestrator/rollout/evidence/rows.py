"""Rows of evidence, as the ledger keeps them: what a router has counted since the last look, and answers of Prometheus."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, Self, cast

Histogram = Mapping[str, int]
"""Bucket of `serving/observe/buckets` -> count."""

MIRROR: Final = "mirror"
"""Traffic of copies; its delta also carries what belongs to no arm: pairs, classes, failures in a row."""
_MOST: Final = 2**53


def whole(value: object) -> int:
    """Return a count; what is none (NaN, negative, a text) is 0, and what is absurd is cut."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return max(0, min(int(value), _MOST))


def number(value: object) -> float:
    """Return a number that is not negative; what is none is 0."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value >= 0 else 0.0


def mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping; what is none is empty."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _histogram(value: object) -> dict[str, int]:
    return {str(key): whole(count) for key, count in mapping(value).items()}


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the requests of one side.

    Attributes:
        requests: Answered, well or with a server's fault.
        errors: Server's faults.
        shared: Of a canary's errors, those that stable, which was asked then, has failed as well. Rows of before this was counted
            have none.
        nonfinite: Answers with a NaN or an infinity.
        saturated: Answers with a value at the edge of the device's number format.
        compute: Rows of a batch -> histogram of its device time; batches are counted, not requests.
        total: Histogram of the time from arrival to answer.
        users: Distinct sticky keys; `users_error`, `users_nonfinite`, `users_shared`: those that have met one at least once;
            `users_both`: those that have met a shared error, and one that was not.
    """

    requests: int = 0
    errors: int = 0
    nonfinite: int = 0
    saturated: int = 0
    fell_back: int = 0
    refused: int = 0
    users: int = 0
    users_error: int = 0
    users_nonfinite: int = 0
    shared: int = 0
    users_shared: int = 0
    users_both: int = 0
    compute: Mapping[str, Histogram] = field(default_factory=dict[str, Histogram])
    total: Histogram = field(default_factory=dict[str, int])

    def to_json(self) -> dict[str, Any]:
        """Return the stored form: zeros are left out."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name))}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Rebuild; also from a row of `RouterAdmin.evidence`, whose errors are counted by kind."""
        row = mapping(data)
        total = sum(_histogram(mapping(row.get("errors"))).values()) or whole(row.get("errors"))
        compute = {str(rows): _histogram(times) for rows, times in mapping(row.get("compute")).items()}
        return cls(
            requests=whole(row.get("requests")),
            errors=total,
            compute=compute,
            total=_histogram(row.get("total")),
            **{name: whole(row.get(name)) for name in _PLAIN},
        )

    def minus(self, before: Counts) -> Counts:
        """Return what was counted since; where anything has shrunk, counting began anew and all of it counts."""
        compute = {rows: _less(times, before.compute.get(rows, {})) for rows, times in self.compute.items()}
        found = Counts(
            requests=self.requests - before.requests,
            errors=self.errors - before.errors,
            compute={rows: times for rows, times in compute.items() if times},
            total=_less(self.total, before.total),
            **{name: getattr(self, name) - getattr(before, name) for name in _PLAIN},
        )
        shrunk = min(found.requests, found.errors, *(getattr(found, name) for name in _PLAIN)) < 0
        return self if shrunk else found

    @property
    def users_own(self) -> int:
        """Users that have met an error that stable does not share; may exceed `users_error` of one row, whose users met it before."""
        return self.users_error - self.users_shared + self.users_both

    @property
    def empty(self) -> bool:
        """Whether nothing was counted."""
        return not self.to_json()


_PLAIN: Final = (
    "nonfinite", "saturated", "fell_back", "refused", "users", "users_error", "users_nonfinite", "shared", "users_shared", "users_both",
)  # fmt: skip


def _less(now: Histogram, before: Histogram) -> dict[str, int]:
    return {key: more for key, count in now.items() if (more := count - before.get(key, 0)) > 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one router has counted since the last look, of one kind of traffic at one weight.

    Attributes:
        t: When it was read, unix seconds.
        boot: Which life of which router; counts of another life begin at zero.
        traffic: weighted, sticky, header, version or probe; `MIRROR` for copies and for what belongs to no arm.
        weight: The canary's weight in percent when the requests were dealt.
        pairs: Growth of the router's pairs, with `max_abs` as it stands; None where nothing was compared.
        failures_in_row: Of the canary, over all traffic, as it stands.
        classes: "canary" and "stable" -> class -> growth of its count.
    """

    t: float
    boot: str
    traffic: str
    weight: int
    canary: Counts = field(default_factory=Counts)
    stable: Counts = field(default_factory=Counts)
    pairs: Mapping[str, float] | None = None
    failures_in_row: int = 0
    classes: Mapping[str, Histogram] = field(default_factory=dict[str, Histogram])

    @property
    def synthetic(self) -> bool:
        """Whether golden samples were replayed, not users' requests."""
        return self.traffic == "probe"

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        found: dict[str, Any] = {"kind": "counts", "t": self.t, "boot": self.boot, "traffic": self.traffic}
        found |= {"weight": self.weight, "canary": self.canary.to_json(), "stable": self.stable.to_json()}
        optional = {"pairs": self.pairs, "failures_in_row": self.failures_in_row, "classes": self.classes}
        return found | {name: value for name, value in optional.items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a row."""
        pairs = mapping(data.get("pairs"))
        return cls(
            t=float(data["t"]),
            boot=str(data["boot"]),
            traffic=str(data["traffic"]),
            weight=int(data["weight"]),
            canary=Counts.from_json(data.get("canary")),
            stable=Counts.from_json(data.get("stable")),
            pairs={key: number(value) for key, value in pairs.items()} if pairs else None,
            failures_in_row=whole(data.get("failures_in_row")),
            classes={side: _histogram(counts) for side, counts in mapping(data.get("classes")).items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An answer of a custom metric.

    Attributes:
        value: The number; None where the answer was empty or there was an error.
        error: Why there is none; empty where the server has answered.
    """

    t: float
    metric: str
    value: float | None = None
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the stored form; NaN and infinities as text, since JSON has none."""
        value = self.value if self.value is None or math.isfinite(self.value) else str(self.value)
        return {"kind": "sample", "t": self.t, "metric": self.metric, "value": value, "error": self.error}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a row."""
        value = data.get("value")
        found = None if value is None else float(value)
        return cls(t=float(data["t"]), metric=str(data["metric"]), value=found, error=str(data.get("error", "")))


Row = Delta | Sample


def row_from_json(data: Mapping[str, Any]) -> Row:
    """Rebuild a stored row of either kind."""
    kind: Literal["counts", "sample"] = data.get("kind", "counts")
    return Sample.from_json(data) if kind == "sample" else Delta.from_json(data)
