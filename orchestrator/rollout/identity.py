"""Who approves, promotes or only looks: tokens by identity, of which a file holds only the hashes, and the roles of each.

One line a token: `id:sha256 hex of the token:role[,role...][:expiry]`, the expiry as `2027-01-31` (to its end, UTC) or
`2027-01-31T12:00:00Z`; empty lines and lines that begin with # say nothing. Two tokens may carry one id, so that one
replaces the other without a gap; they are the same person all the same. The file is private to its owner.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, cast, get_args

from orchestrator.core.errors import UsageError
from orchestrator.core.files import write_atomic
from orchestrator.core.ids import check_name, is_name, new_token
from orchestrator.core.redact import remember_secret

Role = Literal["observe", "promote", "approve", "admin"]
"""observe: look; promote: pause, resume, abort, roll back; approve: approve or reject; admin: all of it."""

ROLES: Final[tuple[Role, ...]] = get_args(Role)
TOKEN_VARIABLE: Final = "ORCHESTRATE_TOKEN"  # noqa: S105  # the name of a variable
_PREFIX: Final = "oro_"
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}|\d{8}|\d{4}-?W\d{2}(-?\d)?")
"""What `datetime.fromisoformat` takes for a day without a time."""
_MAX_FILE_BYTES: Final = 1 << 20
_MAX_TOKEN: Final = 512
_TOKENS_PER_ID: Final = 2
# A message must not begin with a word of six letters: after "my.token: " it would be taken for a secret, and masked.
_HINT: Final = "`orchestrate rollout token ID --role approve` writes such lines"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is, shown by a token; `id` is what the ledger records."""

    id: str
    roles: frozenset[Role]

    def may(self, role: Role) -> bool:
        """Tell whether this identity has a role; who has any may observe, and `admin` has all."""
        return role == "observe" or role in self.roles or "admin" in self.roles

    def require(self, role: Role) -> Identity:
        """Return self.

        Raises:
            UsageError: This identity lacks the role.
        """
        if not self.may(role):
            has = ", ".join(sorted(self.roles))
            raise UsageError(f"{self.id} may not {role} (roles: {has})", hint=f"ask for a token with the role {role}")
        return self


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes
    identity: Identity
    expires_at: float | None


def digest_of(token: str) -> bytes:
    """Return what is kept of a token."""
    return hashlib.sha256(token.strip()[:_MAX_TOKEN].encode(errors="backslashreplace")).digest()


class Identities:
    """The identities of a file, read again when it changes; while it cannot be used, nobody is anybody.

    Raises:
        UsageError: The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = _state(path)
        self._entries = _read(path)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def identify(self, token: str) -> Identity:
        """Return who a token stands for.

        Raises:
            UsageError: The token is unknown or has expired, or the file cannot be used any more.
        """
        self._refresh()
        digest, found = digest_of(token), None
        for entry in self._entries:  # all of them, each in constant time: how long it takes says nothing
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        if found is None:
            raise UsageError("the token is not valid", hint=f"it must be one whose hash stands in {self._path}")
        if found.expires_at is not None and time.time() >= found.expires_at:
            raise UsageError(f"the token of {found.identity.id} has expired", hint=_HINT)
        return found.identity

    def still(self, identity: Identity, digest: bytes) -> bool:
        """Tell whether the token that showed an identity, by its digest, is still valid and has the same roles."""
        try:
            self._refresh()
        except UsageError:
            return False
        now = time.time()
        return any(
            e.identity == identity and e.digest == digest and (e.expires_at is None or now < e.expires_at)
            for e in self._entries
        )

    def _refresh(self) -> None:
        state = _state(self._path)
        if state != self._state or state is None:
            self._entries, self._state = (), None
            self._entries = _read(self._path)
            self._state = state


def given_token(file: Path | None) -> str:
    """Return the token that somebody shows: of a private file, else of `ORCHESTRATE_TOKEN`; never of the command line.

    Raises:
        UsageError: There is none, or others can read the file.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip() if file is None else _private_text(file).strip()
    if not token:
        where = f"{file} is empty" if file is not None else f"neither a token file nor {TOKEN_VARIABLE} is given"
        raise UsageError(f"there is no token, {where}", hint="name the file of your token with --token-file")
    remember_secret(token)
    return token


