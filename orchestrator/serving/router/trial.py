"""Which generation a request goes to while a new one is tried: asked version, header route, sticky range, then exact blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from orchestrator.serving.dispatch.lanes import Caller, Lane
from orchestrator.serving.observe.arms import Arm, Traffic
from orchestrator.serving.router.mirror import Mirror
from orchestrator.serving.split import BLOCK, Split, Splitter, is_in, user_of


class Client(Caller, Protocol):
    """A caller whose request came with headers."""

    def header(self, name: str) -> str | None:
        """Return the value of a header, by its name in small letters; None where it was not sent."""
        ...


class Dealt(NamedTuple):
    """Where a request goes.

    Attributes:
        lane: None where nothing has a weight.
        user: See `Request`.
        fallible: The stable generation answers where this one fails.
    """

    lane: Lane | None
    arm: Arm
    user: int
    fallible: bool


class Trial:
    """The split of one endpoint under one table.

    Args:
        lanes: Of the endpoint, by generation; those of the split are among them.
        splitter: Deals what nothing else decides.

    Attributes:
        mirror: Copies stable's requests; set by who makes the trial.
    """

    mirror: Mirror

    __slots__ = ("_arms", "_endpoint", "_routes", "_splitter", "canary", "lanes", "mirror", "split", "stable", "weight")

    def __init__(self, endpoint: str, split: Split, lanes: dict[int, Lane], splitter: Splitter) -> None:
        self._endpoint = endpoint
        self._splitter = splitter
        self._arms: dict[tuple[int, Traffic], Arm] = {}
        self.split = split
        self.lanes = lanes
        self.stable, self.canary = lanes[split.stable], lanes[split.canary]
        self.weight = self.canary.generation.weight
        ends = self.canary.generation.state == "draining"
        self._routes: list[tuple[str, Callable[[str], bool]]] = []
        if not ends:
            self._routes = [(route.name, route.matcher()) for route in split.headers]

    def deal(self, client: Client, generation: int | None, *, synthetic: bool) -> Dealt:
        """Return where the next request goes: to the asked generation, or to the one that is chosen for it."""
        split, user = self.split, -1
        if generation is not None:
            traffic: Traffic = "version"
        elif self._is_routed(client):
            generation, traffic = split.canary, "header"
        elif split.sticky and self._splitter.weights and (key := client.header(split.sticky)):
            user, traffic = user_of(self._endpoint, split.canary, key), "sticky"
            generation = split.canary if is_in(user, self.weight) else split.stable
        elif synthetic:  # it must take no user's place in a block
            generation, traffic = split.canary if self.weight * 2 > BLOCK else split.stable, "weighted"
        else:
            generation, traffic = self._splitter.next(), "weighted"
            if generation is None:
                return Dealt(None, self.arm(0, traffic), user, fallible=False)
        fallible = generation == split.canary and traffic != "version" and not synthetic
        arm = self.arm(generation, "probe" if synthetic else traffic)
        return Dealt(self.lanes.get(generation), arm, user, fallible)

    def arm(self, generation: int, traffic: Traffic) -> Arm:
        """Return what requests that are dealt alike are counted under; always the same object."""
        found = self._arms.get((generation, traffic))
        if found is None:
            found = self._arms[generation, traffic] = Arm(self._endpoint, generation, traffic, self.weight)
        return found

    def _is_routed(self, client: Client) -> bool:
        for name, matches in self._routes:
            value = client.header(name)
            if value is not None and matches(value):
                return True
        return False
