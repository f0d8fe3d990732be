"""The agent without Ray: holds one slot of a pool, learns its placements from the router, supervises one replica process for each.

`python -m orchestrator.serving.agent.process --config agent.json` runs it on bare metal and in tests; `agent.py` runs it in Ray Serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final, TextIO

from orchestrator.core.files import private_folder
from orchestrator.serving.agent.device_figures import DevicePoll
from orchestrator.serving.agent.device_memory import DeviceMemory
from orchestrator.serving.agent.residents import Residents
from orchestrator.serving.config import AgentSettings
from orchestrator.serving.link.frames import FrameReader, Kind, LinkError, encode
from orchestrator.serving.link.wire import AgentHello, read_build, read_elsewhere, read_placements
from orchestrator.serving.runtimes.api import REHEARSAL
from orchestrator.serving.start import start

_log: Final = logging.getLogger("orchestrator.serving.agent")
_FIRST_DELAY_S: Final = 0.05
_MAX_DELAY_S: Final = 1.0
_SLOT_POLL_S: Final = 0.2
_READ_BYTES: Final = 1 << 16
_REPORT_S: Final = 0.01
"""Changes within this time are one report."""


class AgentCore:
    """One agent. Everything runs in the event loop of `run`."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._state = Path(settings.state)
        self._version = 0
        self._bells: set[asyncio.Event] = set()
        self._figures = DevicePoll()
        self.slot = -1

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then end every replica."""
        private_folder(self._state)
        lock = await self._take_slot(stop)
        if lock is None:
            return
        with lock:
            memory = DeviceMemory() if self._settings.device != REHEARSAL else None
            self._residents = Residents(self._settings, f"{self._settings.pool}-{self.slot}", self._ring, memory)
            loading = asyncio.create_task(self._residents.run())
            dialing = asyncio.create_task(self._dial_all())
            waiting = asyncio.create_task(stop.wait())
            polling = asyncio.create_task(self._poll_device())
            await asyncio.wait({dialing, waiting, loading}, return_when=asyncio.FIRST_COMPLETED)
            for task in (waiting, polling, dialing, loading):
                task.cancel()
            await asyncio.gather(dialing, waiting, polling, loading, self._residents.end(), return_exceptions=True)
            for task in (dialing, loading):
                if not task.cancelled() and (error := task.exception()) is not None:
                    raise error

    async def _poll_device(self) -> None:
        """A rehearsal has no device to ask."""
        if self._settings.device != REHEARSAL:
            await self._figures.run(self._ring)

    def _ring(self) -> None:
        for bell in self._bells:
            bell.set()

    async def _take_slot(self, stop: asyncio.Event) -> TextIO | None:
        """Return the held lock of the first free slot: two agents never hold one device, even while Serve replaces one by the other."""
        told = False
        while not stop.is_set():
            for slot in range(self._settings.slots):
                file = (self._state / f"slot-{slot}.lock").open("w")
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.close()
                    continue
                self.slot = slot
                return file
            if not told:
                _log.info("all %d slots of pool %s are held; waiting", self._settings.slots, self._settings.pool)
                told = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _SLOT_POLL_S)
        return None

    async def _dial_all(self) -> None:
        """The first router places models; every router learns what there is, and may wake a model."""
        links = dict.fromkeys((self._settings.link, *self._settings.links))
        await asyncio.gather(*(self._dial_forever(link) for link in links))

    async def _dial_forever(self, link: str) -> None:
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(link)
            except OSError:
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _MAX_DELAY_S)
                continue
            delay_s = _FIRST_DELAY_S
            reporting = asyncio.create_task(self._report_forever(writer))
            try:
                await self._listen(reader, leads=link == self._settings.link)
            except (OSError, LinkError) as error:
                _log.warning("link ended: %s", error)
            finally:
                reporting.cancel()
                writer.close()
            await asyncio.sleep(delay_s)

    async def _report_forever(self, writer: asyncio.StreamWriter) -> None:
        settings = self._settings
        soc = settings.socs.get(str(self.slot), "")
        hello = AgentHello(settings.pool, self.slot, settings.device, os.getpid(), socket.gethostname(), soc)
        writer.write(encode(Kind.HELLO, hello.to_json()))
        bell = asyncio.Event()
        self._bells.add(bell)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(self._bells.discard, bell)
            while True:
                bell.clear()
                rows = [report.to_json() for report in self._residents.reports()]
                writer.write(encode(Kind.REPORT, {"version": self._version, "replicas": rows, **self._figures.head()}))
                await writer.drain()
                await asyncio.sleep(_REPORT_S)
                await bell.wait()

    async def _listen(self, reader: asyncio.StreamReader, *, leads: bool) -> None:
        frames = FrameReader()
        while data := await reader.read(_READ_BYTES):
            for frame in frames.feed(data):
                if frame.kind is Kind.PLACEMENTS and leads:
                    version, placements = read_placements(frame)
                    self._residents.place(placements, read_elsewhere(frame))
                    self._version = version
                    self._ring()
                elif frame.kind is Kind.WAKE:
                    self._residents.wake(read_build(frame))
                elif frame.kind is Kind.UNLOAD:
                    self._residents.unload(read_build(frame))
                elif frame.kind is Kind.BYE:
                    _log.warning("the router says bye: %s", frame.head.get("reason"))


async def _main(settings: AgentSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await AgentCore(settings).run(stop)


def main(argv: list[str] | None = None) -> int:
    """Run an agent; returns the exit code."""

    def serve(settings: AgentSettings) -> None:
        asyncio.run(_main(settings))

    return start("orchestrator.serving.agent.process", AgentSettings, serve, argv)


if __name__ == "__main__":
    sys.exit(main())
