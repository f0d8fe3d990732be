"""The artifact store: a folder, content-addressed, read-only once committed.

    <root>/artifacts/<hex[:2]>/<hex>/...   an artifact: its files (0444) and, written last, `manifest.json`
    <root>/results/<hex>.json              the completion manifest of a step, by fingerprint
    <root>/temp/<random>/                  work in progress; whatever a crash leaves is garbage that `gc` removes

An artifact appears by one rename, so it is whole or absent. The store never trusts a folder because it exists.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

from orchestrator.bundle.staging import check_committable, seal, take
from orchestrator.core import faults
from orchestrator.core.digests import hex_of, sha256_json
from orchestrator.core.errors import IntegrityError, StoreError
from orchestrator.core.files import sync_folder, write_json
from orchestrator.core.ids import new_token
from orchestrator.core.manifest import MANIFEST_NAME, Manifest

_DIGESTS_IN_TEXT: Final = re.compile(r"sha256:[0-9a-f]{64}")
_TAKEN: Final = {errno.ENOTEMPTY, errno.EEXIST}


@dataclass(frozen=True, slots=True)
class Removed:
    """One thing that `gc` took away; `name` is a digest, a fingerprint or a temp folder's name."""

    kind: Literal["artifact", "result", "temp"]
    name: str
    size_bytes: int


