"""What npu-smi says of a slot's device: asked by the agent, sent over the link, shown by the router while it is fresh."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from orchestrator.ascend.devices import visible_devices
from orchestrator.ascend.npu_smi import Chip, query
from orchestrator.core.errors import DeviceError
from orchestrator.serving.link.frames import Frame
from orchestrator.serving.observe.exposition import Family

if TYPE_CHECKING:
    from orchestrator.serving.link.connections import LinkConnection

POLL_S: Final = 15.0
_STALE_S: Final = 60.0
_MB: Final = 1 << 20
_METRICS: Final = (
    ("used_ratio", "orchestrate_npu_utilization_ratio", "Share of the AI cores' time that is used."),
    ("memory_used_bytes", "orchestrate_npu_memory_used_bytes", "Device memory in use."),
    ("memory_bytes", "orchestrate_npu_memory_size_bytes", "Device memory."),
    ("temperature_c", "orchestrate_npu_temperature_celsius", "Temperature of the chip."),
    ("power_w", "orchestrate_npu_power_watts", "Power that the card draws."),
    ("healthy", "orchestrate_npu_healthy", "1 where npu-smi says OK, else 0."),
)


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """One look at a chip; None where npu-smi does not say.

    Attributes:
        healthy: 1 or 0.
    """

    npu: int
    used_ratio: float | None
    memory_used_bytes: int | None
    memory_bytes: int | None
    temperature_c: float | None
    power_w: float | None
    healthy: int | None


def figures_of(chip: Chip) -> DeviceFigures:
    """Return what one row of npu-smi's table says."""
    memory = chip.models_mb
    return DeviceFigures(
        npu=chip.npu,
        used_ratio=None if chip.used_percent is None else chip.used_percent / 100,
        memory_used_bytes=memory[0] * _MB if memory else None,
        memory_bytes=memory[1] * _MB if memory else None,
        temperature_c=chip.temperature_c,
        power_w=chip.power_w,
        healthy=None if chip.health == "unknown" else int(chip.health == "ok"),
    )


def look(variables: Mapping[str, str] = os.environ) -> DeviceFigures | None:
    """Ask npu-smi for the device of this process; None where there is none, or nobody to ask. Takes seconds."""
    visible = visible_devices(variables.get("ASCEND_RT_VISIBLE_DEVICES", "")).devices
    program = shutil.which("npu-smi", path=variables.get("PATH", ""))
    if not visible or program is None:
        return None
    try:
        chips = query(program, fresh=True).chips
    except DeviceError:
        return None
    found = [chip for chip in chips if chip.logical == visible[0]]
    return figures_of(found[0]) if found else None


class DevicePoll:
    """Looks every `POLL_S`, in a thread, and keeps the last answer; what cannot be asked has no figures."""

    def __init__(self, variables: Mapping[str, str] = os.environ, poll_s: float = POLL_S) -> None:
        self._variables = variables
        self._poll_s = poll_s
        self.latest: DeviceFigures | None = None

    async def run(self, changed: Callable[[], None]) -> None:
        """Poll until cancelled; `changed` is called after each look that found something, or found it gone."""
        while True:
            before, self.latest = self.latest, await self._look()
            if self.latest is not None or before is not None:
                changed()
            await asyncio.sleep(self._poll_s)

    async def _look(self) -> DeviceFigures | None:
        """Look in a thread that nobody waits for: an npu-smi that hangs must not hold up the end of the agent."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[DeviceFigures | None] = loop.create_future()

        def tell(found: DeviceFigures | None) -> None:
            if not answer.done():
                answer.set_result(found)

        def work() -> None:
            found = look(self._variables)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, found)

        threading.Thread(target=work, name="npu-smi", daemon=True).start()
        return await answer

    def head(self) -> dict[str, object]:
        """Return what a report frame says of it."""
        return {"figures": asdict(self.latest)} if self.latest is not None else {}


@dataclass(frozen=True, slots=True)
class Received:
    """Figures as a router holds them."""

    figures: DeviceFigures
    at: float

    @property
    def fresh(self) -> bool:
        """Whether they still say something."""
        return time.monotonic() - self.at < _STALE_S


def read_figures(frame: Frame) -> Received | None:
    """Read the figures of a report; what is not a number is left out, for figures are never worth a connection."""
    raw = frame.head.get("figures")
    if not isinstance(raw, dict):
        return None
    row = cast("dict[str, object]", raw)
    values: dict[str, Any] = {name: _number(row.get(name)) for name, *_ in _METRICS}
    npu = _number(row.get("npu"))
    return Received(DeviceFigures(npu=int(npu or 0), **values), time.monotonic())


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def figure_families(number: str, agents: Iterable[LinkConnection]) -> list[Family]:
    """Return the figures of every slot whose agent has sent some of late; a rehearsal has none."""
    found = {field: Family(name, "gauge", about) for field, name, about in _METRICS}
    for connection in agents:
        hello, received = connection.agent, connection.figures
        if hello is None or received is None or not received.fresh:
            continue
        labels = {"router": number, "pool": hello.pool, "slot": hello.slot, "device": hello.device}
        labels["npu"] = received.figures.npu
        for field, family in found.items():
            value = getattr(received.figures, field)
            if value is not None:
                family.add(labels, value)
    return list(found.values())
