"""Content codings: what is decoded, and what is refused before it grows."""

from __future__ import annotations

import gzip
import os
import zlib

import pytest

from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol import codings

LIMIT = 64 << 20
TEXT = b'{"inputs": []}' * 100


def raw_deflate(data: bytes) -> bytes:
    machine = zlib.compressobj(wbits=-15)
    return machine.compress(data) + machine.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", gzip.compress(TEXT, mtime=0)),
        (b" GZIP ", gzip.compress(TEXT, mtime=0)),
        (b"deflate", zlib.compress(TEXT)),
        (b"deflate", raw_deflate(TEXT)),
        (b"gzip", memoryview(gzip.compress(TEXT, mtime=0))),
    ],
)
def test_both_codings_decode(coding: bytes, body: bytes) -> None:
    assert codings.decode(body, coding, LIMIT) == TEXT


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        (b"br", b"x", 415),
        (b"gzip, gzip", gzip.compress(TEXT, mtime=0), 415),
        (b"gzip", b"", 400),
        (b"gzip", TEXT, 400),
        (b"deflate", TEXT, 400),
        (b"gzip", gzip.compress(TEXT, mtime=0)[:-1], 400),
        (b"gzip", gzip.compress(TEXT, mtime=0) + b"more", 400),
        (b"gzip", gzip.compress(TEXT, mtime=0) + gzip.compress(TEXT, mtime=0), 400),
        pytest.param(b"gzip", gzip.compress(bytes(70 << 20), 1, mtime=0), 413, id="gzip-bomb"),
        (b"deflate", zlib.compress(bytes(8 << 20)), 413),
    ],
)
def test_what_is_refused(coding: bytes, body: bytes, status: int) -> None:
    with pytest.raises(RequestError) as found:
        codings.decode(body, coding, LIMIT)
    assert found.value.status == status


def test_the_cap_is_the_smaller_of_size_and_ratio() -> None:
    noise = os.urandom(3 << 20)
    assert codings.decode(gzip.compress(noise), b"gzip", LIMIT) == noise
    with pytest.raises(RequestError, match="over 2097152 bytes"):
        codings.decode(gzip.compress(noise), b"gzip", 2 << 20)


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (b"", None),
        (b"gzip", b"gzip"),
        (b"deflate", b"deflate"),
        (b"deflate, GZIP;q=0.5, br", b"gzip"),
        (b"gzip;q=0, deflate", b"deflate"),
        (b"gzip; q=0.0", None),
        (b"identity, br, zstd", None),
    ],
)
def test_what_the_client_accepts(header: bytes, coding: bytes | None) -> None:
    assert codings.accepted(header) == coding


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
def test_coded_answers_decode(coding: bytes) -> None:
    assert codings.decode(codings.encode([b"head", memoryview(TEXT)], coding), coding, LIMIT) == b"head" + TEXT
