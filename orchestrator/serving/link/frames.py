"""Frames between router, replicas and agents. Pure; `LINK.md` defines them byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, cast

import numpy as np
import orjson

from orchestrator.core.errors import ServingError
from orchestrator.serving.protocol.tensors import ITEM_BYTES, MAX_RANK, Buffer, Tensor, check_size

VERSION: Final = 1
MAX_HEAD_BYTES: Final = 1 << 20
MAX_BODY_BYTES: Final = 1 << 29
DIRECT_BYTES: Final = 1 << 16
"""A frame of more is received where it stays."""
_ALIGN: Final = 8
_MAGIC: Final = b"OL"
_PREFIX: Final = struct.Struct("<2sBBIII")
_PAD: Final = bytes(_ALIGN)
_BLANK: Final = b" " * _ALIGN
"""Behind the head, so that the body begins at a multiple of 8 and its receiver need not move it."""


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    PLACEMENTS = 2
    REPORT = 3
    CREDIT = 4
    BATCH = 5
    REPLY = 6
    DRAIN = 7
    BYE = 8
    WAKE = 9
    UNLOAD = 10


_KINDS: Final[Mapping[int, Kind]] = {int(kind): kind for kind in Kind}


class LinkError(ServingError):
    """The peer broke a rule of the link; the connection must end."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One received frame; `body` is owned by the frame, and begins at a multiple of 8 bytes in memory."""

    kind: Kind
    id: int
    head: Mapping[str, object]
    body: Buffer


def encode(kind: Kind, head: Mapping[str, object], *, number: int = 0) -> bytes:
    """Return a frame without a body."""
    text = orjson.dumps(head)
    return _prefix(kind, len(text), 0, number) + text


def encode_tensors(
    kind: Kind,
    head: Mapping[str, object],
    key: str,
    tensors: Sequence[tuple[str, str, Sequence[int], Sequence[Buffer]]],
    *,
    number: int,
) -> list[Buffer]:
    """Return a frame with tensors as a list for `writelines`; nothing is copied.

    Args:
        kind: BATCH or REPLY.
        head: The head without the tensors.
        key: Where the tensors go in the head: `inputs` or `outputs`.
        tensors: (name, datatype, shape, pieces); the concatenation of the pieces is the tensor's bytes.
        number: The batch's number.
    """
    described: list[list[object]] = []
    body: list[Buffer] = []
    place = 0
    for name, datatype, shape, pieces in tensors:
        gap = -place % _ALIGN
        if gap:
            body.append(_PAD[:gap])
        size = sum(map(len, pieces))
        described.append([name, datatype, shape, size])
        body.extend(pieces)
        place += gap + size
    text = orjson.dumps({**head, key: described})
    text += _BLANK[: -(_PREFIX.size + len(text)) % _ALIGN]
    return [_prefix(kind, len(text), place, number) + text, *body]


def _prefix(kind: Kind, head_size: int, body_size: int, number: int) -> bytes:
    if head_size > MAX_HEAD_BYTES or body_size > MAX_BODY_BYTES:
        raise LinkError(f"a {kind.name.lower()} frame of {head_size} + {body_size} bytes is over the cap")
    return _PREFIX.pack(_MAGIC, VERSION, kind, head_size, body_size, number)


def decode_tensors(frame: Frame, key: str) -> list[Tensor]:
    """Return the tensors of a batch or reply, as views into its body.

    Raises:
        LinkError: Head and body do not fit.
    """
    described = frame.head.get(key)
    if not isinstance(described, list):
        raise LinkError(f"a {frame.kind.name.lower()} frame has no {key}")
    view, place, found = memoryview(frame.body), 0, list[Tensor]()
    for item in cast("list[object]", described):
        name, datatype, shape, size = _description(item)
        place += -place % _ALIGN
        if size > len(view) - place:
            raise LinkError(f"tensor {name!r} of {size} bytes runs past the body of {len(view)}")
        data = view[place : place + size]
        try:
            check_size(datatype, shape, data)
        except ValueError as error:
            raise LinkError(f"tensor {name!r} {error}") from error
        found.append(Tensor(name, datatype, shape, data))
        place += size
    if place != len(view):
        raise LinkError(f"the body holds {len(view)} bytes, its tensors {place}")
    return found


