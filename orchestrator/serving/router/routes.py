"""The table at work: lanes of the current generations, the weighted choice, and what to tell clients about models."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from orchestrator.core.errors import IntegrityError
from orchestrator.serving.dispatch.dispatcher import Dispatcher
from orchestrator.serving.dispatch.lanes import Lane, attach
from orchestrator.serving.errors import RequestError
from orchestrator.serving.router.mirror import Mirror
from orchestrator.serving.router.trial import Trial
from orchestrator.serving.serve_settings import DEFAULTS, ServeSettings, read_serve_settings
from orchestrator.serving.table import EMPTY, Endpoint, Generation, RoutingTable, Splitter

_log: Final = logging.getLogger(__name__)


class EndpointRoute:
    """One endpoint: its lanes by generation number, and the split.

    Attributes:
        trial: Set while two generations are compared: then it chooses.
    """

    __slots__ = ("lanes", "name", "splitter", "trial")

    def __init__(self, name: str, lanes: dict[int, Lane], splitter: Splitter) -> None:
        self.name = name
        self.lanes = lanes
        self.splitter = splitter
        self.trial: Trial | None = None

    def choose(self, generation: int | None) -> Lane:
        """Return the lane of the asked generation; without one, the next by weight.

        Raises:
            RequestError: 404 for an unknown generation, 503 where none has a weight.
        """
        number = self.splitter.next() if generation is None else generation
        if number is None:
            text = f"endpoint {self.name} has no live generation"
            raise RequestError(text, status=503, kind="no_replica", retry_after_s=1)
        lane = self.lanes.get(number)
        if lane is None:
            raise RequestError(f"endpoint {self.name} has no version {number}", status=404, kind="not_found")
        return lane

    def main(self, generation: int | None) -> Lane:
        """Return the lane that stands for the endpoint: the asked one, else the heaviest, else the newest.

        Raises:
            RequestError: 404 for an unknown generation.
        """
        if generation is not None or not self.lanes:
            return self.choose(generation)
        return max(self.lanes.values(), key=lambda lane: (lane.generation.weight, lane.generation.generation))

    def ready(self, generation: int | None) -> bool:
        """Whether requests find a replica: of the asked generation, else of every one that has a weight.

        While a generation is tried, stable's are enough: it answers for the other.
        """
        if generation is not None:
            lanes = [self.lanes[generation]] if generation in self.lanes else []
        else:
            lanes = [lane for lane in self.lanes.values() if lane.generation.weight]
            if lanes and self.trial is not None and self.trial.stable.ready:
                return True
        return bool(lanes) and all(lane.ready or lane.cold for lane in lanes)


Place = tuple[EndpointRoute, int | None]
"""An endpoint, and the generation that was asked for."""


class Routes:
    """All endpoints under the current table."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.table: RoutingTable = EMPTY
        self.endpoints: dict[str, EndpointRoute] = {}

    def set_table(self, table: RoutingTable, now: float) -> None:
        """Switch to `table` between two requests: generations that stay keep their lanes, those that leave retire."""
        old = self.endpoints
        self.endpoints = {}
        for name, endpoint in table.endpoints.items():
            route = self.endpoints[name] = self._route(endpoint, old.get(name), table.version, now)
            self._try(endpoint, route, old.get(name), table.version)
        for name in old.keys() - self.endpoints.keys():
            _stop_copying(old[name], None)
        models = [lane for route in self.endpoints.values() for lane in route.lanes.values()]
        kept = {id(lane) for model in models for lane in model.stages}
        for lane in self._dispatcher.lanes:
            lane.retired = id(lane) not in kept
        self.table = table
        self._dispatcher.sweep(now)

    def _route(self, endpoint: Endpoint, old: EndpointRoute | None, version: int, now: float) -> EndpointRoute:
        lanes: dict[int, Lane] = {}
        for generation in endpoint.generations:
            lane = old.lanes.get(generation.generation) if old else None
            if lane is not None and _same(lane.generation, generation):
                for stage in lane.stages:
                    stage.update(generation)
            else:
                lane = self._new_lane(endpoint.name, generation, now)
            lanes[generation.generation] = lane
        weights = {g.generation: g.weight for g in endpoint.generations if g.weight}
        if old is not None and old.splitter.weights == weights:
            return EndpointRoute(endpoint.name, lanes, old.splitter)
        return EndpointRoute(endpoint.name, lanes, Splitter(weights, f"{endpoint.name}:{version}"))

    def _try(self, endpoint: Endpoint, route: EndpointRoute, old: EndpointRoute | None, version: int) -> None:
        """Begin, change or end the comparison of two generations."""
        split = endpoint.split
        if split is not None:
            canary, stable = route.lanes[split.canary], route.lanes[split.stable]
            trial = Trial(endpoint.name, split, route.lanes, route.splitter)
            mirror = old.trial.mirror if old is not None and old.trial is not None else None
            if mirror is None or (mirror.canary, mirror.stable, mirror.percent) != (canary, stable, split.mirror):
                seed = f"{endpoint.name}:{version}:mirror"
                mirror = Mirror(self._dispatcher, canary, stable, trial.arm(split.canary, "mirror"), split.mirror, seed)
            mirror.arm = trial.arm(split.canary, "mirror")
            trial.mirror = mirror
            for stage in canary.stages:
                stage.tried = True
            route.trial = trial
        if old is not None:
            _stop_copying(old, route.trial)

    def tick(self, now: float) -> None:
        """Send copies that may go; call this every 50 ms or so."""
        for route in self.endpoints.values():
            if route.trial is not None:
                route.trial.mirror.tick(now)

    def _new_lane(self, name: str, generation: Generation, now: float) -> Lane:
        """Return the lane of a generation, with those of its stages.

        A replica that already runs the bundle serves the new generation as well.
        """
        settings = _settings(generation)
        model = Lane(name, generation, now, settings=settings, chained=len(settings.stages) > 1)
        if settings.preprocess:
            model.before = Lane(name, generation, now, stage="preprocess", chained=True)
        if settings.postprocess:
            model.after = Lane(name, generation, now, stage="postprocess", chained=True)
        for lane in model.stages:
            for replica in self._dispatcher.replicas():
                if lane.takes(replica) and lane.fits(replica.device, replica.build) and not replica.draining:
                    attach(replica, lane)
            self._dispatcher.lanes.append(lane)
            if self._dispatcher.waking is not None:
                self._dispatcher.waking.recall(lane)
        return model

    def find(self, name: str, version: str | None) -> Place:
        """Return where a client's model name and version lead; None or an empty version is no choice.

        Raises:
            RequestError: 404.
        """
        route = self.endpoints.get(name)
        if route is None:
            raise RequestError(f"Request for unknown model: {name[:80]!r} is not found", status=404, kind="not_found")
        if not version:
            return route, None
        if not (version.isascii() and version.isdigit() and len(version) < 12 and int(version) in route.lanes):
            text = f"Request for unknown model: {name!r} version {version[:40]} is not found"
            raise RequestError(text, status=404, kind="not_found")
        return route, int(version)

    def ready(self) -> bool:
        """Whether every endpoint that has traffic finds a replica."""
        return all(route.ready(None) for route in self.endpoints.values() if route.splitter.weights)

    def lane_status(self) -> list[dict[str, object]]:
        """Return one row per generation in the table; its numbers are of all its stages, `ready` of the one with the fewest."""
        return [
            {
                "endpoint": lane.endpoint,
                "generation": lane.generation.generation,
                "bundle": lane.generation.bundle,
                "variant": lane.generation.variant,
                "state": lane.generation.state,
                "weight": lane.generation.weight,
                "ready": lane.ready,
                "load": "lazy" if lane.lazy else "always",
                "cold": lane.cold,
                "queued": sum(len(stage.queue) for stage in lane.stages),
                "in_flight": sum(stage.in_flight for stage in lane.stages),
                "stages": {stage.stage: len(stage.replicas) for stage in lane.stages},
            }
            for route in self.endpoints.values()
            for lane in route.lanes.values()
        ]


def _same(old: Generation, new: Generation) -> bool:
    """Tell whether replicas of one generation serve the other as well: same builds on the same devices."""
    if old.builds or new.builds:
        return (old.bundle, old.builds) == (new.bundle, new.builds)
    return (old.build, old.device) == (new.build, new.device)


def _stop_copying(old: EndpointRoute, trial: Trial | None) -> None:
    if old.trial is not None and (trial is None or trial.mirror is not old.trial.mirror):
        old.trial.mirror.close()


def _settings(generation: Generation) -> ServeSettings:
    """A bundle that is damaged must not keep the table out; its replica says what is wrong with it."""
    try:
        return read_serve_settings(Path(generation.path))
    except IntegrityError as error:
        _log.warning("%s", error)
        return DEFAULTS
