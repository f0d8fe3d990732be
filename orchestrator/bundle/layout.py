"""Reading an OCI image layout that may be hostile: by digest, without following links, never outside its folder.

Every byte that leaves this module was hashed. `index.json` is only a pointer: a bundle is named by the digest of its manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, cast

from orchestrator.core.digests import hex_of, is_digest
from orchestrator.core.errors import IntegrityError

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
MODEL_MANIFEST: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
WEIGHT: Final = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG: Final = "application/vnd.cncf.model.weight.config.v1.raw"
DATASET: Final = "application/vnd.cncf.model.dataset.v1.raw"
DOC: Final = "application/vnd.cncf.model.doc.v1.raw"
CODE: Final = "application/vnd.cncf.model.code.v1.raw"
FILEPATH: Final = "org.cncf.model.filepath"
LAYOUT_FILE: Final = {"imageLayoutVersion": "1.0.0"}

_SMALL_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_PIECE_BYTES: Final = 1 << 20
_HINT: Final = "fetch the bundle again; if it stays so, it was changed on the way"


@dataclass(frozen=True, slots=True)
class BundleLimits:
    """Caps on what is read."""

    index_size_bytes: int = 1 << 20
    manifest_size_bytes: int = 4 << 20
    layers: int = 10_000
    layer_size_bytes: int = 256 << 30
    total_size_bytes: int = 512 << 30


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob: media type, digest, size in bytes."""

    media_type: str
    digest: str
    size_bytes: int


def damaged(what: str, place: str | Path = "") -> IntegrityError:
    """Return the error for a layout that is not what it says."""
    return IntegrityError(what, place=str(place), hint=_HINT)


class LayoutReader:
    """Reads from an open layout; use `open_layout`."""

    def __init__(self, path: Path, root: int, blobs: int) -> None:
        self.path = path
        self._root = root
        self._blobs = blobs

    def top(self, name: Literal["oci-layout", "index.json"], limit_bytes: int) -> bytes:
        """Return a small file at the top of the layout."""
        with self._open(name, self._root, None) as handle:
            if os.fstat(handle).st_size > limit_bytes:
                raise damaged(f"{name} has more than {limit_bytes} bytes", self.path)
            return os.read(handle, limit_bytes)

    def small(self, blob: Descriptor, limit_bytes: int) -> bytes:
        """Return a small blob, verified."""
        if blob.size_bytes > limit_bytes:
            raise damaged(f"blob {blob.digest} declares {blob.size_bytes} bytes, at most {limit_bytes}", self.path)
        return b"".join(self.pieces(blob))

    def size(self, digest: str) -> int:
        """Return the size of a blob's file."""
        with self._open(hex_of(digest), self._blobs, None) as handle:
            return os.fstat(handle).st_size

    def pieces(self, blob: Descriptor) -> Generator[bytes]:
        """Yield a blob's bytes; raises after the last piece when the digest is wrong, so use nothing before the end."""
        state, left = hashlib.sha256(), blob.size_bytes
        with self._open(hex_of(blob.digest), self._blobs, blob.size_bytes) as handle:
            while left and (piece := os.read(handle, min(left, _PIECE_BYTES))):
                state.update(piece)
                left -= len(piece)
                yield piece
            if left or os.read(handle, 1):
                raise damaged(f"blob {blob.digest} changed its size while it was read", self.path)
        found = "sha256:" + state.hexdigest()
        if found != blob.digest:
            raise damaged(f"blob {blob.digest} has content {found}", self.path)

    @contextmanager
    def _open(self, name: str, folder: int, size_bytes: int | None) -> Generator[int]:
        try:
            handle = os.open(name, _SMALL_FLAGS, dir_fd=folder)
        except OSError as error:
            raise damaged(f"{name[:80]} cannot be read: {error.strerror}", self.path) from error
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise damaged(f"{name} is a hard link or no regular file", self.path)
            if size_bytes is not None and status.st_size != size_bytes:
                raise damaged(f"{name} has {status.st_size} bytes, expected {size_bytes}", self.path)
            yield handle
        finally:
            os.close(handle)


@contextmanager
def open_layout(path: Path) -> Generator[LayoutReader]:
    """Open an image layout for reading.

    Raises:
        IntegrityError: It is no image layout, or a part of it is a link.
    """
    handles: list[int] = []
    try:
        try:
            handles.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            for name in ("blobs", "sha256"):
                handles.append(os.open(name, _FOLDER_FLAGS, dir_fd=handles[-1]))
        except OSError as error:
            raise damaged(f"no image layout: {error.strerror} ({error.filename})", path) from error
        reader = LayoutReader(path, handles[0], handles[-1])
        if strict_json(reader.top("oci-layout", 4096), "oci-layout") != LAYOUT_FILE:
            raise damaged("oci-layout does not say version 1.0.0", path)
        yield reader
    finally:
        for handle in handles:
            os.close(handle)


def strict_json(data: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object; duplicate keys, NaN and deep nesting are refused.

    Raises:
        IntegrityError: It is anything else.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) != len(items):
            raise ValueError("duplicate keys")
        return dict(items)

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    try:
        value: object = json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise damaged(f"{what} is no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise damaged(f"{what} is no JSON object")
    return cast("dict[str, Any]", value)


def check_keys(
    data: Mapping[str, Any], required: set[str], what: str, *, optional: frozenset[str] = frozenset()
) -> None:
    """Raise `IntegrityError` unless the keys are exactly the required ones and maybe optional ones."""
    if not required <= set(data) <= required | optional:
        raise damaged(f"{what} has keys {sorted(data)[:20]}, expected {sorted(required)}")


def descriptor(
    data: object, what: str, *, extra: frozenset[str] = frozenset(), optional: frozenset[str] = frozenset()
) -> Descriptor:
    """Parse `{mediaType, digest, size}`.

    Raises:
        IntegrityError: A field is absent, superfluous or malformed.
    """
    if not isinstance(data, dict):
        raise damaged(f"{what} is no object")
    fields = cast("dict[str, Any]", data)
    check_keys(fields, {"mediaType", "digest", "size"} | extra, what, optional=optional)
    media_type, digest, size = fields["mediaType"], fields["digest"], fields["size"]
    if not isinstance(digest, str) or not is_digest(digest):
        raise damaged(f"{what} has digest {str(digest)[:80]!r}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0 or not isinstance(media_type, str):
        raise damaged(f"{what} has size {str(size)[:40]!r} and media type {str(media_type)[:80]!r}")
    return Descriptor(media_type, digest, size)