def _description(item: object) -> tuple[str, str, tuple[int, ...], int]:
    if not isinstance(item, list) or len(cast("list[object]", item)) != 4:
        raise LinkError("a tensor description needs 4 items")
    name, datatype, shape, size = cast("list[object]", item)
    if not isinstance(name, str) or not isinstance(datatype, str) or datatype not in ITEM_BYTES:
        raise LinkError("a tensor description has a bad name or datatype")
    if not isinstance(shape, list) or len(cast("list[object]", shape)) > MAX_RANK:
        raise LinkError(f"tensor {name!r} has a bad shape")
    sizes = [_size(value) for value in cast("list[object]", shape)]
    return name, datatype, tuple(sizes), _size(size)


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LinkError(f"bad size {str(value)[:50]}")
    return value


class FrameReader:
    """Cuts a byte stream into frames. Feed it what arrives; it buffers only that, never what a length promises.

    Who trusts its peer may ask for `room` first, and receive there.
    """

    __slots__ = ("_buffer", "_filled", "_large", "_needed")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = _PREFIX.size
        self._large: memoryview | None = None
        self._filled = 0

    def room(self) -> memoryview | None:
        """Return where the rest of a large frame belongs, to be received there and told to `filled`; None: `feed`.

        The kernel gives memory to pages that are written, so that this too costs what arrives.
        """
        if self._large is None:
            have = len(self._buffer)
            if self._needed <= DIRECT_BYTES or have < _PREFIX.size:
                return None
            self._large, self._filled = np.empty(self._needed, np.uint8).data, have
            self._large[:have] = self._buffer
            self._buffer = bytearray()
        return self._large[self._filled :]

    def filled(self, size: int) -> Iterable[Frame]:
        """Return the frame that `size` more bytes in its `room` complete.

        Raises:
            LinkError: Its head is none.
        """
        large = self._large
        if large is None:
            raise LinkError("no large frame has begun")
        self._filled += size
        if self._filled < len(large):
            return ()
        self._large, self._needed = None, _PREFIX.size
        return (_frame(large, 0, len(large)),)

    def feed(self, data: Buffer) -> Iterable[Frame]:
        """Return the frames that `data` completes.

        Raises:
            LinkError: Wrong magic, version, kind, size or head. The reader is of no use after that.
        """
        found: bytes | bytearray
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return ()
            # The frames take the buffer over; views of it are all that they hold.
            found, self._buffer = self._buffer, bytearray()
        else:
            found = data if isinstance(data, bytes) else bytes(data)
        frames: list[Frame] = []
        view, place = memoryview(found), 0
        while (end := self._end(view, place)) <= len(found):
            frames.append(_frame(view, place, end))
            place = end
        self._buffer += view[place:]
        self._needed = end - place
        return frames

    def _end(self, buffer: memoryview, place: int) -> int:
        """Return where the frame at `place` ends; where its prefix ends, while that is still incomplete."""
        if len(buffer) - place < _PREFIX.size:
            return place + _PREFIX.size
        magic, version, kind, head_size, body_size, _ = _PREFIX.unpack_from(buffer, place)
        if magic != _MAGIC or version != VERSION or kind not in _KINDS:
            raise LinkError(f"bad frame: magic {magic!r}, version {version}, kind {kind}")
        if head_size > MAX_HEAD_BYTES or body_size > MAX_BODY_BYTES:
            raise LinkError(f"bad frame: {head_size} + {body_size} bytes are over the cap")
        return place + _PREFIX.size + head_size + body_size


def _frame(view: memoryview, place: int, end: int) -> Frame:
    _, _, kind, head_size, _, number = _PREFIX.unpack_from(view, place)
    start = place + _PREFIX.size
    try:
        head = orjson.loads(view[start : start + head_size])
    except orjson.JSONDecodeError as error:
        raise LinkError(f"bad frame: head is no JSON: {error}") from error
    if not isinstance(head, dict):
        raise LinkError("bad frame: head is no JSON object")
    body = view[start + head_size : end]
    return Frame(
        _KINDS[kind], number, cast("dict[str, object]", head), bytes(body) if (start + head_size) % _ALIGN else body
    )
