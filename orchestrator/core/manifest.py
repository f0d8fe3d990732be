"""Manifests: what an artifact consists of, and the check that it still does.

`{media_type, files: [{path, size_bytes, sha256}], digest}`; `digest` is the sha256 of the canonical JSON without it.
A manifest is written last; a folder without one does not exist.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, cast

from orchestrator.core.digests import Digest, is_digest, sha256_file, sha256_json
from orchestrator.core.errors import IntegrityError
from orchestrator.core.files import regular_files, write_json

MANIFEST_NAME: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: POSIX path relative to the artifact's folder, size in bytes, digest of its content."""

    path: str
    size_bytes: int
    sha256: Digest


@dataclass(frozen=True, slots=True)
class Manifest:
    """An artifact's content."""

    media_type: str
    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> Digest:
        """The artifact's name."""
        return sha256_json(self._body())

    @property
    def size_bytes(self) -> int:
        """Sum over all files."""
        return sum(file.size_bytes for file in self.files)

    def _body(self) -> dict[str, object]:
        files = [{"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in self.files]
        return {"media_type": self.media_type, "files": files}

    def to_json(self) -> dict[str, object]:
        """Return the form that is stored."""
        return {**self._body(), "digest": self.digest}

    @classmethod
    def of_folder(cls, folder: Path, media_type: str) -> Manifest:
        """Describe every regular file below `folder` but its own manifest."""
        files = [
            FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path))
            for path in regular_files(folder)
            if path.relative_to(folder).as_posix() != MANIFEST_NAME
        ]
        return cls(media_type, tuple(sorted(files, key=lambda f: f.path)))

    @classmethod
    def from_json(cls, data: Mapping[str, object], *, place: str = "") -> Manifest:
        """Parse the stored form.

        Raises:
            IntegrityError: A field is missing or unsafe, or the digest does not match.
        """
        try:
            entries = cast("list[Mapping[str, object]]", data["files"])
            files = tuple(_entry(entry) for entry in entries)
            manifest = cls(str(data["media_type"]), files)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"damaged manifest: {error}", place=place, hint="fetch the artifact again") from error
        if manifest.digest != data.get("digest"):
            raise IntegrityError(
                f"the manifest says digest {data.get('digest')} but its content gives {manifest.digest}",
                place=place,
                hint="fetch the artifact again",
            )
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of an artifact's folder.

        Raises:
            IntegrityError: It is absent or damaged.
        """
        path = folder / MANIFEST_NAME
        try:
            data = cast("Mapping[str, object]", json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise IntegrityError(f"no readable manifest: {error}", place=str(path)) from error
        return cls.from_json(data, place=str(path))

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`, as the last file."""
        write_json(folder / MANIFEST_NAME, self.to_json())

    def verify(self, folder: Path, *, content: bool = True) -> None:
        """Check that `folder` holds exactly these files; `content=False` checks names and sizes alone.

        Raises:
            IntegrityError: A file is missing, extra, of another size or of another content.
        """
        try:
            present = {path.relative_to(folder).as_posix() for path in regular_files(folder)} - {MANIFEST_NAME}
        except (OSError, ValueError) as error:
            raise IntegrityError(str(error), place=str(folder)) from error
        expected = {file.path for file in self.files}
        if present != expected:
            missing, extra = sorted(expected - present), sorted(present - expected)
            raise IntegrityError(f"missing files {missing}, unexpected files {extra}", place=str(folder))
        for file in self.files:
            _verify_file(folder / file.path, file, content=content)


def _entry(data: Mapping[str, object]) -> FileEntry:
    path, size, digest = data["path"], data["size_bytes"], data["sha256"]
    if not isinstance(path, str) or not isinstance(size, int) or not isinstance(digest, str) or not is_digest(digest):
        raise ValueError(f"bad file entry {dict(data)}")
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or str(pure) != path:
        raise ValueError(f"unsafe path {path!r}")
    return FileEntry(path, size, Digest(digest))


def _verify_file(path: Path, expected: FileEntry, *, content: bool) -> None:
    size = path.stat().st_size
    if size != expected.size_bytes:
        raise IntegrityError(f"{expected.path} has {size} bytes, expected {expected.size_bytes}", place=str(path))
    if not content:
        return
    found = sha256_file(path)
    if found != expected.sha256:
        raise IntegrityError(f"{expected.path} has content {found}, expected {expected.sha256}", place=str(path))
