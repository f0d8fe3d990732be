"""The link's codec: whatever arrives, in whatever pieces, is a frame or a LinkError."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.serving.link.frames import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    Frame,
    FrameReader,
    Kind,
    LinkError,
    decode_tensors,
    encode,
    encode_tensors,
)
from orchestrator.serving.protocol.tensors import ITEM_BYTES, from_array, join_bytes

PREFIX = struct.Struct("<2sBBIII")
DTYPES = [
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    if draw(st.booleans()):
        count = int(np.prod(shape, dtype=np.int64))
        items = np.empty(count, dtype=object)
        items[:] = draw(st.lists(st.binary(max_size=6), min_size=count, max_size=count))
        return items.reshape(shape)
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return np.frombuffer(bytes(i % 2 for i in range(size)), dtype=dtype).reshape(shape)


@given(st.lists(arrays(), max_size=5), st.integers(0, 2**32 - 1), st.data())
def test_tensors_survive_in_any_pieces(values: list[np.ndarray], number: int, data: st.DataObject) -> None:
    tensors = [from_array(f"t{i}", value) for i, value in enumerate(values)]
    described = [(t.name, t.datatype, t.shape, [t.data]) for t in tensors]
    wire = b"".join(encode_tensors(Kind.BATCH, {"rows": [1]}, "inputs", described, number=number))
    wire += encode(Kind.DRAIN, {})
    reader, frames, place = FrameReader(), list[Frame](), 0
    while place < len(wire):
        step = data.draw(st.integers(1, len(wire)))
        frames.extend(reader.feed(wire[place : place + step]))
        place += step
    assert [frame.kind for frame in frames] == [Kind.BATCH, Kind.DRAIN]
    assert frames[0].id == number
    assert frames[0].head["rows"] == [1]
    found = decode_tensors(frames[0], "inputs")
    assert [(t.name, t.datatype, t.shape, bytes(t.data)) for t in found] == [
        (t.name, t.datatype, t.shape, bytes(t.data)) for t in tensors
    ]
    for tensor, value in zip(found, values, strict=True):
        assert np.array_equal(tensor.array(), value, equal_nan=value.dtype.kind == "f")
        assert value.dtype == object or tensor.array().flags.aligned


@given(st.binary(max_size=200))
def test_noise_is_refused_or_incomplete(noise: bytes) -> None:
    reader = FrameReader()
    try:
        frames = list(reader.feed(noise))
    except LinkError:
        return
    assert frames == [] or noise.startswith(b"OL\x01")


@given(st.binary(max_size=60), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4))
def test_a_damaged_frame_never_gives_more_than_it_holds(body: bytes, flips: list[tuple[int, int]]) -> None:
    wire = bytearray(
        b"".join(encode_tensors(Kind.REPLY, {}, "outputs", [("a", "UINT8", [len(body)], [body])], number=1))
    )
    for place, value in flips:
        wire[place % len(wire)] = value
    try:
        frames = list(FrameReader().feed(bytes(wire)))
        tensors = [tensor for frame in frames for tensor in decode_tensors(frame, "outputs")]
    except LinkError:
        return
    assert sum(len(tensor.data) for tensor in tensors) <= len(body)


@pytest.mark.parametrize(
    "prefix",
    [
        (b"XL", 1, 5, 2, 0, 0),
        (b"OL", 2, 5, 2, 0, 0),
        (b"OL", 1, 99, 2, 0, 0),
        (b"OL", 1, 5, MAX_HEAD_BYTES + 1, 0, 0),
        (b"OL", 1, 5, 2, MAX_BODY_BYTES + 1, 0),
    ],
)
def test_bad_prefix_is_refused_before_its_content_arrives(prefix: tuple[bytes, int, int, int, int, int]) -> None:
    with pytest.raises(LinkError, match="bad frame"):
        FrameReader().feed(PREFIX.pack(*prefix))


@pytest.mark.parametrize("head", [b"[]", b"1", b"{", b"\xff", b""])
def test_head_must_be_an_object(head: bytes) -> None:
    with pytest.raises(LinkError):
        FrameReader().feed(PREFIX.pack(b"OL", 1, 4, len(head), 0, 0) + head)


@pytest.mark.parametrize(
    "described",
    [
        None,
        [["a", "FP32", [2], 4]],
        [["a", "FP32", [1], 8]],
        [["a", "FP32", [1], 2**40]],
        [["a", "FP32", [-1], 4]],
        [["a", "FP32", [True], 4]],
        [["a", "FP32", [0, 2, 2**62], 0], ["b", "FP32", [1], 4]],
        [["a", "FP99", [1], 4]],
        [["a", "FP32", [1] * 9, 4]],
        [["a", "FP32", [1]]],
        [["a", "BYTES", [1], 4], ["b", "BYTES", [], 0]],
        [],
    ],
)
def test_head_and_body_must_fit(described: object) -> None:
    with pytest.raises(LinkError):
        decode_tensors(Frame(Kind.BATCH, 1, {"inputs": described}, b"\x09\0\0\0"), "inputs")


def test_the_document_names_every_kind_and_cap() -> None:
    import orchestrator.serving as room

    text = (Path(room.__file__).parent / "link" / "LINK.md").read_text()
    for kind in Kind:
        assert f"| {int(kind)} | {kind.name.lower()} |" in text
    assert f"{MAX_HEAD_BYTES:,}" in text
    assert f"{MAX_BODY_BYTES:,}" in text
    assert ITEM_BYTES["BOOL"] == 1
    assert join_bytes([b"ab"]) == b"\x02\0\0\0ab"


def test_a_large_frame_is_received_where_it_stays() -> None:
    data = bytes(range(256)) * 1024
    pieces = encode_tensors(Kind.BATCH, {"rows": [1]}, "inputs", [("x", "UINT8", (1, len(data)), [data])], number=7)
    wire = b"".join(pieces)
    reader = FrameReader()
    assert reader.room() is None
    assert list(reader.feed(wire[:100])) == []
    found: list[Frame] = []
    place = 100
    while (room := reader.room()) is not None:
        size = min(50_000, len(room))
        room[:size] = wire[place : place + size]
        place += size
        found.extend(reader.filled(size))
    assert place == len(wire)
    (tensor,) = decode_tensors(found[0], "inputs")
    assert bytes(tensor.data) == data
    assert tensor.array().ctypes.data % 8 == 0
    small = encode(Kind.CREDIT, {"credit": 1}, number=3)
    assert [frame.id for frame in reader.feed(small)] == [3]
