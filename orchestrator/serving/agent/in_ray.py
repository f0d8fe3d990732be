"""The agent inside Ray Serve: one deployment per pool, one replica of it per device slot. The only module here that imports Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, cast

from ray import serve
from ray.serve import Application

from orchestrator.core.errors import InfraError, UsageError
from orchestrator.serving.agent.process import AgentCore
from orchestrator.serving.config import AgentSettings, parse_settings
from orchestrator.serving.runtimes.api import REHEARSAL

_JOIN_S: Final = 15.0
_KEYS: Final = ("pool", "link", "links", "state", "device", "slots", "tools", "stall_s", "load_s", "quarantine_s")


class PoolAgent:
    """Runs an `AgentCore` in a thread of its own: replicas die with the thread that started them, and Serve's loop stays free."""

    def __init__(self, args: dict[str, object]) -> None:
        self._settings = _on_its_device(parse_settings(AgentSettings, args, "agent"))
        self._loop = asyncio.new_event_loop()
        self._stop: asyncio.Event | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="orchestrate-agent", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except OSError as error:
            self._error = error

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        await AgentCore(self._settings).run(self._stop)

    def check_health(self) -> None:
        """Called by Serve; an agent whose thread has ended is replaced."""
        if not self._thread.is_alive():
            raise InfraError(f"the agent of pool {self._settings.pool} has ended: {self._error}")

    async def __del__(self) -> None:
        """Awaited by Serve when the agent is taken away: end the replicas."""
        if self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            await asyncio.to_thread(self._thread.join, _JOIN_S)


def app(args: Mapping[str, Any]) -> Application:
    """Build the Serve application of a pool.

    Args:
        args: those of `AgentSettings`; resource: the Ray resource, of which each slot takes `share` (1 when absent); start: how
            many agents to begin with, all slots when absent.

    Raises:
        UsageError: A key is missing, unknown or of the wrong type.
    """
    values = dict(args)
    resource, share, first = values.pop("resource", None), values.pop("share", 1), values.pop("start", None)
    if not isinstance(resource, str) or not resource:
        raise UsageError(
            f"resource: {resource!r} must name a Ray resource", hint="NPU, or the pool's rehearsal resource"
        )
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise UsageError(f"share: {share!r} must be more than 0 and at most 1", hint="the part of a device for a slot")
    settings = parse_settings(AgentSettings, values, "agent")
    # Ray types its decorator only for functions.
    deployment: Any = cast("Any", serve).deployment(
        PoolAgent,
        num_replicas=int(first or settings.slots),
        # Ray itself tells an agent of an NPU which device it got: ASCEND_RT_VISIBLE_DEVICES.
        ray_actor_options={"num_cpus": 0, "resources": {resource: share}},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=20,
    )
    return cast("Application", deployment.bind(values))


def _on_its_device(settings: AgentSettings) -> AgentSettings:
    """Return the settings of the slot that this process really got.

    Raises:
        DeviceError: The device that Ray gave is none of the pool's SoCs.
    """
    if settings.device == REHEARSAL:
        return settings
    from orchestrator.serving.agent.slot_device import soc_of_slot

    found = soc_of_slot(tuple(dict.fromkeys(settings.socs.values())) or (settings.device,))
    return replace(settings, device=found, socs={str(slot): found for slot in range(settings.slots)})
