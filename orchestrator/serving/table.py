"""The routing table: which endpoint is served by which generations, with which weights. Immutable, versioned, fenced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Final, cast

from orchestrator.core.digests import is_digest
from orchestrator.core.errors import Conflict
from orchestrator.core.ids import is_name
from orchestrator.serving.split import BLOCK, HeaderRoute, Split, Splitter
from orchestrator.serving.table_fields import check_int, check_object, check_text, wrong

__all__ = (
    "BLOCK", "EMPTY", "MOST_SLOTS", "STATES",
    "Build", "Endpoint", "Generation", "HeaderRoute", "RoutingTable", "Split", "Splitter",
)  # fmt: skip

STATES: Final = ("staged", "live", "warm", "draining")
MOST_SLOTS: Final = 1024
_IDLE: Final = ("warm", "draining")
"""States of generations that get no unversioned requests."""


@dataclass(frozen=True, slots=True)
class Build:
    """What the slots of one SoC load of a generation, in a pool that has several.

    Attributes:
        soc: The SoC that the agent of the slot names.
        device: What the agent's slot must say it is; part of the answers of this build.
    """

    soc: str
    runtime: str
    device: str
    variant: str = ""
    variant_path: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        return {name: getattr(self, name) for name in _BUILD}


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of an endpoint.

    Attributes:
        bundle: The bundle's digest; clients see it in a header.
        path: The unpacked, read-only bundle folder on the serve site.
        runtime: A name of `orchestrator.serving.runtimes.api`.
        weight: Percent of the endpoint's unversioned requests, 0 to 100.
        state: staged | live | warm (loaded, for an instant rollback) | draining.
        device: What the agent's slot must say it is; part of every answer.
        variant: Digest of the variant that is loaded in place of the bundle's ONNX graph; empty without one.
        variant_path: The variant's folder on the serve site.
        builds: What each SoC loads, the first being the one above; empty in a pool of one SoC.
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
    builds: tuple[Build, ...] = ()

    @property
    def build(self) -> tuple[str, str]:
        """What a replica of this generation has loaded: bundle and variant."""
        return self.bundle, self.variant

    @property
    def faces(self) -> tuple[Generation, ...]:
        """The generation as each of its builds shows it; itself where there is one."""
        if not self.builds:
            return (self,)
        return tuple(
            replace(self, runtime=b.runtime, device=b.device, variant=b.variant, variant_path=b.variant_path)
            for b in self.builds
        )

    def runs(self, build: tuple[str, str]) -> bool:
        """Tell whether a replica that has loaded `build` serves it on some device."""
        return any(face.build == build for face in self.faces)

    def face(self, build: tuple[str, str], device: str) -> Generation | None:
        """Return the generation as a replica shows it that has loaded `build` on `device`; None where it is none of ours."""
        return next((g for g in self.faces if g.build == build and g.device == device), None)

    def for_slot(self, soc: str) -> Generation | None:
        """Return the generation as a slot of this SoC must load it; None where there is no build for it."""
        if not self.builds:
            return self
        return next((g for b, g in zip(self.builds, self.faces, strict=True) if b.soc == soc), None)

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        found: dict[str, object] = {name: getattr(self, name) for name in _GENERATION if name != "builds"}
        return found | ({"builds": [build.to_json() for build in self.builds]} if self.builds else {})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A name that clients call, in one pool.

    Attributes:
        slots: How many slots of the pool it takes; None = all.
        split: What a rollout has set beside the weights; None while none is under way.
    """

    name: str
    pool: str
    generations: tuple[Generation, ...]
    slots: int | None = None
    split: Split | None = None

    def find(self, generation: int) -> Generation | None:
        """Return the generation of this number, or None."""
        return next((g for g in self.generations if g.generation == generation), None)

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        found: dict[str, object] = {"pool": self.pool, "generations": [g.to_json() for g in self.generations]}
        if self.slots is not None:
            found["slots"] = self.slots
        return found if self.split is None else found | {"split": self.split.to_json()}


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """The whole table. A later table replaces an earlier one as a whole."""

    version: int
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict[str, Endpoint])

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        return {
            "version": self.version,
            "endpoints": {name: endpoint.to_json() for name, endpoint in self.endpoints.items()},
        }

    @classmethod
    def from_json(cls, data: object) -> RoutingTable:
        """Parse and check a table.

        Raises:
            ServingError: Something is missing, unknown or against the rules; the message names the place.
        """
        body = check_object(data, "table", ("version", "endpoints"))
        version = check_int(body["version"], "version", 0, 2**63 - 1)
        endpoints = body["endpoints"]
        if not isinstance(endpoints, Mapping):
            raise wrong("endpoints must be an object", "endpoints")
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

    def placements(self, pool: str, soc: str = "") -> Iterator[tuple[Endpoint, Generation]]:
        """Yield what a slot of `pool` with this SoC would run of every endpoint: one item per (endpoint, bundle, variant).

        Which of the slots an endpoint takes, where it does not take all, is `slots.chosen`.
        """
        for endpoint in self.endpoints.values():
            if endpoint.pool == pool:
                fitting = [fits for g in endpoint.generations if (fits := g.for_slot(soc)) is not None]
                yield from ((endpoint, g) for g in {g.build: g for g in fitting}.values())


