"""One model of a replica process: loaded, proved on its golden samples, then it computes what routers send until it is drained."""

from __future__ import annotations

import contextlib
import math
import os
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
from orchestrator.core.processes import resident_bytes
from orchestrator.serving.config import ReplicaSettings
from orchestrator.serving.link.dial import Link, Links
from orchestrator.serving.link.frames import Frame, Kind, decode_tensors, encode
from orchestrator.serving.link.wire import ReplicaHello, read_rows
from orchestrator.serving.protocol.signature import Signature
from orchestrator.serving.replica.batch import Work, execute, start
from orchestrator.serving.replica.golden import self_check
from orchestrator.serving.replica.outputs import saturates
from orchestrator.serving.replica.stages import check_stage
from orchestrator.serving.replica.warm import warm_up
from orchestrator.serving.replica.watch import Watch
from orchestrator.serving.runtimes.api import ExecutionFailed, Holding, InputRejected, Job, Session, Stage, runtime
from orchestrator.serving.runtimes.headroom import check_host
from orchestrator.serving.serve_settings import MODEL, SERVE_FOLDER

if TYPE_CHECKING:
    from orchestrator.bundle.variant import Variant
    from orchestrator.serving.link.dial import Files

_POLL_S, _MAX_POLL_S, _POLL_SHARE = 0.0001, 0.002, 0.02
"""Between two looks at a device that is busy, least and most, and as a share of the time that its batch takes already: pyACL
has no descriptor that becomes readable.
"""
_USED_NS: Final = 250_000_000
_REFUSED_S: Final = 1.0
"""A router that does not want us now may want us after its next table."""


class Stopped(BaseException):
    """SIGTERM while waiting, and no router to drain us."""


class _Refused(OrchestratorError):
    """The router does not want this replica."""