class Store:
    """A content-addressed folder of artifacts and of step results.

    Args:
        root: The store's folder; made on first use.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._verified: set[str] = set()

    def commit(self, folder: Path, media_type: str) -> Manifest:
        """Take the files of `folder` into the store and return their manifest.

        The folder is consumed: it is moved where the file system allows, copied otherwise. Committing the same content
        again changes nothing, except that a damaged copy is replaced by the good one.

        Raises:
            UserCodeError: The folder is absent, holds a link or special file, or uses the reserved name `manifest.json`.
            StoreError: The disk refused.
        """
        check_committable(folder)
        with _disk_errors(self.root):
            stage = self._temp()
            take(folder, stage)
            faults.point("store.commit.taken")
            try:
                manifest = seal(stage, media_type)
                faults.point("store.commit.sealed")
                self._publish(stage, manifest)
                faults.point("store.commit.published")
            finally:
                shutil.rmtree(stage, ignore_errors=True)
        self._verified.add(manifest.digest)
        return manifest

    def path(self, digest: str) -> Path:
        """Return the folder of an artifact whose content this object has verified at least once.

        Raises:
            StoreError: It is not in the store.
            IntegrityError: It is damaged.
        """
        self.verify(digest, content=digest not in self._verified)
        return self._folder(digest)

    def verify(self, digest: str, *, content: bool = False) -> Manifest:
        """Check names and sizes, and with `content` also every byte; return the manifest.

        Raises:
            StoreError: It is not in the store.
            IntegrityError: It is damaged, or its manifest is that of another artifact.
        """
        folder = self._folder(digest)
        if not folder.is_dir():
            raise StoreError(
                f"artifact {digest} is not in the store",
                place=str(self.root),
                hint="run the execution again to make it, or point `store` at the folder that has it",
            )
        manifest = Manifest.read(folder)
        if manifest.digest != digest:
            raise IntegrityError(
                f"the folder of {digest} holds {manifest.digest}",
                place=str(folder),
                hint="remove the folder and run again",
            )
        manifest.verify(folder, content=content)
        if content:
            self._verified.add(digest)
        return manifest

    def has(self, digest: str) -> bool:
        """Tell whether the artifact is there, complete by names and sizes."""
        try:
            self.verify(digest)
        except (StoreError, IntegrityError):
            return False
        return True

    def put_result(self, fingerprint: str, result: Mapping[str, object]) -> None:
        """Remember what a step with this fingerprint gave: its completion manifest, atomic and last.

        Raises:
            StoreError: The disk refused, or `result` is not JSON (NaN included).
        """
        try:
            body = {"fingerprint": fingerprint, "result": dict(result)}
            record = {**body, "digest": sha256_json(body)}
        except (TypeError, ValueError) as error:
            raise StoreError(f"the result of {fingerprint} is not JSON: {error}", place=str(self.root)) from error
        faults.point("store.result.before")
        with _disk_errors(self.root):
            write_json(self._result(fingerprint), record)
        faults.point("store.result.after")

    def result(self, fingerprint: str) -> dict[str, object] | None:
        """Return the remembered result, or None; a damaged record is removed and counts as none."""
        path = self._result(fingerprint)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error}", hint="check the store's permissions") from error
        try:
            record = cast("dict[str, object]", json.loads(text))
            body = {"fingerprint": fingerprint, "result": record["result"]}
            sound = record["digest"] == sha256_json(body) and isinstance(record["result"], dict)
        except (ValueError, KeyError, TypeError, RecursionError):
            sound, record = False, {}
        if not sound:
            path.unlink(missing_ok=True)
            return None
        return cast("dict[str, object]", record["result"])

    def drop_result(self, fingerprint: str) -> None:
        """Forget a result; nothing happens where there is none."""
        self._result(fingerprint).unlink(missing_ok=True)

    def gc(self, keep: Collection[str], older_than_s: float, *, remove: bool = True) -> list[Removed]:
        """Remove artifacts outside `keep`, results that name them, and temp garbage, each older than `older_than_s`.

        With `remove=False` nothing is touched: the list says what would go.
        The age of an artifact counts from its last commit, so that a running execution loses nothing it just made.
        """
        before, kept, removed = time.time() - older_than_s, set(keep), list[Removed]()
        for folder in sorted((self.root / "artifacts").glob("??/*")):
            digest = f"sha256:{folder.name}"
            if digest not in kept and _age_mark(folder) <= before:
                removed.append(Removed("artifact", digest, self._remove(folder) if remove else _size_bytes(folder)))
                self._verified.discard(digest)
        gone = {item.name for item in removed}
        for path in sorted((self.root / "results").glob("*.json")):
            if gone & set(_DIGESTS_IN_TEXT.findall(path.read_text(errors="replace"))):
                removed.append(Removed("result", f"sha256:{path.stem}", path.stat().st_size))
                if remove:
                    path.unlink(missing_ok=True)
        for folder in sorted((self.root / "temp").glob("*")):
            if folder.lstat().st_mtime <= before:
                removed.append(Removed("temp", folder.name, _size_bytes(folder)))
                if remove:
                    shutil.rmtree(folder, ignore_errors=True)
        return removed

    def _publish(self, stage: Path, manifest: Manifest) -> None:
        final = self._folder(manifest.digest)
        final.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            if self._sound(manifest.digest):
                os.utime(final / MANIFEST_NAME)
                return
            if final.exists():
                self._remove(final)
            try:
                stage.rename(final)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                continue  # another process published in between: look at what it left
            sync_folder(final.parent)
            return
        raise StoreError(f"artifact {manifest.digest} keeps changing under us", place=str(final), hint="try again")

    def _sound(self, digest: str) -> bool:
        try:
            self.verify(digest, content=True)
        except (StoreError, IntegrityError):
            return False
        return True

    def _remove(self, folder: Path) -> int:
        """Take an artifact out of sight in one rename, then delete it; returns its bytes."""
        size_bytes = _size_bytes(folder)
        aside = self._temp()
        folder.rename(aside)
        faults.point("store.gc.aside")
        shutil.rmtree(aside, ignore_errors=True)
        return size_bytes

    def _temp(self) -> Path:
        temp = self.root / "temp"
        temp.mkdir(parents=True, exist_ok=True)
        return temp / new_token(8)

    def _folder(self, digest: str) -> Path:
        name = _hex(digest)
        return self.root / "artifacts" / name[:2] / name

    def _result(self, fingerprint: str) -> Path:
        return self.root / "results" / f"{_hex(fingerprint)}.json"


def _hex(digest: str) -> str:
    try:
        return hex_of(digest)
    except ValueError as error:
        raise StoreError(str(error), hint="use the form sha256:<64 hex digits>") from error


def _age_mark(folder: Path) -> float:
    try:
        return (folder / MANIFEST_NAME).lstat().st_mtime
    except OSError:
        return folder.lstat().st_mtime


def _size_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


@contextmanager
def _disk_errors(root: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the store cannot be written: {error}",
            place=str(root),
            hint="check free space and permissions of the store",
        ) from error