EMPTY: Final = RoutingTable(0)
_GENERATION: Final = (
    "generation", "bundle", "path", "runtime", "weight", "state", "device", "variant", "variant_path", "builds",
)  # fmt: skip
_OPTIONAL: Final = ("variant", "variant_path", "builds")
_BUILD: Final = ("soc", "runtime", "device", "variant", "variant_path")


def _endpoint(name: str, value: object) -> Endpoint:
    body = check_object(value, f"endpoints.{name}", ("pool", "generations", "slots", "split"), ("slots", "split"))
    pool, rows = body["pool"], body["generations"]
    if not is_name(name) or not isinstance(pool, str) or not is_name(pool):
        raise wrong(f"endpoint {name!r} in pool {pool!r}: not names", f"endpoints.{name}")
    if not isinstance(rows, list):
        raise wrong("generations must be a list", f"endpoints.{name}")
    generations = tuple(
        _generation(row, f"endpoints.{name}.generations.{i}") for i, row in enumerate(cast("list[object]", rows))
    )
    if len({g.generation for g in generations}) != len(generations):
        raise wrong("a generation appears twice", f"endpoints.{name}")
    total = sum(g.weight for g in generations)
    if total not in (0, 100):
        raise wrong(f"weights sum to {total}, must be 100 or 0", f"endpoints.{name}")
    _check_bundles(generations, name)
    slots = body.get("slots")
    return Endpoint(
        name,
        pool,
        generations,
        None if slots is None else check_int(slots, f"endpoints.{name}.slots", 1, MOST_SLOTS),
        None if body.get("split") is None else _split(body["split"], generations, f"endpoints.{name}.split"),
    )


def _split(value: object, generations: Sequence[Generation], place: str) -> Split:
    split = Split.from_json(value, place)
    known = {g.generation for g in generations}
    for number in (split.stable, split.canary):
        if number not in known:
            raise wrong(f"generation {number} is not in the table", place)
    for g in generations:
        if g.weight and g.generation not in (split.stable, split.canary):
            raise wrong(f"generation {g.generation} has weight {g.weight} and is neither stable nor canary", place)
    return split


def _check_bundles(generations: Sequence[Generation], name: str) -> None:
    seen: dict[tuple[str, str], tuple[str, ...]] = {}
    for g in (face for generation in generations for face in generation.faces):
        how = (g.path, g.runtime, g.device, g.variant_path)
        if seen.setdefault(g.build, how) != how:
            raise wrong(f"bundle {g.bundle} appears with two paths, runtimes or devices", f"endpoints.{name}")


def _generation(value: object, place: str) -> Generation:
    body = check_object(value, place, _GENERATION, _OPTIONAL)
    bundle, path = check_text(body["bundle"], f"{place}.bundle"), check_text(body["path"], f"{place}.path")
    state = check_text(body["state"], f"{place}.state")
    weight = check_int(body["weight"], f"{place}.weight", 0, 100)
    if not is_digest(bundle):
        raise wrong(f"{bundle[:80]!r} is no digest", f"{place}.bundle")
    if not PurePosixPath(path).is_absolute():
        raise wrong(f"{path!r} must be absolute", f"{place}.path")
    if state not in STATES or (state in _IDLE and weight):
        raise wrong(f"state {state!r} with weight {weight}: states are {STATES}, {_IDLE} have weight 0", place)
    number = check_int(body["generation"], f"{place}.generation", 1, 2**31 - 1)
    runtime, device = check_text(body["runtime"], f"{place}.runtime"), check_text(body["device"], f"{place}.device")
    variant, folder = _variant(body, place)
    return Generation(
        number, bundle, path, runtime, weight, state, device, variant, folder, _builds(body, place, (runtime, variant))
    )


def _builds(body: Mapping[str, object], place: str, first: tuple[str, str]) -> tuple[Build, ...]:
    rows = body.get("builds", [])
    if not isinstance(rows, list):
        raise wrong("builds must be a list", place)
    found: list[Build] = []
    for i, row in enumerate(cast("list[object]", rows)):
        where = f"{place}.builds.{i}"
        part = check_object(row, where, _BUILD, _OPTIONAL)
        names = [check_text(part[name], f"{where}.{name}") for name in ("soc", "runtime", "device")]
        found.append(Build(names[0], names[1], names[2], *_variant(part, where)))
    if len({build.soc for build in found}) != len(found):
        raise wrong("a SoC has two builds", place)
    if found and (found[0].runtime, found[0].variant) != first:
        raise wrong("the first of the builds must be the generation's own", place)
    return tuple(found)


def _variant(body: Mapping[str, object], place: str) -> tuple[str, str]:
    digest, path = body.get("variant", ""), body.get("variant_path", "")
    if digest == "" and path == "":
        return "", ""
    digest, folder = check_text(digest, f"{place}.variant"), check_text(path, f"{place}.variant_path")
    if not is_digest(digest) or not PurePosixPath(folder).is_absolute():
        raise wrong(f"variant {digest[:80]!r} at {folder!r}: needs a digest and an absolute path", place)
    return digest, folder
