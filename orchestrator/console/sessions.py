"""Who is signed in: sessions in memory, so that a restart of the console signs everybody out."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from orchestrator.core.errors import UsageError
from orchestrator.core.ids import new_token
from orchestrator.rollout.identity import Identities, Identity, digest_of

LASTS_S: Final = 8 * 3600.0
IDLE_S: Final = 3600.0
_MOST: Final = 256
_FAILURES: Final = 10
_FAILURES_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Flash:
    """What the last button did, shown once."""

    kind: Literal["done", "failed"]
    text: str


@dataclass(slots=True)
class Session:
    """One browser that has shown a token.

    Attributes:
        csrf: Stands in each form of this session, and in no other.
        shown: Digest of the token: the session ends with it, though the identity has another one by then.
        began: When, on the monotonic clock.
        seen: When it asked last.
    """

    identity: Identity
    shown: bytes
    began: float
    seen: float
    csrf: str = field(default_factory=new_token)
    flash: Flash | None = None

    def take_flash(self) -> Flash | None:
        """Return what there is to say, once."""
        found, self.flash = self.flash, None
        return found

    def same_form(self, csrf: str) -> bool:
        """Tell whether a form came from a page of this session."""
        return hmac.compare_digest(self.csrf.encode(), csrf.encode(errors="backslashreplace"))


class Sessions:
    """The sessions of a console; a session ends with its token.

    Args:
        identities: Who may sign in; None = nobody.
        clock: Seconds, never backwards.
    """

    def __init__(self, identities: Identities | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._identities = identities
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._failed: list[float] = []

    @property
    def open(self) -> bool:
        """Whether anybody can sign in at all."""
        return self._identities is not None

    def blocked(self) -> bool:
        """Tell whether too many wrong tokens came in the last minute."""
        with self._lock:
            self._failed = [at for at in self._failed if at > self._clock() - _FAILURES_S]
            return len(self._failed) >= _FAILURES

    def sign_in(self, token: str) -> str:
        """Return the key of a new session, for the cookie.

        Raises:
            UsageError: The token is not valid.
        """
        if self._identities is None:
            raise UsageError("nobody can sign in: the console has no file of tokens")
        now = self._clock()
        try:
            identity = self._identities.identify(token)
        except UsageError:
            with self._lock:
                self._failed.append(now)
            raise
        key = new_token()
        with self._lock:
            if len(self._sessions) >= _MOST:
                del self._sessions[min(self._sessions, key=lambda k: self._sessions[k].seen)]
            self._sessions[key] = Session(identity, digest_of(token), now, now)
        return key

    def find(self, key: str | None) -> Session | None:
        """Return the session of a cookie; None when it has ended, or its token is no longer valid."""
        if not key or self._identities is None:
            return None
        now = self._clock()
        with self._lock:
            session = self._sessions.get(key)
        if session is None:
            return None
        late = now - session.began > LASTS_S or now - session.seen > IDLE_S
        if late or not self._identities.still(session.identity, session.shown):
            self.sign_out(key)
            return None
        session.seen = now
        return session

    def sign_out(self, key: str | None) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(key or "", None)
