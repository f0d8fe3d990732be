"""The replica process: loads one bundle, proves itself on its golden samples, then computes batches until it is drained.

`python -m orchestrator.serving.replica.process --config replica.json`; the agent starts it. One thread does everything.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import orjson

from orchestrator.bundle.golden import GOLDEN_FILE, read_golden
from orchestrator.bundle.unpack import open_unpacked
from orchestrator.core.errors import DeviceError, IntegrityError, OrchestratorError
from orchestrator.core.files import private_folder
from orchestrator.core.processes import die_with_parent
from orchestrator.serving.config import ReplicaSettings, read_settings
from orchestrator.serving.link.dial import Link, Links
from orchestrator.serving.link.frames import Frame, Kind, decode_tensors, encode
from orchestrator.serving.link.wire import ReplicaHello, read_rows
from orchestrator.serving.protocol.signature import Signature
from orchestrator.serving.replica.batch import Work, execute, start
from orchestrator.serving.replica.golden import self_check
from orchestrator.serving.replica.outputs import saturates
from orchestrator.serving.replica.stages import check_stage
from orchestrator.serving.replica.warm import warm_up
from orchestrator.serving.runtimes.api import ExecutionFailed, InputRejected, Job, Session, Stage, runtime
from orchestrator.serving.runtimes.headroom import check_host
from orchestrator.serving.serve_settings import MODEL, SERVE_FOLDER

if TYPE_CHECKING:
    from orchestrator.bundle.variant import Variant

_POLL_S, _MAX_POLL_S, _POLL_SHARE = 0.0001, 0.002, 0.02
"""Between two looks at a device that is busy, least and most, and as a share of the time that its batch takes already: pyACL
has no descriptor that becomes readable.
"""
_USED_NS: Final = 250_000_000
_REFUSED_S: Final = 1.0
"""A router that does not want us now may want us after its next table."""


class _Stopped(BaseException):
    """SIGTERM while waiting."""


class _Refused(OrchestratorError):
    """The router does not want this replica."""


class ReplicaProcess:
    """One replica. `run` returns when it has been drained or told to stop."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._settings = settings
        self._waiting = self._stopping = False
        self._links: Links | None = None
        self._free_since_ns = self._told_ns = 0
        self._saturating = False

    def run(self) -> None:
        """Load, check, then serve.

        Raises:
            OrchestratorError: The bundle cannot be served, or the router refuses this replica.
        """
        signal.signal(signal.SIGTERM, self._on_term)
        settings = self._settings
        path = Path(settings.path)
        self._tell("starting")
        found = open_unpacked(path).digest
        if found != settings.bundle:
            raise IntegrityError(f"the folder holds bundle {found}, the table says {settings.bundle}", place=str(path))
        session, max_batch = self._load(path)
        signature = Signature(session.inputs, session.outputs, max_batch)
        hello = ReplicaHello(
            settings.replica,
            os.getpid(),
            settings.endpoint,
            settings.bundle,
            settings.runtime,
            session.device,
            signature,
            settings.variant,
            settings.slot if settings.stage == MODEL else "",  # a stage takes nothing of the device
            session.depth,
            session.buckets,
            settings.stage,
            settings.load,
        )
        with contextlib.suppress(_Stopped):
            self._serve(session, hello)
        session.close()

    def _load(self, bundle: Path) -> tuple[Session, int]:
        """Return the session, warm and checked, and its largest safe batch; a session that fails is closed."""
        settings, variant = self._settings, self._variant()
        self._saturating = saturates(variant)
        folder = bundle if variant is None else variant.folder
        work = private_folder(Path(settings.work)) if settings.work else Path(tempfile.mkdtemp(prefix="orc-replica-"))
        check_host(folder if settings.stage == MODEL else bundle / SERVE_FOLDER)
        # A device that hangs while it loads or warms up holds the interpreter too: only the kernel can end this process.
        signal.setitimer(signal.ITIMER_REAL, settings.load_s)
        stage = cast("Stage", settings.stage)
        session = runtime(settings.runtime).load(Job(folder, settings.device, work, variant, settings.tools, stage))
        try:
            if stage != MODEL:
                max_batch = check_stage(session, bundle, stage)
            else:
                golden = read_golden(bundle / GOLDEN_FILE)
                warm_up(session, golden)
                max_batch = self_check(session, golden, rounded=variant is not None)
        except BaseException:
            session.close()
            raise
        signal.setitimer(signal.ITIMER_REAL, 0)
        return session, max_batch

    def _variant(self) -> Variant | None:
        """Return the variant to load, its files verified; None where the bundle's own graph is served.

        Raises:
            IntegrityError: It is another one than the table says, or belongs to another bundle.
        """
        settings = self._settings
        if not settings.variant or settings.stage != MODEL:
            return None
        from orchestrator.bundle.variant import read_variant

        variant = read_variant(Path(settings.variant_path))
        found = (variant.digest, variant.bundle, variant.runtime)
        if found != (settings.variant, settings.bundle, settings.runtime):
            raise IntegrityError(
                f"the folder holds variant {found[0]} of bundle {found[1]} for runtime {found[2]!r}, "
                f"the table says {settings.variant} of {settings.bundle} for {settings.runtime!r}",
                place=settings.variant_path,
                hint="deploy the bundle again",
            )
        return variant

    def _on_term(self, _number: int, _frame: object) -> None:
        self._stopping = True
        if self._waiting:
            if self._links is None or not self._links.up:
                raise _Stopped
            self._links.ask_drain()  # what the kernel holds already is still answered

    def _tell(self, state: str, error: str = "", *, device: bool = False) -> None:
        if self._settings.status_fd:
            row = {"state": state, "error": error, "device": device}
            os.write(self._settings.status_fd, orjson.dumps(row) + b"\n")

    def _tell_used(self) -> None:
        """The agent unloads what was used longest ago."""
        self._told_ns = self._free_since_ns
        if self._settings.status_fd and self._settings.load == "lazy":
            os.write(self._settings.status_fd, b'{"used": true}\n')

    def fail(self, error: OrchestratorError) -> None:
        """Tell the agent why this replica ends."""
        self._tell("failed", str(error)[:4000], device=isinstance(error, DeviceError))

    def _serve(self, session: Session, hello: ReplicaHello) -> None:
        """Compute what any router of the site sends, until every one of them has drained us."""
        greeting = encode(Kind.HELLO, hello.to_json()) + encode(Kind.CREDIT, {"credit": session.depth})
        links = self._links = Links((self._settings.link, *self._settings.links), greeting)
        waiting, works = deque[tuple[Link, Frame]](), deque[tuple[Link, Work]]()
        told = False
        while works or waiting or not (links.over or (self._stopping and not links.up)):
            frames = self._read(links, wait=not works and not waiting)
            if not told and links.up:
                told = True
                self._tell("ready")
            for link, frame in frames:
                if frame is not None and frame.kind is Kind.BATCH:
                    waiting.append((link, frame))
                else:
                    self._take_in(links, link, frame)
            # Routers know nothing of each other's batches: together they may send more than the session takes.
            while waiting and len(works) < session.depth:
                self._begin(session, hello.signature, works, *waiting.popleft())
            if works and not frames:
                self._answer_oldest(links, session, works)
            self._end_drained(links, waiting, works)
        self._watch(on=False)
        links.close("stopped" if self._stopping else "drained")

    def _take_in(self, links: Links, link: Link, frame: Frame | None) -> None:
        if frame is not None and frame.kind is Kind.DRAIN:
            link.draining = True
        elif frame is not None and frame.kind is Kind.BYE:
            links.end(link, delay_s=_REFUSED_S)
            if not links.up and not self._stopping:
                raise _Refused(f"the router refuses this replica: {frame.head.get('reason')}")

    def _begin(
        self, session: Session, signature: Signature, works: deque[tuple[Link, Work]], link: Link, frame: Frame
    ) -> None:
        if not link.up:
            return  # that router is gone and has given the batch to others
        if not works:
            self._watch(on=True)
        tensors, rows = decode_tensors(frame, "inputs"), read_rows(frame)
        works.append((link, start(session, signature, frame.id, tensors, rows)))

    def _end_drained(self, links: Links, waiting: deque[tuple[Link, Frame]], works: deque[tuple[Link, Work]]) -> None:
        """Say bye to a router that has drained us; while others have not, it may want us again."""
        if any(link.draining for link in links.up) and not links.over and not self._stopping:
            busy = {link for link, _ in (*waiting, *works)}
            for link in [link for link in links.up if link.draining and link not in busy]:
                links.end(link, "drained", delay_s=_REFUSED_S)

    def _answer_oldest(self, links: Links, session: Session, works: deque[tuple[Link, Work]]) -> None:
        """Answer the batch that is done; while the device still works on it, wait a moment for it or for the next batch."""
        link, work = works[0]
        if not session.done(work.ticket, 0):
            pause_s = (time.perf_counter_ns() - max(work.begun_ns, self._free_since_ns)) / 1e9 * _POLL_SHARE
            links.pause(min(max(pause_s, _POLL_S), _MAX_POLL_S))
            return
        del works[0]
        self._watch(on=True)
        if link.up:
            answer = execute(session, work, free_since_ns=self._free_since_ns, saturating=self._saturating)
            self._free_since_ns = time.perf_counter_ns()
            self._watch(on=False)
            try:
                link.send(answer)
            except OSError:
                links.end(link)
            if self._free_since_ns - self._told_ns > _USED_NS:
                self._tell_used()
        else:
            # Its router is gone and gives what we hold to others: only let the device finish.
            with contextlib.suppress(InputRejected, ExecutionFailed):
                session.collect(work.ticket)
        self._watch(on=bool(works))

    def _watch(self, *, on: bool) -> None:
        """Let the kernel end this process (SIGALRM's default action) when a batch takes too long, even where the device's
        call never gives the interpreter back.
        """
        signal.setitimer(signal.ITIMER_REAL, self._settings.stall_s if on else 0)

    def _read(self, links: Links, *, wait: bool) -> Sequence[tuple[Link, Frame | None]]:
        self._waiting = wait
        if self._stopping:
            links.ask_drain()
        try:
            return links.read(wait=wait)
        finally:
            self._waiting = False


def main(argv: list[str] | None = None) -> int:
    """Run a replica; returns the exit code."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="orchestrator.serving.replica.process")
    parser.add_argument("--config", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        settings = read_settings(ReplicaSettings, args.config)
    except OrchestratorError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    if settings.parent_pid and os.getppid() != settings.parent_pid:
        return 3
    process = ReplicaProcess(settings)
    try:
        process.run()
    except OrchestratorError as error:
        sys.stderr.write(f"{error}\n")
        process.fail(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
