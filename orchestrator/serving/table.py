"""The routing table: which endpoint is served by which generations, with which weights. Immutable, versioned, fenced."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final, cast

from orchestrator.core.digests import is_digest
from orchestrator.core.errors import Conflict, ServingError
from orchestrator.core.ids import is_name

STATES: Final = ("staged", "live", "draining")
BLOCK: Final = 100
"""Weights are exact in every run of this many requests."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of an endpoint.

    Attributes:
        bundle: The bundle's digest; clients see it in a header.
        path: The unpacked, read-only bundle folder on the serve site.
        runtime: A name of `orchestrator.serving.runtimes.api`.
        weight: Percent of the endpoint's unversioned requests, 0 to 100.
        state: staged | live | draining.
        device: What the agent's slot must say it is; part of every answer.
        variant: Digest of the variant that is loaded in place of the bundle's ONNX graph; empty without one.
        variant_path: The variant's folder on the serve site.
    """

    generation: int
    bundle: str
    path: str
    runtime: str
    weight: int
    state: str
    device: str
    variant: str = ""
    variant_path: str = ""

    @property
    def build(self) -> tuple[str, str]:
        """What a replica of this generation has loaded: bundle and variant."""
        return self.bundle, self.variant

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        return {name: getattr(self, name) for name in _GENERATION}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A name that clients call, in one pool."""

    name: str
    pool: str
    generations: tuple[Generation, ...]

    def find(self, generation: int) -> Generation | None:
        """Return the generation of this number, or None."""
        return next((g for g in self.generations if g.generation == generation), None)


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """The whole table. A later table replaces an earlier one as a whole."""

    version: int
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict[str, Endpoint])

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        return {
            "version": self.version,
            "endpoints": {
                name: {"pool": e.pool, "generations": [g.to_json() for g in e.generations]}
                for name, e in self.endpoints.items()
            },
        }

    @classmethod
    def from_json(cls, data: object) -> RoutingTable:
        """Parse and check a table.

        Raises:
            ServingError: Something is missing, unknown or against the rules; the message names the place.
        """
        body = _object(data, "table", ("version", "endpoints"))
        version = _int(body["version"], "version", 0, 2**63 - 1)
        endpoints = body["endpoints"]
        if not isinstance(endpoints, Mapping):
            raise _wrong("endpoints must be an object", "endpoints")
        pairs = cast("Mapping[str, object]", endpoints).items()
        return cls(version, {name: _endpoint(name, value) for name, value in pairs})

    def replace(self, new: RoutingTable) -> RoutingTable:
        """Return the table that rules after `new` has been offered: fencing.

        Raises:
            Conflict: `new` is older, or has this version with another content.
        """
        if new.version < self.version:
            raise Conflict(
                f"table version {new.version} is older than {self.version}",
                hint="read the table again; another writer was faster",
                details={"current": self.version},
            )
        if new.version == self.version and new != self:
            raise Conflict(
                f"table version {new.version} is already in use with another content",
                hint="take the next version from the ledger",
                details={"current": self.version},
            )
        return new

    def placements(self, pool: str) -> Iterator[tuple[Endpoint, Generation]]:
        """Yield what the agents of `pool` must run: one item per (endpoint, bundle, variant)."""
        for endpoint in self.endpoints.values():
            if endpoint.pool == pool:
                builds = {g.build: g for g in endpoint.generations}
                yield from ((endpoint, g) for g in builds.values())


EMPTY: Final = RoutingTable(0)
_GENERATION: Final = ("generation", "bundle", "path", "runtime", "weight", "state", "device", "variant", "variant_path")
_OPTIONAL: Final = ("variant", "variant_path")


def _wrong(message: str, place: str) -> ServingError:
    return ServingError(f"routing table: {message}", place=place, hint="send a whole, valid table")


def _object(value: object, place: str, keys: Sequence[str], optional: Sequence[str] = ()) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _wrong("must be an object", place)
    body = cast("Mapping[str, object]", value)
    if set(body) | set(optional) != set(keys):
        raise _wrong(f"has keys {sorted(body)}, needs {sorted(keys)}", place)
    return body


