"""Who may ask: bearer tokens, of which a file holds only the hashes, and how many requests a second each may send.

One line a token: `name:sha256 hex of the token[:requests per second[:burst]]`; empty lines and lines that begin with # say nothing.
The rate holds per router process.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from orchestrator.core.errors import UsageError
from orchestrator.core.files import write_atomic
from orchestrator.core.ids import check_name, is_name, new_token
from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.exchange import Exchange

_log: Final = logging.getLogger(__name__)
_PREFIX: Final = "orc_"
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_CACHE: Final = 4096
_CACHED_BYTES: Final = 256
"""Blanks around a token are as many as its client likes; they are not kept."""
_MAX_FILE_BYTES: Final = 4 << 20
_OPEN: Final = (b"/v2/health/live", b"/v2/health/ready")
_CHALLENGE: Final = b'www-authenticate: Bearer realm="orchestrate"\r\n'


class Token:
    """One token's name and its bucket: `burst` requests at once, filled again at `rate_per_s`; infinite without a rate."""

    __slots__ = ("_level", "_since", "burst", "name", "rate_per_s")

    def __init__(self, name: str, rate_per_s: float = math.inf, burst: float = math.inf) -> None:
        self.name = name
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._level, self._since = burst, 0.0

    def take(self, now: float) -> float:
        """Take one request out of the bucket; returns 0, or the seconds to wait where it is empty."""
        if self.rate_per_s == math.inf:
            return 0.0
        self._level = min(self.burst, self._level + (now - self._since) * self.rate_per_s)
        self._since = now
        if self._level < 1:
            return (1 - self._level) / self.rate_per_s
        self._level -= 1
        return 0.0


