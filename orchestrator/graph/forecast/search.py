"""Should-keep: the smallest addition to the must-keep list that meets the thresholds, damage per cost first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

SEARCH_S: Final = 20.0
"""Time for one search by default; the smallest list found by then is the answer."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What one keep list reached: dB of the worst output and sample, and whether the thresholds are met."""

    sqnr_db: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """Nodes that keep one tensor in fp32 together, and what that is worth: noise removed per unit of cost."""

    tensor: str
    nodes: frozenset[str]
    damage: float
    worth: float


@dataclass(slots=True)
class Search:
    """A search in progress.

    Attributes:
        probe: Answers for a set of nodes kept beside the must-keep list.
        until: On the monotonic clock; from then on the list is made no smaller. Growing it always goes to its end.
        grown: How many candidates it took to pass, before any was taken away; where another search may begin.
        tried: Every set that was asked for, with its answer, in order.
    """

    probe: Callable[[frozenset[str]], Probe]
    until: float = math.inf
    grown: int = 1
    tried: list[tuple[frozenset[str], Probe]] = field(default_factory=list[tuple[frozenset[str], Probe]])

    @property
    def spent(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self.until

    def find(self, candidates: Sequence[Candidate], *, begin: int = 1) -> tuple[list[Candidate], bool]:
        """Return the candidates to keep, and whether they meet the thresholds.

        Grows in doubling groups until they do, then takes away what is not needed (ddmin).
        """
        if self._ask([]).passed:
            return [], True
        ranked = sorted(candidates, key=lambda one: (-one.worth, one.tensor))
        size, failed = min(begin, len(ranked)), 0
        while True:
            chosen = ranked[:size]
            if self._ask(chosen).passed:
                self.grown = size
                return self._minimise(self._shorter(ranked, failed, size)), True
            failed = size
            if size >= len(ranked):
                break
            size = min(2 * size, len(ranked))
        return self._best(ranked), False

    def _best(self, ranked: list[Candidate]) -> list[Candidate]:
        """Of the lists tried, return the smallest within 0.5 dB of the best: nothing passes, so spend little."""
        top = max(answer.sqnr_db for _, answer in self.tried)
        nodes = min((kept for kept, answer in self.tried if answer.sqnr_db >= top - 0.5), key=len)
        return [one for one in ranked if one.nodes <= nodes] if nodes else []

    def _shorter(self, ranked: list[Candidate], failed: int, passed: int) -> list[Candidate]:
        """Halve the step between a beginning that failed and one that passed."""
        while passed - failed > 1 and not self.spent:
            middle = (failed + passed) // 2
            failed, passed = (failed, middle) if self._ask(ranked[:middle]).passed else (middle, passed)
        return ranked[:passed]

    def _minimise(self, chosen: list[Candidate]) -> list[Candidate]:
        parts = 2
        while len(chosen) > 1 and not self.spent:
            step = max(1, len(chosen) // parts)
            groups = [chosen[start : start + step] for start in range(0, len(chosen), step)]
            smaller = self._smaller(chosen, list(reversed(groups)))
            if smaller is not None:
                chosen, parts = smaller, max(2, parts - 1)
            elif step == 1:
                break
            else:
                parts = min(2 * parts, len(chosen))
        return chosen

    def _smaller(self, chosen: list[Candidate], groups: list[list[Candidate]]) -> list[Candidate] | None:
        for group in groups:
            if self.spent:
                return None
            rest = [one for one in chosen if one not in group]
            if self._ask(rest).passed:
                return rest
        return None

    def _ask(self, chosen: Sequence[Candidate]) -> Probe:
        nodes = frozenset(name for one in chosen for name in one.nodes)
        answer = self.probe(nodes)
        self.tried.append((nodes, answer))
        return answer
