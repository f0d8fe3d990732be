"""Checkpoints of a training: folders that are whole or absent, one writer at a time, the last few kept.

    <root>/epoch-000012/{model.safetensors, optimizer.safetensors, state.json, manifest.json}

A checkpoint is written into a temporary folder, flushed, described by a manifest, and then renamed; the rename is the
commit. Whatever was torn before it is garbage that the next writer removes. A reader takes the newest folder whose
manifest verifies byte for byte, so that a damaged checkpoint costs one epoch, not the training.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from orchestrator.core import faults
from orchestrator.core.errors import InfraError, IntegrityError
from orchestrator.core.files import sync_folder
from orchestrator.core.ids import new_token
from orchestrator.core.manifest import Manifest
from orchestrator.steps.api import CHECKPOINT

MODEL_FILE: Final = "model.safetensors"
OPTIMIZER_FILE: Final = "optimizer.safetensors"
STATE_FILE: Final = "state.json"
LOCK_FILE: Final = "train.lock"

_NAME: Final = re.compile(r"epoch-(\d{6,})")
_TEMP: Final = ".writing-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One complete checkpoint; `epoch` is the epoch (from 0) after which it was taken."""

    epoch: int
    folder: Path


class Checkpoints:
    """The checkpoints below one folder.

    Args:
        root: The folder; made when absent.
        keep: How many complete checkpoints stay; at least 1.
    """

    def __init__(self, root: Path, keep: int = 2) -> None:
        self.root = root
        self._keep = max(keep, 1)
        root.mkdir(parents=True, exist_ok=True)

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that verifies, or None; damaged ones are passed over."""
        for found in reversed(self._all()):
            try:
                Manifest.read(found.folder).verify(found.folder)
            except (IntegrityError, OSError):
                continue
            return found
        return None

    def of_epoch(self, epoch: int) -> Checkpoint:
        """Return the checkpoint of one epoch, unverified."""
        return Checkpoint(epoch, self.root / f"epoch-{epoch:06d}")

    def commit(self, epoch: int, write: Callable[[Path], None]) -> Checkpoint:
        """Let `write` fill a folder, then make it the checkpoint of `epoch`; older ones beyond `keep` go.

        Guarantees: after a crash at any moment there is either the whole checkpoint or none of it.
        """
        target = self.of_epoch(epoch)
        temp = self.root / f"{_TEMP}{epoch:06d}-{new_token(4)}"
        temp.mkdir()
        try:
            write(temp)
            for path in temp.iterdir():
                _sync_file(path)
            faults.point("train.checkpoint.before_manifest")
            Manifest.of_folder(temp, CHECKPOINT).write(temp)
            faults.point("train.checkpoint.before_commit")
            # Only a damaged checkpoint can stand there: a complete one would have been restored, and its epoch skipped.
            shutil.rmtree(target.folder, ignore_errors=True)
            temp.rename(target.folder)
        finally:
            shutil.rmtree(temp, ignore_errors=True)
        sync_folder(self.root)
        faults.point("train.checkpoint.after_commit")
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old.folder, ignore_errors=True)
        return target

    def clear_torn(self) -> None:
        """Remove what a killed writer left; only for the holder of the lock."""
        for path in self.root.glob(f"{_TEMP}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _all(self) -> list[Checkpoint]:
        matches = ((path, _NAME.fullmatch(path.name)) for path in self.root.iterdir())
        return sorted((Checkpoint(int(match[1]), path) for path, match in matches if match), key=lambda c: c.epoch)


def lock_exclusively(path: Path, *, wait_s: float = 60.0) -> IO[str]:
    """Hold `path` as a lock until the returned file is closed or this process ends.

    A record lock (`fcntl.lockf`), because it is not inherited by forked data loaders: when the trainer dies, the lock
    is free at once.

    Raises:
        InfraError: Another process still holds it after `wait_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() > deadline:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                file.close()
                raise InfraError(
                    f"another trainer (process {holder}) still writes these checkpoints after {wait_s:.0f} s",
                    place=str(path),
                    hint="an older execution of the same training is still running; end it, then run again",
                ) from error
            time.sleep(0.05)
        else:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            return file


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
