"""What a moved alias means: a request where the endpoint's strategy follows it, drift everywhere else. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from orchestrator.core.digests import sha256_json

Aliases = Mapping[str, Mapping[str, str]]
"""Registered model -> alias -> version."""

NORMAL: Final = frozenset({"live", "canary", "previous", "candidate"})
"""Aliases that our own projections move."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of the alias that an endpoint follows; kept between looks.

    Attributes:
        at: Registered model -> version, where the alias stood.
        before: Likewise, where it stood before its last move.
        moves: How often it has moved.
        settled: The last move has led to a rollout, or was refused for good: nothing is left to do until the next.
        refused: Why it was refused; empty when it was not.
        others: `<model>@<alias>` -> version of aliases that nothing follows.
    """

    at: Mapping[str, str] = field(default_factory=dict[str, str])
    before: Mapping[str, str] = field(default_factory=dict[str, str])
    moves: int = 0
    settled: bool = True
    refused: str = ""
    others: Mapping[str, str] = field(default_factory=dict[str, str])

    def to_text(self) -> str:
        """Return the form that is kept."""
        names = ("at", "before", "moves", "settled", "refused", "others")
        return json.dumps({name: getattr(self, name) for name in names}, sort_keys=True)

    @classmethod
    def from_text(cls, text: str | None) -> Seen:
        """Parse the kept form; nothing was seen where there is none."""
        fields: dict[str, Any] = json.loads(text) if text else {}
        return cls(**fields)

    @property
    def moved(self) -> dict[str, str]:
        """The models whose alias the last move has changed, with their versions."""
        return {name: version for name, version in self.at.items() if self.before.get(name) != version}

    def request(self, endpoint: str, alias: str) -> str:
        """Return the id of the request that the last move is; the same until it moves again."""
        return sha256_json({"endpoint": endpoint, "alias": alias, "at": dict(self.at), "move": self.moves})


def look(seen: Seen, aliases: Aliases, alias: str) -> Seen:
    """Return what is known after a look: an alias that stands elsewhere than before has moved.

    Args:
        seen: What was known.
        aliases: Of all models of the endpoint's recipe.
        alias: The one that the endpoint follows.
    """
    at = {name: of[alias] for name, of in aliases.items() if alias in of}
    if at == dict(seen.at):
        return seen
    moved = replace(seen, at=at, before=seen.at, moves=seen.moves + 1, settled=False, refused="")
    return moved if moved.moved else replace(moved, settled=True)  # it was only taken away


def drift(seen: Seen, aliases: Aliases, placed: Mapping[str, str], followed: str) -> tuple[Seen, list[str]]:
    """Return what to report: our aliases that stand elsewhere than we put them, and others that have moved.

    Args:
        seen: What was known.
        aliases: Of all models of the endpoint's recipe.
        placed: Where we put ours: `<model>@<alias>` -> version.
        followed: The alias that the endpoint follows; empty = none.
    """
    found: list[str] = []
    for place, version in sorted(placed.items()):
        name, _, alias = place.rpartition("@")
        now = aliases.get(name, {}).get(alias, "")
        if now != version:
            where = f"at version {now}" if now else "gone"
            found.append(f"{place} is {where}, the ledger says version {version}; nothing follows it")
    others = {
        f"{name}@{alias}": version
        for name, of in aliases.items()
        for alias, version in of.items()
        if alias not in NORMAL and alias != followed
    }
    for place, version in sorted(others.items()):
        was = seen.others.get(place)
        if was is not None and was != version:
            found.append(f"{place} moved from version {was} to {version}; the strategy has no promote_from for it")
    return replace(seen, others=others), found
