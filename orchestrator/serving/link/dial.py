"""The replica's end of the link: one connection to every router of the site, each dialled again when it ends."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Final, Protocol

from orchestrator.serving.link.frames import DIRECT_BYTES, Frame, FrameReader, Kind, encode
from orchestrator.serving.protocol.tensors import Buffer

_FIRST_DELAY_S: Final = 0.05
_MAX_DELAY_S: Final = 1.0
SEND_BUFFER_BYTES: Final = 4 << 20
"""A batch of images goes into the kernel at once, and its receiver wakes up once; the kernel may give less."""
_JOIN_BYTES: Final = 1 << 20
_SEND_S: Final = 5
"""A router that takes nothing for this long is given up, so that it cannot hold up the others."""
_SEND_TIMEOUT: Final = struct.pack("ll", _SEND_S, 0)


class Link:
    """One connection to one router; when it ends, another takes its place.

    Attributes:
        due: When to dial, monotonic seconds.
        up: Whether it is connected.
        draining: Whether the router has asked us to end.
        asked: Whether we have asked it for that.
    """

    __slots__ = ("_delay_s", "asked", "draining", "due", "path", "reader", "socket", "up")

    def __init__(self, path: str, due: float = 0.0) -> None:
        self.path = path
        self.due = due
        self._delay_s = _FIRST_DELAY_S
        self.socket = socket.socket()
        self.socket.close()
        self.reader = FrameReader()
        self.up = self.draining = self.asked = False

    def dial(self, greeting: bytes) -> bool:
        """Try to connect and say hello; where that fails, it is `due` again a little later."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        try:
            link.setblocking(False)  # a router that hangs takes no more connections, and must hold up nobody
            link.connect(self.path)
            link.setblocking(True)
            link.sendall(greeting)
        except OSError:
            link.close()
            self.due = time.monotonic() + self._delay_s
            self._delay_s = min(self._delay_s * 2, _MAX_DELAY_S)
            return False
        self.socket, self.up = link, True
        return True

    def send(self, pieces: Sequence[Buffer]) -> None:
        """Send a frame.

        Raises:
            OSError: The connection has ended.
        """
        if sum(map(len, pieces)) <= _JOIN_BYTES:
            self.socket.sendall(b"".join(pieces))
        else:
            for piece in pieces:
                self.socket.sendall(piece)

    def close(self, reason: str = "") -> None:
        """End the connection, saying bye with a reason where there is one."""
        if reason:
            with contextlib.suppress(OSError):
                self.send([encode(Kind.BYE, {"reason": reason})])
        self.socket.close()
        self.up = False


class Files(Protocol):
    """Who waits for the sockets of several `Links` at once."""

    def add(self, file: int) -> None:
        """The socket of this number is connected."""
        ...

    def discard(self, file: int) -> None:
        """It is about to be closed."""
        ...


class Links:
    """The connections to all routers.

    Args:
        paths: Their link sockets.
        greeting: What to say first on each: hello and credit.
        files: Told of the sockets, where somebody else waits for them.
    """

    def __init__(self, paths: Sequence[str], greeting: bytes, files: Files | None = None) -> None:
        self._greeting = greeting
        self._files = files
        self._buffer = memoryview(bytearray(DIRECT_BYTES))
        self._down = [Link(path) for path in dict.fromkeys(paths)]
        self._poll = select.poll()
        self._by_file: dict[int, Link] = {}

    @property
    def up(self) -> Sequence[Link]:
        """The links that are connected."""
        return list(self._by_file.values())

    @property
    def over(self) -> bool:
        """Whether every router that we are connected to has asked us to end."""
        return bool(self._by_file) and all(link.draining for link in self._by_file.values())

    @property
    def due(self) -> float:
        """When to `read` although nothing has arrived, monotonic seconds: a router must be dialled; infinity for never."""
        return min((link.due for link in self._down), default=math.inf)

    def read(self, *, wait: bool) -> Sequence[tuple[Link, Frame | None]]:
        """Return the frames that have arrived; None in the place of one is the end of that connection.

        Args:
            wait: Return only when there is something, or when a connection has been made.
        """
        if self._down and self._dial_due():
            return ()
        if wait and not self._down and len(self._by_file) == 1:
            # The usual case costs one call of the kernel.
            return self._receive(next(iter(self._by_file.values())), 0)
        found: list[tuple[Link, Frame | None]] = []
        for file, _ in self._poll.poll(self._patience_ms() if wait else 0):
            found.extend(self._receive(self._by_file[file], socket.MSG_DONTWAIT))
        return found

    def pause(self, seconds: float) -> None:
        """Sleep until something arrives, at most `seconds`."""
        select.select([link.socket for link in self._by_file.values()], [], [], seconds)

    def ask_drain(self) -> None:
        """Ask every router, once, to send nothing more: each answers with drain, behind what it has sent already."""
        for link in self.up:
            if not link.asked:
                link.asked = True
                with contextlib.suppress(OSError):
                    link.send([encode(Kind.DRAIN, {})])

    def end(self, link: Link, reason: str = "", delay_s: float = _FIRST_DELAY_S) -> None:
        """Close a connection; its router is dialled again after `delay_s`."""
        if link.up:
            if self._files is not None:
                self._files.discard(link.socket.fileno())
            self._poll.unregister(link.socket)
            del self._by_file[link.socket.fileno()]
            link.close(reason)
            self._down.append(Link(link.path, time.monotonic() + delay_s))

    def close(self, reason: str) -> None:
        """Say bye everywhere."""
        for link in self.up:
            self.end(link, reason)

    def _dial_due(self) -> bool:
        now, dialled = time.monotonic(), False
        for link in [link for link in self._down if link.due <= now]:
            if link.dial(self._greeting):
                self._down.remove(link)
                self._by_file[link.socket.fileno()] = link
                self._poll.register(link.socket, select.POLLIN)
                if self._files is not None:
                    self._files.add(link.socket.fileno())
                dialled = True
        return dialled

    def _patience_ms(self) -> float | None:
        if not self._down:
            return None
        return max(0.0, self.due - time.monotonic()) * 1000 + 1

    def _receive(self, link: Link, flags: int) -> Sequence[tuple[Link, Frame | None]]:
        room = link.reader.room()
        try:
            size = link.socket.recv_into(self._buffer if room is None else room, 0, flags)
        except BlockingIOError:
            return ()
        except OSError:
            size = 0
        if not size:
            self.end(link)
            return ((link, None),)
        frames = link.reader.feed(self._buffer[:size]) if room is None else link.reader.filled(size)
        return [(link, frame) for frame in frames]
