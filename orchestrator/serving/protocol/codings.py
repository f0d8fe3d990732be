"""Content codings gzip and deflate, with caps: a small body must not become a large one, nor hold up the event loop."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.tensors import Buffer

MAX_RATIO: Final = 100
"""Decoded bytes per coded byte above `_FREE_BYTES`; tensors of zeros reach 1,000, what people send stays below 20."""
INLINE_BYTES: Final = 16 << 10
"""Coded bodies up to this size are decoded on the event loop (at most some 4 ms), larger ones in a thread."""
MIN_ANSWER_BYTES: Final = 16 << 10
"""Smaller answers are never coded: many clients say by default that they accept it, and it only costs them time."""
INLINE_ANSWER_BYTES: Final = 128 << 10
_FREE_BYTES: Final = 1 << 20
_LEVEL: Final = 1
_WINDOW: Final = {b"gzip": 31, b"deflate": 15}

WORKERS: Final = ThreadPoolExecutor(2, thread_name_prefix="coding")
"""zlib lets go of the GIL; two threads bound the memory as well."""


def decode(body: Buffer, coding: bytes, limit_bytes: int) -> bytes:
    """Decode a body.

    Raises:
        RequestError: 415 unknown coding, 400 not what it says, 413 over `limit_bytes` or `MAX_RATIO`.
    """
    window = _WINDOW.get(coding.strip().lower())
    if window is None:
        raise RequestError("content-encoding must be gzip or deflate", status=415)
    # Some clients send deflate without its zlib header; the first byte of one tells, its low half is 8.
    if window == 15 and len(body) and memoryview(body)[0] & 0x0F != 8:
        window = -15
    limit = min(limit_bytes, max(_FREE_BYTES, len(body) * MAX_RATIO))
    machine = zlib.decompressobj(window)
    try:
        found = machine.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(f"the body is no valid {coding.decode('latin-1')[:20]}: {error}") from error
    if len(found) > limit:
        raise RequestError(f"the decoded body is over {limit} bytes", status=413, kind="too_large")
    if not machine.eof or machine.unused_data:
        raise RequestError(f"the body is no whole {coding.decode('latin-1')[:20]} stream")
    return found


def accepted(header: bytes) -> bytes | None:
    """Return the coding to answer with by an `Accept-Encoding` header: gzip before deflate, None for neither."""
    offers: dict[bytes, bool] = {}
    for part in header.lower().split(b","):
        name, _, quality = part.partition(b";")
        offers[name.strip()] = quality.replace(b" ", b"") not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000")
    return next((coding for coding in _WINDOW if offers.get(coding)), None)


def encode(pieces: Sequence[Buffer], coding: bytes) -> bytes:
    """Code an answer."""
    machine = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[coding])
    return b"".join([*(machine.compress(piece) for piece in pieces), machine.flush()])
