"""Request bodies: whatever they hold is read exactly as numpy reads it, or refused with a typed error."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support import fuzz_targets
from tritonclient.utils import np_to_triton_dtype

from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.oip import parse_request
from orchestrator.serving.protocol.tensors import ITEM_BYTES, numpy_dtype

CALM = settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
DTYPES = ("?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")

odd = st.sampled_from([0, 1, 2, 4, -1, 2**31, 2**32, 2**62, 2**63, 2**64, 1.5, "3", None, True, [], {}])
leaves = st.one_of(odd, st.integers(-300, 300), st.floats(), st.text(max_size=4), st.booleans())
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
tensor = st.fixed_dictionaries(
    {},
    optional={
        "name": st.one_of(st.sampled_from(["x", "y", ""]), leaves),
        "datatype": st.one_of(st.sampled_from([*ITEM_BYTES, "fp32"]), leaves),
        "shape": st.one_of(st.lists(odd, max_size=3), leaves),
        "data": values,
        "parameters": st.one_of(st.dictionaries(st.sampled_from(["binary_data_size", "shared_memory_region", "a"]), leaves), leaves),
    },
)  # fmt: skip
bodies = st.fixed_dictionaries(
    {},
    optional={
        "id": leaves,
        "inputs": st.one_of(st.lists(tensor, max_size=3), leaves),
        "outputs": st.one_of(st.lists(tensor, max_size=2), leaves),
        "parameters": st.one_of(st.dictionaries(st.sampled_from(["timeout", "priority", "sequence_id", "b"]), leaves), leaves),
    },
)  # fmt: skip


@CALM
@given(bodies, st.binary(max_size=24), st.booleans())
def test_odd_bodies_are_read_as_numpy_reads_them_or_refused(body: Any, blob: bytes, binary: bool) -> None:
    text = json.dumps(body).encode()
    try:
        asked = parse_request(text + blob if binary else text, str(len(text)).encode() if binary else None)
    except RequestError as error:
        refused = error.status
    else:
        refused = 0
    if refused:
        assert 400 <= refused < 500
        return
    for row in body["inputs"]:
        found = asked.inputs[row["name"]]
        assert found.array().shape == tuple(row["shape"])
        if "data" in row and row["datatype"] != "BYTES":
            wanted = np.array(row["data"], dtype=object).reshape(row["shape"])
            assert np.array_equal(found.array(), wanted.astype(numpy_dtype(row["datatype"])))


@CALM
@given(st.data())
def test_what_tritons_client_writes_is_read_bit_by_bit(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    array = data.draw(arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)))
    sent = triton.InferInput("x", list(array.shape), np_to_triton_dtype(dtype)).set_data_from_numpy(array)
    body, size = triton.InferenceServerClient.generate_request_body([sent])
    found = parse_request(body, None if size is None else str(size).encode()).inputs["x"]
    assert (found.array().dtype, found.shape, bytes(found.data)) == (dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("target", [fuzz_targets.http, fuzz_targets.link, fuzz_targets.tensors])
@CALM
@given(st.one_of(st.binary(max_size=300), st.lists(st.sampled_from([
    b"OL\x01\x06", b"\0\0\0\0", b"\x02\0\0\0", b"{}", b'{"rows":[1]}', b'{"inputs":[{"name":"x","datatype":"FP32","shape":[0,4],"data":[]}]}',
    b"GET /v2 HTTP/1.1\r\n", b"POST /v2/models/int32/infer HTTP/1.1\r\n", b"host: x\r\n", b"content-length: 2\r\n", b"\r\n", b"\xff",
]), max_size=8).map(b"".join)))  # fmt: skip
def test_the_fuzzers_targets_hold_for_any_bytes(target: Any, data: bytes) -> None:
    target(data)
