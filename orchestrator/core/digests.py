"""Digests: sha256 over bytes, files and canonical JSON, written `sha256:<64 hex>`."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Final, NewType

Digest = NewType("Digest", str)

_CHUNK_BYTES: Final = 1 << 20
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def canonical_json(value: object) -> bytes:
    """Return the one byte form of a JSON value: sorted keys, no spaces, UTF-8, no NaN (RFC 8785 for our types).

    Raises:
        TypeError: The value is not JSON.
        ValueError: A float is NaN or infinite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_bytes(data: bytes) -> Digest:
    """Return the digest of `data`."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def sha256_json(value: object) -> Digest:
    """Return the digest of the canonical JSON of `value`."""
    return sha256_bytes(canonical_json(value))


def sha256_file(path: Path) -> Digest:
    """Return the digest of a file's content, read in 1 MiB pieces."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            state.update(piece)
    return Digest("sha256:" + state.hexdigest())


def is_digest(text: str) -> bool:
    """Tell whether `text` reads `sha256:<64 lower-case hex>`."""
    return _DIGEST.fullmatch(text) is not None


def hex_of(digest: str) -> str:
    """Return the 64 hex digits of a digest; a safe file name.

    Raises:
        ValueError: `digest` is not a digest.
    """
    if not is_digest(digest):
        raise ValueError(f"not a sha256 digest: {digest[:80]!r}")
    return digest.removeprefix("sha256:")


def short(digest: str) -> str:
    """Return the first 12 hex digits, for people."""
    return digest.removeprefix("sha256:")[:12]
