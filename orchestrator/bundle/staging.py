"""How a folder becomes an artifact: checked, moved out of its maker's reach, made read-only and durable, described."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Final

from orchestrator.core import faults
from orchestrator.core.errors import UserCodeError
from orchestrator.core.files import regular_files, sync_folder
from orchestrator.core.ids import new_token
from orchestrator.core.manifest import MANIFEST_NAME, Manifest

_READ_ONLY: Final = 0o444
_NOT_MOVABLE: Final = {errno.EXDEV, errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS}


def check_committable(folder: Path) -> None:
    """Raise `UserCodeError` unless `folder` holds plain files only and leaves the manifest's name alone."""
    hint = "write plain files below the output folder; no links, no `manifest.json`"
    if folder.is_symlink() or not folder.is_dir():
        raise UserCodeError(f"the output folder {folder} is not there", hint=hint)
    try:
        names = [path.relative_to(folder).as_posix() for path in regular_files(folder)]
        "\n".join(names).encode()
    except ValueError as error:
        raise UserCodeError(f"cannot keep the output: {error}", place=str(folder), hint=hint) from error
    if MANIFEST_NAME in names:
        raise UserCodeError(f"the name {MANIFEST_NAME} is reserved", place=str(folder), hint=hint)


def take(folder: Path, stage: Path) -> None:
    """Move `folder` to `stage` in one rename, or copy it where that cannot be (other disk, other owner)."""
    if folder.stat().st_uid == os.geteuid():
        try:
            folder.rename(stage)
        except OSError as error:
            if error.errno not in _NOT_MOVABLE:
                raise
        else:
            return
    stage.mkdir()
    for path in regular_files(folder):
        target = stage / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target, follow_symlinks=False)


def seal(stage: Path, media_type: str) -> Manifest:
    """Make every file ours alone, read-only and durable, then write the manifest."""
    for path in list(regular_files(stage)):
        status = path.stat()
        if status.st_nlink > 1 or status.st_uid != os.geteuid():  # someone else could change these bytes later
            private = path.with_name(f".{new_token(8)}")
            shutil.copyfile(path, private)
            private.replace(path)
        path.chmod(_READ_ONLY)
        _sync_file(path)
    manifest = Manifest.of_folder(stage, media_type)
    for folder in [path for path in stage.rglob("*") if path.is_dir()]:
        sync_folder(folder)
    faults.point("store.commit.hashed")
    manifest.write(stage)
    (stage / MANIFEST_NAME).chmod(_READ_ONLY)
    return manifest


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