class Guard:
    """The tokens of a file, read again when it changes.

    Attributes:
        gone: Whether the file has been deleted: nobody has a valid token until it is there again.

    Raises:
        UsageError: The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.gone = False
        self._state = _state(path)
        self._tokens = read_tokens(path)
        self._known: dict[bytes, Token] = {}

    def refresh(self, *, force: bool = False) -> None:
        """Read the file again where it has changed. While it is damaged, or others can write it, the tokens of before stay
        valid; once it is deleted none is.
        """
        state = _state(self._path)
        if state == self._state and not force:
            return
        self._state = state
        if state is None and _deleted(self._path):
            if not self.gone:
                _log.error("%s has been deleted: every token is refused until it is there again", self._path)
            self.gone, self._tokens, self._known = True, {}, {}
            return
        try:
            found = read_tokens(self._path)
        except UsageError as error:
            _log.error("the tokens stay as they were: %s", error)
            return
        for digest, token in found.items():
            old = self._tokens.get(digest)
            if old is not None and (old.name, old.rate_per_s, old.burst) == (token.name, token.rate_per_s, token.burst):
                found[digest] = old  # a bucket is not filled by a change elsewhere in the file
        self.gone, self._tokens, self._known = False, found, {}
        _log.info("%d tokens in %s", len(found), self._path)

    def __len__(self) -> int:
        """The number of tokens that are valid now."""
        return len(self._tokens)

    def __bool__(self) -> bool:
        """A guard without a token lets nobody in; it is a guard all the same."""
        return True

    def admit(self, authorization: bytes | None, now: float) -> Token:
        """Return the token of an `Authorization` header, one request taken from its bucket.

        Raises:
            RequestError: 401 without a valid token, 429 where its bucket is empty.
        """
        token = self.find(authorization)
        wait_s = token.take(now)
        if wait_s:
            text = f"token {token.name} may send {token.rate_per_s:g} requests a second"
            raise RequestError(text, status=429, kind="rate", retry_after_s=math.ceil(wait_s))
        return token

    def find(self, authorization: bytes | None) -> Token:
        """Return the token of an `Authorization` header.

        Raises:
            RequestError: 401.
        """
        if authorization is None:
            raise RequestError("a bearer token is needed: Authorization: Bearer ...", status=401, kind="unauthorized")
        token = self._known.get(authorization)
        if token is None:
            scheme, _, secret = authorization.strip().partition(b" ")
            # The lookup is by the hash: how long it takes says nothing about the token.
            digest = hashlib.sha256(secret.strip()).digest()
            token = self._tokens.get(digest) if scheme.lower() == b"bearer" else None
            if token is None:
                raise RequestError("the bearer token is not valid", status=401, kind="unauthorized")
            if len(self._known) < _CACHE and len(authorization) <= _CACHED_BYTES:
                self._known[authorization] = token
        return token

    def gate(self, handler: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
        """Return a handler that lets through to `handler` who has a token; health is open to all."""
        admit, clock = self.admit, time.monotonic

        def handle(exchange: Exchange) -> None:
            try:
                admit(exchange.headers.get(b"authorization"), clock())
            except RequestError as error:
                if exchange.target.partition(b"?")[0] in _OPEN:
                    handler(exchange)
                elif error.status == 401:
                    exchange.fail(401, error.message, _CHALLENGE)
                else:
                    exchange.refuse(error)
                return
            handler(exchange)

        return handle


def read_tokens(path: Path) -> dict[bytes, Token]:
    """Return the tokens of a file by their hashes.

    Raises:
        UsageError: It cannot be read, is no regular file, others can write it, or a line is none.
    """
    try:
        # Without O_NONBLOCK a FIFO would hold the router until somebody writes into it.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            _check_owner(os.fstat(file.fileno()), path)
            text = file.read(_MAX_FILE_BYTES + 1).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        hint = "`orchestrate endpoint token NAME` makes the file"
        raise UsageError(f"cannot read the tokens: {error}", place=str(path), hint=hint) from error
    found: dict[bytes, Token] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            digest, token = _parse(line.strip(), f"{path}:{number}")
            found[digest] = token
    return found


def add_token(path: Path, name: str, rate_per_s: float | None = None, burst: float | None = None) -> str:
    """Make a token, append its hash to the file (mode 0600), and return it: it is kept nowhere else.

    Raises:
        UsageError: The name is none or is taken, or the file cannot be used.
    """
    check_name(name, "token")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # another command may be adding one
        return _append(path, name, rate_per_s, burst)
    finally:
        os.close(folder)


def _append(path: Path, name: str, rate_per_s: float | None, burst: float | None) -> str:
    old = read_tokens(path) if path.exists() else {}
    if any(token.name == name for token in old.values()):
        raise UsageError(f"there is a token {name!r} in {path}", hint="remove its line, or choose another name")
    token = _PREFIX + new_token()
    limits = "".join(f":{value:g}" for value in (rate_per_s, burst) if value is not None)
    line = f"{name}:{hashlib.sha256(token.encode()).hexdigest()}{limits}"
    _parse(line, str(path))
    text = path.read_text(encoding="ascii") if path.exists() else ""
    gap = "\n" if text and not text.endswith("\n") else ""
    write_atomic(path, f"{text}{gap}{line}\n".encode(), mode=0o600)
    return token


def _parse(line: str, place: str) -> tuple[bytes, Token]:
    name, _, rest = line.partition(":")
    digest, *limits = rest.split(":")
    if not is_name(name) or not _HEX.fullmatch(digest) or len(limits) > 2:
        # The line is not shown: somebody may have put the token itself there.
        hint = "`orchestrate endpoint token NAME` writes such lines"
        raise UsageError("the line is not name:sha256[:rate_per_s[:burst]]", place=place, hint=hint)
    try:
        rate, burst = [float(text) for text in limits] + [math.inf] * (2 - len(limits))
    except ValueError:
        rate = math.nan
        burst = 1.0
    if not (rate > 0 and burst >= 1):
        raise UsageError(f"{name}: the rate must be over 0 a second, the burst at least 1", place=place)
    if rate != math.inf and burst == math.inf:
        burst = max(1.0, rate)
    return bytes.fromhex(digest), Token(name, rate, burst)


def _check_owner(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(
            "the tokens are in no regular file", place=str(path), hint="name a file, not a pipe or a device"
        )
    if found.st_mode & 0o022 or found.st_uid not in (0, os.geteuid()):
        mode = stat.S_IMODE(found.st_mode)
        raise UsageError(f"others could write tokens: mode {mode:o}", place=str(path), hint=f"chmod 600 {path}")


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _deleted(path: Path) -> bool:
    """Return whether the file is certainly not there; a folder that cannot be looked into says nothing."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
