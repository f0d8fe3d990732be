"""What the models of a slot hold on its device, as npu-smi says; it takes seconds to say so, and is asked in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orchestrator.ascend.devices import visible_devices
from orchestrator.ascend.npu_smi import query
from orchestrator.core.errors import DeviceError

_log: Final = logging.getLogger("orchestrator.serving.agent")
_MB: Final = 1 << 20
_TIMEOUT_S: Final = 10.0
_OFTEN_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One look.

    Attributes:
        held: Bytes on the device, by process.
        free: Bytes that the slot's chip has left; None where npu-smi does not say.
    """

    held: Mapping[int, int] = field(default_factory=dict[int, int])
    free: int | None = None


class DeviceMemory:
    """The last look. Without npu-smi, or where it shows none of our processes (a container may have other numbers for them), the
    caller counts the host's memory, as for a rehearsal; a warning says so once.

    Attributes:
        tells: Whether npu-smi has shown a process of ours: from then on, device memory is what counts.
        free: Bytes that the chip has left, at the last look.
    """

    def __init__(self, variables: Mapping[str, str] = os.environ) -> None:
        self._variables = variables
        self._seen = Seen()
        self._warned = False
        self._looked_at = -_OFTEN_S
        self.tells = False

    @property
    def free(self) -> int | None:
        """See above."""
        return self._seen.free

    def held(self, pids: Collection[int]) -> int:
        """Return what these processes and their children hold on the device."""
        return sum(self._seen.held.get(pid, 0) for pid in with_children(pids))

    async def refresh(self, ours: Collection[int], *, fresh: bool) -> None:
        """Look again.

        Args:
            ours: The slot's processes; with `fresh`, at least one of them has loaded its model.
            fresh: Ask npu-smi even where it was asked a moment ago.
        """
        if not fresh and time.monotonic() - self._looked_at < _OFTEN_S:
            return
        self._looked_at = time.monotonic()
        found = await _in_thread(self._variables, fresh=fresh)
        if found is not None:
            self._seen = found
        if not self.tells and self.held(ours):
            self.tells = True
        elif ours and fresh and not self.tells and not self._warned:
            self._warned = True
            _log.warning("npu-smi does not show what our processes hold: a slot's `memory` counts the host's")


def with_children(pids: Collection[int]) -> set[int]:
    """Return these processes and those that they have started: some runtimes load their model in a child."""
    found: set[int] = set()
    left = [pid for pid in pids if pid]
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            with contextlib.suppress(OSError, ValueError):
                left += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found


def look(variables: Mapping[str, str], *, fresh: bool) -> Seen | None:
    """Ask npu-smi; None where it is absent or fails."""
    visible = visible_devices(variables.get("ASCEND_RT_VISIBLE_DEVICES", "")).devices
    program = shutil.which("npu-smi", path=variables.get("PATH", ""))
    if not visible or program is None:
        return None
    try:
        found = query(program, timeout_s=_TIMEOUT_S, fresh=fresh)
    except DeviceError as error:
        _log.warning("device memory: %s", error.message)
        return None
    held: dict[int, int] = {}
    for pid, memory_mb in found.processes:
        held[pid] = held.get(pid, 0) + memory_mb * _MB
    chip = next((chip for chip in found.chips if chip.logical == visible[0]), None)
    memory = None if chip is None else chip.models_mb
    return Seen(held, None if memory is None else (memory[1] - memory[0]) * _MB)


async def _in_thread(variables: Mapping[str, str], *, fresh: bool) -> Seen | None:
    """Look in a thread that nobody waits for at the end: an npu-smi that hangs must not hold up the agent."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Seen | None] = loop.create_future()

    def tell(found: Seen | None) -> None:
        if not answer.done():
            answer.set_result(found)

    def work() -> None:
        found = look(variables, fresh=fresh)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, found)

    threading.Thread(target=work, name="npu-smi-memory", daemon=True).start()
    return await answer
