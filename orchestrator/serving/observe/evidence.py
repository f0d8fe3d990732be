"""What a rollout is judged by: requests of endpoints with a split, counted by arm as they end. Bounded, whatever comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from orchestrator.serving.link.wire import NONFINITE
from orchestrator.serving.observe.arm_counts import SAMPLES_A_TICK, ArmCounts, GenerationCounts, Room, Users
from orchestrator.serving.observe.arms import Arm
from orchestrator.serving.observe.likeness import top_classes
from orchestrator.serving.observe.pairs import Comparer, PairCounts
from orchestrator.serving.protocol.tensors import Tensor
from orchestrator.serving.table import EMPTY, Generation, RoutingTable, Split

if TYPE_CHECKING:
    from orchestrator.serving.dispatch.lanes import Request

_KEPT_S: Final = 60.0
"""Counts of a generation that no split names any more; also users of an arm that nobody is dealt to any more."""
_LOOK_S: Final = 1.0
_MOST_USERS: Final = 200_000
_MOST_USERS_TOGETHER: Final = 400_000

Place = tuple[str, int]
"""Endpoint and generation."""


class Evidence:
    """Counts what `Witness` tells it. All methods run on the event loop; pairs are compared beside it.

    Args:
        most_users: Of one arm; see `Users`.
    """

    def __init__(self, most_users: int = _MOST_USERS) -> None:
        self._most_users = most_users
        self._room = Room(_MOST_USERS_TOGETHER)
        self._arms: dict[Arm, ArmCounts] = {}
        self._generations: dict[Place, GenerationCounts] = {}
        self._pairs: dict[Place, PairCounts] = {}
        self._splits: dict[str, Split] = {}
        self._table = EMPTY
        self._left_at: dict[Place, float] = {}
        self._idle_since: dict[Arm, float] = {}
        self._looked_at = 0.0
        self.comparer = Comparer()

    # --- what ends ---

    def ended(self, request: Request, status: int, kind: str, total_s: float, outputs: Sequence[Tensor] | None) -> None:
        """Count a request of an arm."""
        arm = request.arm
        if arm is None:
            return
        counts = self._arms.get(arm) or self._begin(arm)
        ok = status == 200
        error = False
        if ok:
            counts.answered(request.ran, total_s)
            own = counts.own
            if own.samples_left and outputs is not None and arm.traffic != "probe":
                own.samples_left -= 1
                for place in top_classes(outputs):
                    own.classes[place] = own.classes.get(place, 0) + 1
        else:
            error = counts.failed(status, kind, shared=request.shared) == "error"
            counts.fell_back += request.fell_back
        if ok or error:
            flags = request.flags
            if flags:
                counts.flagged(flags)
            if arm.traffic == "sticky" and request.user >= 0:
                nonfinite = bool(flags & NONFINITE)
                counts.users.saw(request.user, error=error, nonfinite=nonfinite, shared=request.shared)

    def paired(
        self, stable: Request, stable_outputs: Sequence[Tensor], canary: Request, canary_outputs: Sequence[Tensor]
    ) -> None:
        """Compare two good answers to one request, soon."""
        if stable.arm is None or canary.arm is None:
            return
        counts = self._pairs_of(canary.arm, stable.arm.generation)
        split = self._splits.get(canary.arm.endpoint)
        tolerances = (1e-3, 1e-3) if split is None else (split.rtol, split.atol)
        self.comparer.offer(counts, stable_outputs, canary_outputs, (stable.ran, canary.ran), tolerances)

    def unpaired(self, arm: Arm, why: Literal["dropped", "failed"]) -> None:
        """Count a copy that was not taken, or that the canary has not answered."""
        split = self._splits.get(arm.endpoint)
        counts = self._pairs_of(arm, split.stable if split else 0)
        if why == "dropped":
            counts.dropped += 1
        else:
            counts.failed += 1

    def _begin(self, arm: Arm) -> ArmCounts:
        own = self._generations.setdefault((arm.endpoint, arm.generation), GenerationCounts())
        found = self._arms[arm] = ArmCounts(arm, own, Users(self._most_users, self._room))
        return found

    def _pairs_of(self, canary: Arm, stable: int) -> PairCounts:
        place = (canary.endpoint, canary.generation)
        found = self._pairs.get(place)
        if found is None:
            found = self._pairs[place] = PairCounts(stable, canary.generation)
        return found

    # --- time and tables ---

    def apply(self, table: RoutingTable) -> None:
        """Take note of the splits of a new table."""
        self._table = table
        self._splits = {name: e.split for name, e in table.endpoints.items() if e.split is not None}

    def tick(self, now: float) -> None:
        """Let the next answers be sampled, and old counts go; call this every 50 ms or so."""
        for own in self._generations.values():
            own.samples_left = SAMPLES_A_TICK
        if self._arms and now - self._looked_at > _LOOK_S:
            self._looked_at = now
            self._let_go(now)

    def _let_go(self, now: float) -> None:
        named = {(name, number) for name, split in self._splits.items() for number in (split.stable, split.canary)}
        for place in named & self._left_at.keys():
            del self._left_at[place]
        for place in (self._generations.keys() | self._pairs.keys()) - named:
            if now - self._left_at.setdefault(place, now) > _KEPT_S:
                self._forget(place)
        for arm, counts in self._arms.items():
            if len(counts.users) == 0:
                continue
            if counts.seen != counts.users.requests or arm.weight == self._weight(arm.endpoint):
                counts.seen = counts.users.requests
                self._idle_since[arm] = now
            elif now - self._idle_since.setdefault(arm, now) > _KEPT_S:
                counts.users.let_go()

    def _weight(self, endpoint: str) -> int:
        split = self._splits.get(endpoint)
        canary: Generation | None = self._table.endpoints[endpoint].find(split.canary) if split is not None else None
        return canary.weight if canary is not None else -1

    def _forget(self, place: Place) -> None:
        for kept in (self._left_at, self._generations, self._pairs):
            kept.pop(place, None)
        for arm in [arm for arm in self._arms if (arm.endpoint, arm.generation) == place]:
            self._arms.pop(arm).users.let_go()
            self._idle_since.pop(arm, None)

    # --- what is told ---

    def arms(self) -> list[ArmCounts]:
        """Return the counts of every arm."""
        return list(self._arms.values())

    def pairs(self) -> list[tuple[str, PairCounts]]:
        """Return endpoints and what was compared of each canary."""
        return [(endpoint, counts) for (endpoint, _), counts in self._pairs.items()]

    def to_json(self, endpoint: str) -> dict[str, object]:
        """Return this process' part of `RouterAdmin.evidence`, without its name."""
        split = self._splits.get(endpoint)
        own = {str(number): counts for (name, number), counts in self._generations.items() if name == endpoint}
        pairs = [counts for name, counts in self.pairs() if name == endpoint]
        if split is not None:
            pairs = [counts for counts in pairs if counts.canary == split.canary]
        return {
            "version": self._table.version,
            "split": None if split is None else split.to_json(),
            "arms": [counts.to_json() for arm, counts in self._arms.items() if arm.endpoint == endpoint],
            "failures_in_row": {number: counts.failures_in_row for number, counts in own.items()},
            "pairs": self.comparer.read(pairs[-1]) if pairs else None,
            "classes": {
                number: {str(place): count for place, count in counts.classes.items()} for number, counts in own.items()
            },
        }