class Member:
    """One model, its session and its links.

    Args:
        settings: The model's.
        watch: The process's.
        number: Of this member, in the watch.
        status: A pipe to the agent, one JSON object a line; 0 for none.
        files: Told of the links' sockets, where somebody else waits for them.
    """

    def __init__(
        self, settings: ReplicaSettings, watch: Watch, *, number: int = 0, status: int = 0, files: Files | None = None
    ) -> None:
        self.number = number
        self._settings = settings
        self._watch = watch
        self._status = status
        self._files = files
        self._blocked = self._stopping = self._ready = self._saturating = False
        self._free_since_ns = self._told_ns = self._memory_bytes = 0
        self._waiting = deque[tuple[Link, Frame]]()
        self._works = deque[tuple[Link, Work]]()

    def load(self) -> None:
        """Load, warm up and check the model; after this it serves.

        Raises:
            OrchestratorError: The bundle cannot be served.
        """
        settings = self._settings
        path = Path(settings.path)
        self._tell("starting")
        found = open_unpacked(path).digest
        if found != settings.bundle:
            raise IntegrityError(f"the folder holds bundle {found}, the table says {settings.bundle}", place=str(path))
        before = resident_bytes(os.getpid())
        session, max_batch = self._load(path)
        taken = max(0, resident_bytes(os.getpid()) - before)
        self._memory_bytes = session.held_bytes if isinstance(session, Holding) else taken
        self._session, self._signature = session, Signature(session.inputs, session.outputs, max_batch)
        hello = ReplicaHello(
            settings.replica,
            os.getpid(),
            settings.endpoint,
            settings.bundle,
            settings.runtime,
            session.device,
            self._signature,
            settings.variant,
            settings.slot if settings.stage == MODEL else "",  # a stage takes nothing of the device
            session.depth,
            session.buckets,
            settings.stage,
            settings.load,
        )
        greeting = encode(Kind.HELLO, hello.to_json()) + encode(Kind.CREDIT, {"credit": session.depth})
        self.links = Links((settings.link, *settings.links), greeting, self._files)

    def _load(self, bundle: Path) -> tuple[Session, int]:
        """Return the session, warm and checked, and its largest safe batch; a session that fails is closed."""
        settings, variant = self._settings, self._variant()
        self._saturating = saturates(variant)
        folder = bundle if variant is None else variant.folder
        work = private_folder(Path(settings.work)) if settings.work else Path(tempfile.mkdtemp(prefix="orc-replica-"))
        check_host(folder if settings.stage == MODEL else bundle / SERVE_FOLDER)
        # A device that hangs while it loads or warms up holds the interpreter too: only the kernel can end this process.
        with self._watch.loading(self.number, settings.load_s):
            stage = cast("Stage", settings.stage)
            session = runtime(settings.runtime).load(Job(folder, settings.device, work, variant, settings.tools, stage))
            try:
                if stage != MODEL:
                    return session, check_stage(session, bundle, stage)
                golden = read_golden(bundle / GOLDEN_FILE)
                warm_up(session, golden)
                return session, self_check(session, golden, rounded=variant is not None)
            except BaseException:
                session.close()
                raise

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

    # --- what the agent is told ---

    def _say(self, row: dict[str, object]) -> None:
        if self._status:
            os.write(self._status, orjson.dumps(row) + b"\n")

    def _tell(self, state: str, error: str = "", *, device: bool = False) -> None:
        row: dict[str, object] = {"state": state, "error": error, "device": device}
        self._say(row | {"memory_bytes": self._memory_bytes} if state == "ready" else row)

    def fail(self, error: OrchestratorError) -> None:
        """Tell the agent why this replica ends."""
        self._tell("failed", str(error)[:4000], device=isinstance(error, DeviceError))

    def end(self, code: int) -> None:
        """Free the device, and tell the agent that it has left its process with such an exit code; nothing follows."""
        if self.serves:
            self.links.close("stopped" if self._stopping else "drained")
            for _, work in self._works:  # the device must let go of its buffers
                with contextlib.suppress(InputRejected, ExecutionFailed):
                    self._session.collect(work.ticket)
            self._session.close()
        self._watch.off(self.number)
        if self._files is not None:
            self._say({"ended": code})
            os.close(self._status)

    # --- serving ---

    @property
    def serves(self) -> bool:
        """Whether it has been loaded."""
        return hasattr(self, "links")

    @property
    def busy(self) -> bool:
        """Whether the device has a batch, or one waits for it."""
        return bool(self._works or self._waiting)

    @property
    def over(self) -> bool:
        """Whether all is answered, and every router has drained us, or we are told to stop and have none."""
        return not self.busy and (self.links.over or (self._stopping and not self.links.up))

    def stop(self) -> None:
        """Ask the routers to drain us; may interrupt a `turn` that waits.

        Raises:
            Stopped: It does, and there is no router.
        """
        self._stopping = True
        if self._blocked:
            if not self.links.up:
                raise Stopped
            self.links.ask_drain()  # what the kernel holds already is still answered

    def turn(self, *, wait: bool) -> float:
        """Take in what routers have sent, and answer the batch that is done.

        Args:
            wait: Return only when there is something to do.

        Returns:
            When to call again although nothing has arrived, in seconds: 0 at once, infinity never.

        Raises:
            OrchestratorError: The router refuses this replica, the link is broken, or the device is.
        """
        works, waiting, links = self._works, self._waiting, self.links
        frames = self._read(wait=wait and not works and not waiting)
        if not self._ready and links.up:
            self._ready = True
            self._tell("ready")
        for link, frame in frames:
            if frame is not None and frame.kind is Kind.BATCH:
                waiting.append((link, frame))
            else:
                self._take_in(link, frame)
        # Routers know nothing of each other's batches: together they may send more than the session takes.
        while waiting and len(works) < self._session.depth:
            self._begin(*waiting.popleft())
        pause_s = self._answer_oldest() if works and not frames else 0.0
        self._end_drained()
        return pause_s if self.busy else math.inf

    def _read(self, *, wait: bool) -> Sequence[tuple[Link, Frame | None]]:
        self._blocked = wait
        if self._stopping:
            self.links.ask_drain()
        try:
            return self.links.read(wait=wait)
        finally:
            self._blocked = False

    def _take_in(self, link: Link, frame: Frame | None) -> None:
        if frame is not None and frame.kind is Kind.DRAIN:
            link.draining = True
        elif frame is not None and frame.kind is Kind.BYE:
            self.links.end(link, delay_s=_REFUSED_S)
            if not self.links.up and not self._stopping:
                raise _Refused(f"the router refuses this replica: {frame.head.get('reason')}")

    def _begin(self, link: Link, frame: Frame) -> None:
        if not link.up:
            return  # that router is gone and has given the batch to others
        if not self._works:
            self._watch.on(self.number, self._settings.stall_s)
        tensors, rows = decode_tensors(frame, "inputs"), read_rows(frame)
        self._works.append((link, start(self._session, self._signature, frame.id, tensors, rows)))

    def _end_drained(self) -> None:
        """Say bye to a router that has drained us; while others have not, it may want us again."""
        links = self.links
        if any(link.draining for link in links.up) and not links.over and not self._stopping:
            busy = {link for link, _ in (*self._waiting, *self._works)}
            for link in [link for link in links.up if link.draining and link not in busy]:
                links.end(link, "drained", delay_s=_REFUSED_S)

    def _answer_oldest(self) -> float:
        """Answer the batch that is done; returns how long to leave the device alone, where it still works on it."""
        link, work = self._works[0]
        session, watch, stall_s = self._session, self._watch, self._settings.stall_s
        if not session.done(work.ticket, 0):
            pause_s = (time.perf_counter_ns() - max(work.begun_ns, self._free_since_ns)) / 1e9 * _POLL_SHARE
            return min(max(pause_s, _POLL_S), _MAX_POLL_S)
        del self._works[0]
        watch.on(self.number, stall_s)
        if link.up:
            answer = execute(session, work, free_since_ns=self._free_since_ns, saturating=self._saturating)
            self._free_since_ns = time.perf_counter_ns()
            watch.off(self.number)
            try:
                link.send(answer)
            except OSError:
                self.links.end(link)
            if self._free_since_ns - self._told_ns > _USED_NS:
                self._tell_used()
        else:
            # Its router is gone and gives what we hold to others: only let the device finish.
            with contextlib.suppress(InputRejected, ExecutionFailed):
                session.collect(work.ticket)
        if self._works:
            watch.on(self.number, stall_s)
        else:
            watch.off(self.number)
        return 0.0

    def _tell_used(self) -> None:
        """The agent unloads what was used longest ago."""
        self._told_ns = self._free_since_ns
        if self._settings.load == "lazy":
            self._say({"used": True})
