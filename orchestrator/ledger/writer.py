"""Who holds a SQLite ledger for writing. Read from the kernel's list of locks: nothing is opened, so that no lock of ours is lost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.core.redact import redact_text

_LOCKS: Final = Path("/proc/locks")
_WRITE_LOCK: Final = 120
"""Byte of the `-shm` file that the one writer of a database in WAL mode has locked (https://sqlite.org/walformat.html, 2.3.1)."""
_MOST: Final = 200
"""Characters of a command that are shown."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A process in the middle of a write transaction.

    Attributes:
        stopped: By a signal or a debugger: it does not go on by itself.
    """

    pid: int
    command: str
    stopped: bool

    def to_json(self) -> dict[str, Any]:
        """Return it, JSON-ready."""
        return asdict(self)

    @property
    def text(self) -> str:
        """What people are told."""
        return f"process {self.pid} ({self.command})" + (" is stopped and" if self.stopped else "")

    @property
    def hint(self) -> str:
        """What they can do; a writer that is killed leaves nothing half done."""
        if self.stopped:
            return (
                f"let it go on (kill -CONT {self.pid}) or end it (kill -9 {self.pid}: what it had begun is undone), "
                "then repeat the command; nothing was written"
            )
        return f"look at process {self.pid}; end it if it hangs (what it had begun is undone), then repeat the command"


def writer_of(database: Path) -> Writer | None:
    """Return who writes to a SQLite database; None when nobody does, or it is not to be seen from here (another machine)."""
    try:
        file = Path(f"{database}-shm").stat().st_ino
        rows = _LOCKS.read_text().splitlines()
    except OSError:
        return None
    for row in rows:
        fields = (
            row.split()
        )  # 1: POSIX ADVISORY WRITE 12747 fe:00:2384135 120 120; waiters have an arrow after the number
        if len(fields) != 8 or fields[1] != "POSIX" or fields[3] != "WRITE" or not fields[5].endswith(f":{file}"):
            continue
        last = _WRITE_LOCK if fields[7] == "EOF" else int(fields[7])
        if int(fields[6]) <= _WRITE_LOCK <= last and int(fields[4]) > 0:
            return _writer(int(fields[4]))
    return None


def _writer(pid: int) -> Writer | None:
    folder = Path(f"/proc/{pid}")
    try:
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
    except OSError:
        return None
    command = " ".join(" ".join(words).split())
    return Writer(pid, redact_text(command)[:_MOST], state in {"T", "t"})
