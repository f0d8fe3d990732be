"""Who of those that share a process was at work when it died: a few bytes that the process shares with its agent."""

from __future__ import annotations

import mmap
import os
import signal
import struct
from collections.abc import Collection
from typing import Final

MEMBERS: Final = 4096
"""Most models of one process."""
_ALARM: Final = struct.Struct("<I")
_SIZE: Final = _ALARM.size + MEMBERS
IDLE, HOLDS, RUNS = 0, 1, 2
"""Of a member: nothing; a batch on the device; the interpreter is in its code now."""


class Blame:
    """The record. The process writes, the agent reads it when the process has ended.

    Args:
        file: Descriptor of the memory, see `make`; this object does not close it.
    """

    def __init__(self, file: int) -> None:
        self._map = mmap.mmap(file, _SIZE)

    @staticmethod
    def make() -> int:
        """Return the descriptor of a new record, all idle."""
        file = os.memfd_create("orchestrate-blame")
        os.ftruncate(file, _SIZE)
        return file

    def note(self, member: int, what: int) -> None:
        """Write what a member does: `IDLE`, `HOLDS` or `RUNS`."""
        self._map[_ALARM.size + member] = what

    def alarm(self, member: int) -> None:
        """The alarm is set for this member."""
        _ALARM.pack_into(self._map, 0, member + 1)

    def suspects(self, code: int, members: Collection[int]) -> set[int]:
        """Return who may have ended the process: whose alarm rang, else who ran, else who had a batch on the device.

        Args:
            code: The process's exit code, a signal's number negative.
            members: Who was in it.
        """
        (armed,) = _ALARM.unpack_from(self._map, 0)
        if code == -signal.SIGALRM and armed - 1 in members:
            return {armed - 1}
        runs = {member for member in members if self._of(member) == RUNS}
        return runs or {member for member in members if self._of(member) == HOLDS}

    def _of(self, member: int) -> int:
        return self._map[_ALARM.size + member]
