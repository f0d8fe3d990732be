"""One replica process under supervision: start, watch, restart with growing pauses, retire, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import orjson

from orchestrator.core.digests import short
from orchestrator.core.errors import DeviceError
from orchestrator.core.files import private_folder, write_json
from orchestrator.core.redact import redact_text
from orchestrator.core.tail import last_text
from orchestrator.serving.agent.group import Groups, Place
from orchestrator.serving.agent.launch import Running, replica_settings, start_alone, variables_of
from orchestrator.serving.config import AgentSettings
from orchestrator.serving.link.reports import ReplicaReport
from orchestrator.serving.link.wire import Placement

_log: Final = logging.getLogger("orchestrator.serving.agent")
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 10.0
_HEALTHY_S: Final = 5.0
_BAD_AFTER: Final = 3
"""Failures of the device in a row, each within `_WELL_S` of the start, after which the replica is quarantined."""
_WELL_S: Final = 60.0
_DRAIN_S: Final = 30.0
_END_S: Final = 5.0
_TAIL_BYTES: Final = 2048


class Supervised:
    """Keeps one replica running for as long as it is wanted.

    Args:
        placement: What to run.
        name: Of the agent's slot; the replica's name begins with it.
        settings: The agent's.
        changed: Called when the report changes.
        gone: Called once the replica has ended and is not wanted any more.
        load: See `ReplicaSettings`.
        groups: Where it may share a process.

    Attributes:
        used_at: When it computed last, monotonic seconds.
        shared_bytes: What its load took of a process that it shares; None where it has its own.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        name: str,
        settings: AgentSettings,
        changed: Callable[[], None],
        gone: Callable[[Supervised], None],
        load: str = "always",
        groups: Groups | None = None,
    ) -> None:
        self._groups = groups
        self.shared_bytes: int | None = None
        self.placement = placement
        build = "-".join(short(digest) for digest in placement.build if digest)
        self._slot, self._load, self.used_at = name, load, 0.0
        self._name = f"{name}.{placement.endpoint}.{build}"
        if placement.stage != "model":
            self._name += f".{placement.stage}"
        self._settings = settings
        self._changed = changed
        self._gone = gone
        self._wanted = True
        self._ending = False
        self._state, self._error, self._tail = "starting", "", ""
        self._restarts = self._failures = self._bad_ends = self._device_failures = 0
        self._blames_device = self._served = self._leaving = self._innocent = False
        self._process: Running | None = None
        self._folder = private_folder(Path(settings.state) / "replicas")
        self._log_path = self._folder / f"{self._name}.log"
        self._wake = asyncio.Event()
        self._reaper: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._run())

    def tail(self) -> str:
        """Return the end of the replica's log."""
        return redact_text(last_text(self._log_path, _TAIL_BYTES))

    def report(self) -> ReplicaReport:
        """Return what to tell the router."""
        pid = self._process.pid if self._process else 0
        placement = self.placement
        return ReplicaReport(
            placement.endpoint,
            placement.bundle,
            self._state,
            self._restarts,
            pid,
            self._error,
            self._tail,
            placement.variant,
            placement.stage,
            failures=self._bad_ends,
        )

    def want(self, placement: Placement) -> None:
        """Run `placement`, which has our endpoint and bundle; another path, runtime or device means a restart.

        One that was to end and is wanted again begins anew: what it was or did before is not the new generation's.
        """
        again, self._wanted = not self._wanted, True
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        if placement != self.placement:
            self.placement = placement
            self._failures = self._bad_ends = self._device_failures = 0
            self._set("starting", "")
            self._signal(signal.SIGTERM)
            self._wake.set()  # a table that changes elsewhere must not end a pause
        elif again:
            self._failures = self._bad_ends = self._device_failures = 0
            serves = self._served and self._process is not None and not self._leaving
            self._set("ready" if serves else "starting", "")

    def retire(self, *, at_once: bool = False) -> None:
        """Run no longer: the router drains the replica; what still runs after `_DRAIN_S` is ended.

        Args:
            at_once: Others serve the endpoint on, so the router drains nothing: the replica answers what it holds and ends.
        """
        self._wanted = False
        self._wake.set()
        if self._reaper is None and self._process is not None:
            self._set("stopping", self._error)
            self._reaper = asyncio.create_task(self._reap(0.0 if at_once else _DRAIN_S))

    async def _reap(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self._stop_process(_END_S if after_s else _DRAIN_S)

    async def end(self) -> None:
        """End the replica now: SIGTERM, then SIGKILL."""
        self._ending = True
        self._wanted = False
        self._wake.set()
        if self._reaper is not None:
            self._reaper.cancel()
        await self._stop_process()
        await self._task

    async def _stop_process(self, within_s: float = _END_S) -> None:
        process, self._leaving = self._process, True
        self._signal(signal.SIGTERM)
        if process is not None:
            try:
                await asyncio.wait_for(process.wait(), within_s)
            except TimeoutError:
                self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _set(self, state: str, error: str) -> None:
        self._state, self._error = state, redact_text(error)
        self._changed()

    async def _run(self) -> None:
        while self._wanted:
            if self.placement.device != self._settings.device:
                text = f"the table wants device {self.placement.device!r}, this slot is {self._settings.device!r}"
                self._set("failed", text)
                await self._pause(3600.0)
                continue
            begun = time.monotonic()
            code = await self._run_once()
            if self._wanted:
                await self._pause(self._ended(code, time.monotonic() - begun))
        if not self._ending:
            self._gone(self)

    def _ended(self, code: int, uptime_s: float) -> float:
        """Take in the end of the process and return how long to wait before the next start, seconds."""
        if self._innocent:
            self._restarts += 1
            self._set("starting", "")
            return _FIRST_PAUSE_S
        drained = code == 0 and self._state != "failed"
        self._restarts += 1
        healthy = drained or uptime_s > _HEALTHY_S
        self._failures = 0 if healthy else self._failures + 1
        self._bad_ends = 0 if drained or (healthy and self._served) else self._bad_ends + 1
        pause_s = min(_FIRST_PAUSE_S * 2**self._failures, _MAX_PAUSE_S)
        if drained:
            return pause_s
        self._tail = redact_text(last_text(self._log_path, _TAIL_BYTES))
        error = self._error or _why(code)
        before = self._device_failures if uptime_s < _WELL_S else 0
        self._device_failures = before + 1 if self._blames_device or code == -signal.SIGALRM else 0
        if self._device_failures >= _BAD_AFTER:
            pause_s = self._settings.quarantine_s
            error = (
                f"quarantined for {pause_s:g} s after {self._device_failures} failures of the device in a row: {error}"
            )
        _log.warning("replica %s ended (%s): %s", self._name, code, error)
        self._set("failed", error)
        return pause_s

    async def _pause(self, seconds: float) -> None:
        """Sleep; a change of what is wanted ends it early."""
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    async def _run_once(self) -> int:
        """Run the process to its end and return its exit code."""
        read_end, write_end = os.pipe()
        config = self._folder / f"{self._name}.json"
        placement = self.placement
        row = replica_settings(
            placement,
            self._settings,
            replica=f"{self._name}.{self._restarts}",
            work=self._folder / f"{self._name}.work",
            status=write_end,
            slot=self._slot,
            load=self._load,
        )
        write_json(config, row, mode=0o600)
        self._error, self._blames_device, self._served, self._leaving = "", False, False, False
        self._set("starting" if not self._failures else self._state, self._error)
        try:
            variables = await asyncio.to_thread(variables_of, self.placement, self._settings)
        except DeviceError as error:
            os.close(read_end)
            os.close(write_end)
            self._set("failed", str(error))
            return error.exit_code
        self._process = running = await self._start(config, write_end, variables)
        os.close(write_end)
        if not self._wanted or self.placement != placement:
            self._signal(signal.SIGTERM)  # it was let go while it started
        await self._follow(read_end, running)
        if isinstance(running, Place):
            running.closed()
        code = await running.wait()
        self._process = None
        self._innocent = isinstance(running, Place) and running.innocent
        return code

    async def _start(self, config: Path, status: int, variables: dict[str, str] | None) -> Running:
        if self._groups is not None and self._groups.takes(self.placement):
            place = await self._groups.join(self.placement, config, status, variables)
            self._log_path, self.shared_bytes = place.log_path, 0
            return place
        self._log_path, self.shared_bytes = self._folder / f"{self._name}.log", None
        return await start_alone(config, status, self._log_path, variables)

    async def _follow(self, read_end: int, running: Running) -> None:
        """Take in what the replica says of itself, until it closes the pipe: at its end."""
        reader = asyncio.StreamReader()
        with os.fdopen(read_end, "rb") as pipe:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), pipe
            )
            while line := await reader.readline():
                told = orjson.loads(line)
                if told.get("used"):
                    self.used_at = time.monotonic()
                    continue
                if isinstance(running, Place):
                    running.told(told)
                    self.shared_bytes = told.get("memory_bytes", self.shared_bytes)
                if "ended" in told:
                    continue
                self._blames_device = bool(told.get("device"))
                self._served = self._served or told["state"] == "ready"
                if self._wanted or told["state"] == "failed":
                    self._set(told["state"], told["error"])
            transport.close()


def _why(code: int) -> str:
    if code == -signal.SIGALRM:
        return "a batch did not finish in time; the device does not answer"
    return f"the replica was ended by signal {-code}" if code < 0 else f"the replica ended with exit code {code}"
