"""How an endpoint's requests are split while a new generation is tried: what the routing table says of it, and pure choices by it."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Final, Literal, cast

from orchestrator.core.patterns import LONGEST_INPUT, safe_pattern
from orchestrator.serving.table_fields import check_int, check_number, check_object, check_text, wrong

BLOCK: Final = 100
"""Weights are exact in every run of this many requests."""
MOST_ROUTES: Final = 32
_HOW: Final = ("exact", "prefix", "regex")
_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")
_ROUTE: Final = ("name", "how", "value")
_SPLIT: Final = ("stable", "canary", "mirror", "headers", "sticky", "rtol", "atol")


@dataclass(frozen=True, slots=True)
class HeaderRoute:
    """Requests that carry such a header go to the canary.

    Attributes:
        name: Of the header, in small letters; of gRPC's metadata as well.
        how: `exact` and `prefix` compare as written; `regex` must match the whole value, see `orchestrator.core.patterns`.
    """

    name: str
    how: Literal["exact", "prefix", "regex"]
    value: str

    def matcher(self) -> Callable[[str], bool]:
        """Return what tells whether a header with some value leads to the canary."""
        wanted = self.value
        if self.how == "exact":
            return wanted.__eq__
        if self.how == "prefix":
            return lambda value: value.startswith(wanted)
        pattern = safe_pattern(wanted)
        return lambda value: len(value) <= LONGEST_INPUT and pattern.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Split:
    """Two generations of an endpoint that are compared.

    The canary's weight in the table is its share of the requests that no header route takes.

    Attributes:
        stable: Number of the generation that answers in the canary's place where that one fails.
        canary: Number of the generation that is tried.
        mirror: Percent of the stable one's unversioned requests of which the canary gets a copy that nobody sees.
        headers: A request that one of them matches goes to the canary.
        sticky: Name of the header by whose value a client stays with one generation; empty for none.
        rtol: Up to which relative difference the answers of the two are alike.
        atol: Up to which absolute difference.
    """

    stable: int
    canary: int
    mirror: int = 0
    headers: tuple[HeaderRoute, ...] = ()
    sticky: str = ""
    rtol: float = 1e-3
    atol: float = 1e-3

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        found: dict[str, object] = {name: getattr(self, name) for name in _SPLIT}
        return found | {"headers": [asdict(route) for route in self.headers]}

    @classmethod
    def from_json(cls, data: object, place: str) -> Split:
        """Parse and check the split of the endpoint at `place` of a table.

        Raises:
            ServingError: Something is missing, unknown or against the rules; the message names the place.
        """
        body = check_object(data, place, _SPLIT, _SPLIT[2:])
        stable, canary = (check_int(body[name], f"{place}.{name}", 1, 2**31 - 1) for name in _SPLIT[:2])
        if stable == canary:
            raise wrong(f"stable and canary are both generation {canary}", place)
        rows, sticky = body.get("headers", []), body.get("sticky", "")
        if not isinstance(rows, list | tuple) or len(cast("Sequence[object]", rows)) > MOST_ROUTES:
            raise wrong(f"must be a list of at most {MOST_ROUTES}", f"{place}.headers")
        routes = enumerate(cast("Sequence[object]", rows))
        return cls(
            stable,
            canary,
            check_int(body.get("mirror", 0), f"{place}.mirror", 0, 100),
            tuple(_route(row, f"{place}.headers.{i}") for i, row in routes),
            "" if sticky == "" else _header_name(sticky, f"{place}.sticky"),
            check_number(body.get("rtol", 1e-3), f"{place}.rtol", 0, math.inf),
            check_number(body.get("atol", 1e-3), f"{place}.atol", 0, math.inf),
        )


def _route(value: object, place: str) -> HeaderRoute:
    body = check_object(value, place, _ROUTE)
    name, how = _header_name(body["name"], f"{place}.name"), body["how"]
    text = check_text(body["value"], f"{place}.value")
    if how not in _HOW:
        raise wrong(f"{how!r} must be one of {', '.join(_HOW)}", f"{place}.how")
    if how == "regex":
        try:
            safe_pattern(text)
        except ValueError as error:
            raise wrong(str(error), f"{place}.value") from error
    elif len(text) > LONGEST_INPUT:
        raise wrong(f"must have at most {LONGEST_INPUT} characters", f"{place}.value")
    return HeaderRoute(name, how, text)


def _header_name(value: object, place: str) -> str:
    name = check_text(value, place)
    if _NAME.fullmatch(name) is None:
        raise wrong(f"{name[:80]!r} is no name of a header in small letters", place)
    return name


def user_of(endpoint: str, canary: int, key: str) -> int:
    """Return the number, 64 bits, of the client that sends this value of the sticky header; the same in every router.

    Args:
        endpoint: Its name.
        canary: Number of the generation that is tried: each trial takes other clients first, so that nobody is always among them,
            and a key that was found to lead to one canary need not lead to the next.
        key: Value of the header.
    """
    named = f"{endpoint}\0{canary}\0{key}".encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(named, digest_size=8).digest())


def is_in(user: int, weight: int) -> bool:
    """Tell whether a client belongs to the first `weight` percent. Whoever does, does so with every larger weight."""
    return user * BLOCK < weight << 64


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