def _int(value: object, place: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(f"{value!r} must be an integer from {low} to {high}", place)
    return value


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise _wrong(f"{value!r} must be a printable text", place)
    return value


def _endpoint(name: str, value: object) -> Endpoint:
    body = _object(value, f"endpoints.{name}", ("pool", "generations"))
    pool, rows = body["pool"], body["generations"]
    if not is_name(name) or not isinstance(pool, str) or not is_name(pool):
        raise _wrong(f"endpoint {name!r} in pool {pool!r}: not names", f"endpoints.{name}")
    if not isinstance(rows, list):
        raise _wrong("generations must be a list", f"endpoints.{name}")
    generations = tuple(
        _generation(row, f"endpoints.{name}.generations.{i}") for i, row in enumerate(cast("list[object]", rows))
    )
    if len({g.generation for g in generations}) != len(generations):
        raise _wrong("a generation appears twice", f"endpoints.{name}")
    total = sum(g.weight for g in generations)
    if total not in (0, 100):
        raise _wrong(f"weights sum to {total}, must be 100 or 0", f"endpoints.{name}")
    _check_bundles(generations, name)
    return Endpoint(name, pool, generations)


def _check_bundles(generations: Sequence[Generation], name: str) -> None:
    seen: dict[tuple[str, str], tuple[str, ...]] = {}
    for g in generations:
        how = (g.path, g.runtime, g.device, g.variant_path)
        if seen.setdefault(g.build, how) != how:
            raise _wrong(f"bundle {g.bundle} appears with two paths, runtimes or devices", f"endpoints.{name}")


def _generation(value: object, place: str) -> Generation:
    body = _object(value, place, _GENERATION, _OPTIONAL)
    bundle, path = _text(body["bundle"], f"{place}.bundle"), _text(body["path"], f"{place}.path")
    state = _text(body["state"], f"{place}.state")
    weight = _int(body["weight"], f"{place}.weight", 0, 100)
    if not is_digest(bundle):
        raise _wrong(f"{bundle[:80]!r} is no digest", f"{place}.bundle")
    if not PurePosixPath(path).is_absolute():
        raise _wrong(f"{path!r} must be absolute", f"{place}.path")
    if state not in STATES or (state == "draining" and weight):
        raise _wrong(f"state {state!r} with weight {weight}: states are {STATES}, draining has weight 0", place)
    number = _int(body["generation"], f"{place}.generation", 1, 2**31 - 1)
    runtime, device = _text(body["runtime"], f"{place}.runtime"), _text(body["device"], f"{place}.device")
    variant, folder = _variant(body, place)
    return Generation(number, bundle, path, runtime, weight, state, device, variant, folder)


def _variant(body: Mapping[str, object], place: str) -> tuple[str, str]:
    digest, path = body.get("variant", ""), body.get("variant_path", "")
    if digest == "" and path == "":
        return "", ""
    digest, folder = _text(digest, f"{place}.variant"), _text(path, f"{place}.variant_path")
    if not is_digest(digest) or not PurePosixPath(folder).is_absolute():
        raise _wrong(f"variant {digest[:80]!r} at {folder!r}: needs a digest and an absolute path", place)
    return digest, folder


class Splitter:
    """Deals requests to generations in permuted blocks: exact weights in every `BLOCK`, random order within.

    Args:
        weights: Generation number -> weight; the weights sum to `BLOCK` or to 0.
        seed: Makes the order repeatable.
    """

    __slots__ = ("_block", "_place", "_random", "weights")

    def __init__(self, weights: Mapping[int, int], seed: str) -> None:
        self.weights = dict(weights)
        self._random = random.Random(seed)
        self._block = [generation for generation, weight in weights.items() for _ in range(weight)]
        self._place = len(self._block)

    def next(self) -> int | None:
        """Return the generation for the next request; None where nothing has a weight."""
        block = self._block
        if self._place >= len(block):
            if not block:
                return None
            self._random.shuffle(block)
            self._place = 0
        generation = block[self._place]
        self._place += 1
        return generation
