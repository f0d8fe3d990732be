"""Room for models on a slot: what they hold, what a new one may need, and the proof that a model was loaded and checked once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import orjson

from orchestrator.core.files import private_folder, write_json
from orchestrator.serving.link.wire import Placement
from orchestrator.serving.runtimes.headroom import free_bytes

_BASE_BYTES: Final = 64 << 20
"""Of a process that has not been measured yet, besides the model's files."""
_MARGIN_BYTES: Final = 256 << 20
"""What a slot without a limit leaves free on its device, or its host."""


class Proofs:
    """Which builds have been loaded and checked on this host, and what they took; agents of one pool share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, placement: Placement) -> int | None:
        """Return how many bytes the build took; None where it has not been proven."""
        try:
            row = orjson.loads(self._path(placement).read_bytes())
            return int(row["memory_bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, placement: Placement, memory_bytes: int) -> None:
        """Keep that the build has been loaded and checked."""
        private_folder(self._folder)
        write_json(self._path(placement), {"bundle": placement.bundle, "memory_bytes": memory_bytes}, mode=0o600)

    def _path(self, placement: Placement) -> Path:
        text = "\0".join((*placement.build, placement.runtime, placement.device))
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def folder_bytes(folders: Iterable[str]) -> int:
    """Return what a model may need that was never loaded: its files, and a process for each part."""
    found = 0
    for folder in folders:
        found += _BASE_BYTES
        with contextlib.suppress(OSError):  # the replica says what is wrong with its files
            found += sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return found


def room(limit_bytes: int, held_bytes: int, free: int | None = None) -> float:
    """Return how many bytes a model may still take: within the slot's limit, else of what its device, or its host, has free."""
    if limit_bytes:
        return limit_bytes - held_bytes
    return (free_bytes() if free is None else free) - _MARGIN_BYTES


def no_room(need_bytes: int, limit_bytes: int, held_bytes: int, free: int | None = None) -> str:
    """Return why a model can never be loaded."""
    if limit_bytes:
        rest = f"the slot's models may take {limit_bytes >> 20} MiB, {held_bytes >> 20} MiB of it are pinned"
    elif free is not None:
        rest = f"the device has {free >> 20} MiB free, and no model can be unloaded"
    else:
        rest = f"the host has {int(free_bytes()) >> 20} MiB free, and no model can be unloaded"
    return f"the model needs {need_bytes >> 20} MiB of memory; {rest}"
