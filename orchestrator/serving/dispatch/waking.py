"""Models of lazy pools, as the router sees them: which are known to work, who is asked to load one, and why one cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

import orjson

from orchestrator.core.files import write_json
from orchestrator.serving.dispatch.lanes import Lane, Replica
from orchestrator.serving.link.frames import Kind
from orchestrator.serving.link.reports import ReplicaReport
from orchestrator.serving.protocol.signature import Signature
from orchestrator.serving.protocol.tensors import TensorSpec

_AGAIN_S: Final = 0.5
"""A wake is sent again after this time: the agent may have ended with the first."""
_MOST_KNOWN: Final = 2000
_MORE_S: Final = 5.0
_WAITED_S: Final = 1.0
"""A model that is loaded, and whose requests wait for longer than this, is loaded on another slot too, every `_MORE_S`."""
_ABSENT: Final = ("cold", "starting", "stopping", "failed")
"""`starting`: one that was never loaded may wait its turn behind many others."""


class Agent(Protocol):
    """An agent's connection.

    Attributes:
        reports: The rows of its last report.
        wakes: Models that it was asked for since.
    """

    reports: Sequence[ReplicaReport]
    wakes: int

    def tell(self, kind: Kind, head: Mapping[str, object]) -> None:
        """Send it a frame."""
        ...


class Waking:
    """What the router knows of lazy models.

    Args:
        agents: The connected ones; the set is the link server's own.
        lanes: The dispatcher's own list.
        memory: Where signatures are kept over a restart, so that a model that is not loaded can still be described.
    """

    def __init__(self, agents: Iterable[Agent], lanes: Sequence[Lane], memory: Path | None = None) -> None:
        self._agents = agents
        self._lanes = lanes
        self._memory = memory
        self._known: dict[str, Any] = _read(memory)
        self._rows: dict[str, list[tuple[Agent, ReplicaReport]]] = {}

    # --- signatures ---

    def remember(self, replica: Replica) -> None:
        """A replica of a lazy model has registered: keep what it takes and gives."""
        key, signature = _key(replica.bundle, replica.variant, replica.stage), replica.signature
        row = {
            "max_batch": signature.max_batch,
            "inputs": [spec.to_json() for spec in signature.inputs],
            "outputs": [spec.to_json() for spec in signature.outputs],
        }
        if self._known.get(key) != row:
            self._known.pop(key, None)
            self._known[key] = row
            for oldest in list(self._known)[:-_MOST_KNOWN]:
                del self._known[oldest]
            if self._memory is not None:
                write_json(self._memory, self._known, mode=0o600)
            for lane in self._lanes:
                self.recall(lane)
        for lane in replica.lanes:
            lane.lazy = True

    def recall(self, lane: Lane) -> None:
        """Give a lane without one the signature that its model had when it was loaded last."""
        row = self._known.get(_key(*lane.generation.build, lane.stage))
        if row is None or lane.signature is not None:
            return
        try:
            specs = [tuple(TensorSpec.from_json(spec) for spec in row[name]) for name in ("inputs", "outputs")]
            signature = Signature(specs[0], specs[1], int(row["max_batch"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            return  # the file is damaged; the model says it again when it is loaded
        lane.signature, lane.lazy = signature, True

    # --- what agents say ---

    def reported(self, now: float) -> list[Lane]:
        """Take in the agents' reports; returns the lanes whose requests cannot be answered: `trouble` says why."""
        self._rows = {}
        for agent in self._agents:
            for report in agent.reports:
                if report.load == "lazy":
                    self._rows.setdefault(report.endpoint, []).append((agent, report))
        stuck: list[Lane] = []
        for lane in self._lanes:
            of_lane = [report for _, report in self._of(lane)]
            lane.cold = sum(report.proven and report.state != "ready" for report in of_lane)
            lane.trouble = ""
            if not of_lane:
                continue
            lane.lazy = True
            lane.load_s = max(report.load_s for report in of_lane)
            if all(report.state == "failed" for report in of_lane):
                first = min(of_lane, key=lambda report: report.retry_s)
                lane.trouble, lane.blocked_until = first.error, now + first.retry_s
                if lane.queue and not lane.replicas and first.retry_s:
                    stuck.append(lane)
        return stuck

    # --- what agents are told ---

    def wake(self, lane: Lane, now: float) -> bool:
        """Ask an agent to load the lane's model: the one with the fewest loads before it, and of these with the most room.

        Returns:
            Whether there is one that can.
        """
        if now - lane.woken_at < _AGAIN_S:
            return True
        rows = self._of(lane)
        able = [(agent, row) for agent, row in rows if row.state != "failed" or now >= lane.blocked_until]
        if any(row.state not in _ABSENT for _, row in able) and not lane.replicas:
            return True  # it is on its way
        able = [(agent, row) for agent, row in able if row.state in _ABSENT]
        if not able:
            return False
        agent, row = min(able, key=lambda pair: _rank(pair[0]))
        agent.wakes += 1
        agent.tell(Kind.WAKE, {"endpoint": row.endpoint, "bundle": row.bundle, "variant": row.variant})
        lane.woken_at = now
        return True

    def _of(self, lane: Lane) -> list[tuple[Agent, ReplicaReport]]:
        rows = self._rows.get(lane.endpoint, ())
        return [(agent, row) for agent, row in rows if lane.generation.runs((row.bundle, row.variant))]

    def attend(self, lane: Lane, now: float) -> None:
        """Requests wait for the lane: have its model loaded, or loaded on one more slot where they wait too long."""
        if not lane.replicas:
            self.wake(lane, now)
        elif now - lane.woken_at > _MORE_S and lane.queue and now - lane.queue[0].arrived > _WAITED_S + lane.load_s:
            self.wake(lane, now)
            lane.woken_at = now

    def unload(self, lane: Lane) -> int:
        """Ask every agent that has the lane's model to unload it; returns how many there are."""
        loaded = [(agent, row) for agent, row in self._of(lane) if row.state == "ready"]
        for agent, row in loaded:
            agent.tell(Kind.UNLOAD, {"endpoint": row.endpoint, "bundle": row.bundle, "variant": row.variant})
        return len(loaded)


def _rank(agent: Agent) -> tuple[int, int]:
    loading = agent.wakes + sum(row.state in ("loading", "starting") for row in agent.reports)
    return loading, sum(row.memory_bytes for row in agent.reports if row.state == "ready")


def _key(bundle: str, variant: str, stage: str) -> str:
    return f"{bundle} {variant} {stage}"


def _read(path: Path | None) -> dict[str, Any]:
    try:
        found: object = orjson.loads(path.read_bytes()) if path is not None else {}
    except (OSError, orjson.JSONDecodeError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
