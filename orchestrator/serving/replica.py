"""The replica process: loads one bundle, proves itself on its golden samples, then computes batches until it is drained.

`python -m orchestrator.serving.replica --config replica.json`; the agent starts it. One thread does everything.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from orchestrator.bundle.golden import GOLDEN_FILE, read_golden
from orchestrator.bundle.unpack import open_unpacked
from orchestrator.core.errors import DeviceError, IntegrityError, OrchestratorError
from orchestrator.core.files import private_folder
from orchestrator.core.processes import die_with_parent
from orchestrator.serving.batch import Work, execute, start
from orchestrator.serving.config import ReplicaSettings, read_settings
from orchestrator.serving.golden import self_check
from orchestrator.serving.link import Frame, FrameReader, Kind, decode_tensors, encode
from orchestrator.serving.runtimes.api import ExecutionFailed, InputRejected, Job, Session, runtime
from orchestrator.serving.runtimes.headroom import check_host
from orchestrator.serving.signature import Signature
from orchestrator.serving.tensors import Buffer
from orchestrator.serving.warm import warm_up
from orchestrator.serving.wire import ReplicaHello, read_rows

if TYPE_CHECKING:
    from orchestrator.bundle.variant import Variant

_POLL_S, _MAX_POLL_S, _POLL_SHARE = 0.0001, 0.002, 0.02
"""Between two looks at a device that is busy, least and most, and as a share of the time that its batch takes already: pyACL
has no descriptor that becomes readable.
"""
_FIRST_DELAY_S: Final = 0.05
_MAX_DELAY_S: Final = 1.0
_READ_BYTES: Final = 1 << 20
_JOIN_BYTES: Final = 1 << 20


class _Stopped(BaseException):
    """SIGTERM while waiting."""


class _Refused(OrchestratorError):
    """The router does not want this replica."""


class ReplicaProcess:
    """One replica. `run` returns when it has been drained or told to stop."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._settings = settings
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._waiting = self._stopping = False
        self._free_since_ns = 0

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
        )
        try:
            while not self._stopping and self._serve_once(session, hello):
                pass
        except _Stopped:
            pass
        session.close()

    def _load(self, bundle: Path) -> tuple[Session, int]:
        """Return the session, warm and checked, and its largest safe batch; a session that fails is closed."""
        settings, variant = self._settings, self._variant()
        folder = bundle if variant is None else variant.folder
        work = private_folder(Path(settings.work)) if settings.work else Path(tempfile.mkdtemp(prefix="orc-replica-"))
        check_host(folder)
        # A device that hangs while it loads or warms up holds the interpreter too: only the kernel can end this process.
        signal.setitimer(signal.ITIMER_REAL, settings.load_s)
        session = runtime(settings.runtime).load(Job(folder, settings.device, work, variant, settings.tools))
        try:
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
        if not settings.variant:
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
            raise _Stopped

    def _tell(self, state: str, error: str = "", *, device: bool = False) -> None:
        if self._settings.status_fd:
            row = {"state": state, "error": error, "device": device}
            os.write(self._settings.status_fd, orjson.dumps(row) + b"\n")

    def fail(self, error: OrchestratorError) -> None:
        """Tell the agent why this replica ends."""
        self._tell("failed", str(error)[:4000], device=isinstance(error, DeviceError))

    def _dial(self) -> socket.socket:
        delay_s = _FIRST_DELAY_S
        while True:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                link.connect(self._settings.link)
            except OSError:
                link.close()
                self._waiting = True
                time.sleep(delay_s)
                self._waiting = False
                delay_s = min(delay_s * 2, _MAX_DELAY_S)
            else:
                return link

    def _serve_once(self, session: Session, hello: ReplicaHello) -> bool:
        """Serve one connection; returns whether to dial again."""
        with self._dial() as link:
            try:
                link.sendall(encode(Kind.HELLO, hello.to_json()) + encode(Kind.CREDIT, {"credit": session.depth}))
                self._tell("ready")
                return self._talk(link, session, hello.signature)
            except OSError:
                return True

    def _talk(self, link: socket.socket, session: Session, signature: Signature) -> bool:
        reader, works = FrameReader(), deque[Work]()
        draining = False
        while works or not (draining or self._stopping):
            frames = self._read(link, reader, wait=not works)
            if frames is None:
                return self._abandon(session, works)
            for frame in frames:
                if frame.kind is Kind.BATCH:
                    if not works:
                        self._watch(on=True)
                    works.append(start(session, signature, frame.id, decode_tensors(frame, "inputs"), read_rows(frame)))
                elif frame.kind is Kind.DRAIN:
                    draining = True
                elif frame.kind is Kind.BYE:
                    raise _Refused(f"the router refuses this replica: {frame.head.get('reason')}")
            if works and not frames:
                self._answer_oldest(link, session, works)
        self._watch(on=False)
        link.sendall(encode(Kind.BYE, {"reason": "drained" if draining else "stopped"}))
        return False

    def _answer_oldest(self, link: socket.socket, session: Session, works: deque[Work]) -> None:
        """Answer the batch that is done; while the device still works on it, wait a moment for it or for the next batch."""
        if session.done(works[0].ticket, 0):
            self._watch(on=True)
            answer = execute(session, works.popleft(), free_since_ns=self._free_since_ns)
            self._free_since_ns = time.perf_counter_ns()
            self._watch(on=False)
            _send(link, answer)
            self._watch(on=bool(works))
        else:
            since_ns = max(works[0].begun_ns, self._free_since_ns)
            pause_s = (time.perf_counter_ns() - since_ns) / 1e9 * _POLL_SHARE
            select.select([link], [], [], min(max(pause_s, _POLL_S), _MAX_POLL_S))

    def _abandon(self, session: Session, works: deque[Work]) -> bool:
        """The router is gone and gives what we hold to others: let the device finish, then dial again."""
        while works:
            with contextlib.suppress(InputRejected, ExecutionFailed):
                session.collect(works.popleft().ticket)
        self._watch(on=False)
        return True

    def _watch(self, *, on: bool) -> None:
        """Let the kernel end this process (SIGALRM's default action) when a batch takes too long, even where the device's
        call never gives the interpreter back.
        """
        signal.setitimer(signal.ITIMER_REAL, self._settings.stall_s if on else 0)

    def _read(self, link: socket.socket, reader: FrameReader, *, wait: bool) -> Sequence[Frame] | None:
        """Return the frames that have arrived; None at the end of the connection."""
        self._waiting = wait
        try:
            size = link.recv_into(self._buffer, 0, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return ()
        finally:
            self._waiting = False
        return tuple(reader.feed(self._buffer[:size])) if size else None


def _send(link: socket.socket, pieces: Sequence[Buffer]) -> None:
    if sum(map(len, pieces)) <= _JOIN_BYTES:
        link.sendall(b"".join(pieces))
    else:
        for piece in pieces:
            link.sendall(piece)


def main(argv: list[str] | None = None) -> int:
    """Run a replica; returns the exit code."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="orchestrator.serving.replica")
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
