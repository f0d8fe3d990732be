"""Reading the end of a file that another process appends to, and along it."""

from __future__ import annotations

import os
from pathlib import Path


class LineTail:
    """Gives the whole lines that were appended since the last call; a torn last line waits for its rest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[bytes]:
        """Return the new lines; none while the file does not exist."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self._offset += end
        return data[:end].splitlines()


def last_text(path: Path, size_bytes: int) -> str:
    """Return the last bytes of a file as text; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size_bytes))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