def add_identity(path: Path, name: str, roles: Sequence[str], lasts_s: float | None = None) -> str:
    """Make a token, append its hash to the file (mode 0600), and return it: it is kept nowhere else.

    Args:
        path: The site's file of approvers.
        name: Whose token it is; one who has a token may get a second, to replace the first.
        roles: Of `ROLES`.
        lasts_s: Seconds until it expires; None = never.

    Raises:
        UsageError: The name or a role is none, both tokens of the id are there, or the file cannot be used.
    """
    check_name(name, "identity")
    wanted = _roles(roles, "--role")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # another command may be adding one
        return _append(path, name, wanted, lasts_s)
    finally:
        os.close(folder)


def _append(path: Path, name: str, roles: Iterable[Role], lasts_s: float | None) -> str:
    text = _private_text(path) if path.exists() else ""
    if sum(entry.identity.id == name for entry in _parse(text, path)) >= _TOKENS_PER_ID:
        raise UsageError(f"{name} has two tokens in {path}", hint="remove the line of the older one first")
    token = _PREFIX + new_token()
    line = f"{name}:{hashlib.sha256(token.encode()).hexdigest()}:{','.join(sorted(roles))}"
    if lasts_s is not None:
        line += ":" + (datetime.now(UTC) + timedelta(seconds=lasts_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
    gap = "\n" if text and not text.endswith("\n") else ""
    write_atomic(path, f"{text}{gap}{line}\n".encode(), mode=0o600)
    remember_secret(token)
    return token


def _read(path: Path) -> tuple[_Entry, ...]:
    return _parse(_private_text(path), path)


def _parse(text: str, path: Path) -> tuple[_Entry, ...]:
    found: dict[bytes, _Entry] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            entry = _entry(line.strip(), f"{path}:{number}")
            if entry.digest in found:
                raise UsageError("the same token stands for two identities", place=f"{path}:{number}", hint=_HINT)
            found[entry.digest] = entry
    return tuple(found.values())


def _entry(line: str, place: str) -> _Entry:
    name, digest, roles, expiry = [*line.split(":", 3), "", "", ""][:4]
    if not is_name(name) or not _HEX.fullmatch(digest):
        # The line is not shown: somebody may have put the token itself there.
        raise UsageError("the line is not id:sha256:role[,role...][:expiry]", place=place, hint=_HINT)
    return _Entry(bytes.fromhex(digest), Identity(name, _roles(roles.split(","), place)), _expiry(expiry, place))


def _roles(texts: Iterable[str], place: str) -> frozenset[Role]:
    found = {text.strip() for text in texts if text.strip()}
    wrong = sorted(found - set(ROLES))
    if wrong or not found:
        what = f"{wrong[0]!r} is no role" if wrong else "no role is given"
        raise UsageError(what, place=place, hint=f"roles: {', '.join(ROLES)}")
    return frozenset(cast("set[Role]", found))


def _expiry(text: str, place: str) -> float | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        hint = "write 2027-01-31 or 2027-01-31T12:00:00Z"
        raise UsageError(f"{text[:40]!r} is no time", place=place, hint=hint) from error
    if _DAY.fullmatch(text):
        found += timedelta(days=1)
    return found.replace(tzinfo=found.tzinfo or UTC).timestamp()


def _private_text(path: Path) -> str:
    """Read a small file that its owner alone can read and write."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UsageError("the tokens are in no regular file", place=str(path))
            if found.st_mode & 0o077 or found.st_uid not in (0, os.geteuid()):
                mode = stat.S_IMODE(found.st_mode)
                raise UsageError(
                    f"the file can be used by others: mode {mode:o}", place=str(path), hint=f"chmod 600 {path}"
                )
            return file.read(_MAX_FILE_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the tokens cannot be read: {error}", place=str(path), hint=_HINT) from error


def _state(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode
