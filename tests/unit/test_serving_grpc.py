"""gRPC messages to requests and back; and the reader of `.proto` files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.lines import one_line
from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.oip_grpc import MESSAGES, parse_request
from orchestrator.serving.protocol.proto import ProtoError, load_messages, parse_proto
from orchestrator.serving.protocol.tensors import ITEM_BYTES, join_bytes

KIND = MESSAGES["ModelInferRequest"]
FIELDS = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-32768, 32767]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 65535]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [2**53 + 1, 2**64 - 1]),
    "FP32": ("fp32_contents", [0.5, -3e38]),
    "FP64": ("fp64_contents", [0.1, 1e308]),
    "BYTES": ("bytes_contents", [b"", b"\xff\0a"]),
}


def typed(datatype: str, field: str, values: list[Any]) -> Any:
    message = KIND(model_name="m")
    row = message.inputs.add(name="x", datatype=datatype, shape=[len(values)])
    getattr(row.contents, field).extend(values)
    return message


@pytest.mark.parametrize("datatype", FIELDS)
def test_typed_contents_become_the_same_bytes_as_raw_ones(datatype: str) -> None:
    field, values = FIELDS[datatype]
    if datatype == "BYTES":
        expected = join_bytes(values)
    else:
        name = {"FP": "float", "IN": "int", "UI": "uint"}.get(datatype[:2], "bool")
        dtype = np.dtype("?") if name == "bool" else np.dtype(f"{name}{ITEM_BYTES[datatype] * 8}")
        expected = np.array(values, dtype).tobytes()
    assert parse_request(typed(datatype, field, values)).inputs["x"].data == expected
    raw = KIND(model_name="m", raw_input_contents=[expected])
    raw.inputs.add(name="x", datatype=datatype, shape=[2])
    asked = parse_request(raw)
    assert (asked.inputs["x"].data, asked.binary_output, asked.id) == (expected, True, None)


@pytest.mark.parametrize(
    ("datatype", "values"), [("INT8", [128]), ("INT16", [-32769]), ("UINT8", [256]), ("UINT16", [1 << 16])]
)
def test_small_integers_are_not_cut(datatype: str, values: list[int]) -> None:
    with pytest.raises(RequestError, match="out of the range"):
        parse_request(typed(datatype, FIELDS[datatype][0], values))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_are_raw_only(datatype: str) -> None:
    with pytest.raises(RequestError, match="raw_input_contents"):
        parse_request(typed(datatype, "fp32_contents", [1.0]))


def test_parameters_of_the_request_and_its_outputs() -> None:
    message = typed("FP32", "fp32_contents", [1.0])
    message.parameters["timeout"].int64_param = 500
    message.parameters["priority"].uint64_param = 3
    message.parameters["own"].string_param = "x"
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    message.outputs.add(name="y")
    asked = parse_request(message)
    assert (asked.timeout_us, asked.priority, [o.name for o in asked.outputs or ()]) == (500, 3, ["y"])
    for name, text in (("sequence_id", "not supported"), ("empty", "has no value")):
        bad = KIND.FromString(message.SerializeToString())
        if name == "empty":
            bad.parameters[name].Clear()
        else:
            bad.parameters[name].int64_param = 1
        with pytest.raises(RequestError, match=text):
            parse_request(bad)
    for key in ("classification", "shared_memory_region"):
        bad = KIND.FromString(message.SerializeToString())
        bad.outputs[0].parameters[key].int64_param = 1
        with pytest.raises(RequestError, match="not supported"):
            parse_request(bad)


@given(st.data())
def test_whatever_arrives_is_a_request_or_a_typed_error(data: st.DataObject) -> None:
    message = KIND(model_name="m", id=data.draw(st.text(max_size=8)))
    for _ in range(data.draw(st.integers(0, 3))):
        row = message.inputs.add(
            name=data.draw(st.sampled_from(["x", "y", ""])),
            datatype=data.draw(st.sampled_from([*ITEM_BYTES, "fp32", ""])),
            shape=data.draw(st.lists(st.sampled_from([0, 1, 2, -1, 2**31, 2**62]), max_size=9)),
        )
        for field, values in data.draw(st.lists(st.sampled_from(list(FIELDS.values())), max_size=2)):
            getattr(row.contents, field).extend(values)
    message.raw_input_contents.extend(data.draw(st.lists(st.binary(max_size=16), max_size=3)))
    encoded = bytearray(message.SerializeToString())
    if encoded and data.draw(st.booleans()):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        asked = parse_request(KIND.FromString(bytes(encoded)))
    except (RequestError, DecodeError):
        return
    for tensor in asked.inputs.values():
        assert tensor.array().shape == tensor.shape


def test_the_reader_knows_its_part_of_proto3(tmp_path: Path) -> None:
    text = """
    syntax = "proto3"; // comment
    package a.b;
    message M { enum E { Z = 0; } oneof o { bool p = 1; N n = 2; } map<string, N> m = 3; repeated E e = 4;
      message Inner { bytes d = 9; } Inner i = 5; }
    message N { int64 v = 1; }
    service S { rpc R(stream M) returns (N); }
    """
    (tmp_path / "m.proto").write_text(text)
    messages = load_messages(tmp_path / "m.proto")
    assert set(messages) == {"M", "M.Inner", "N"}
    found = messages["M"](n={"v": 4}, e=[0, 0], i={"d": b"x"})
    found.m["k"].v = 7
    again = messages["M"].FromString(found.SerializeToString())
    assert (again.WhichOneof("o"), again.m["k"].v, again.i.d, list(again.e)) == ("n", 7, b"x", [0, 0])
    method = parse_proto(text, "m.proto").service[0].method[0]
    assert (method.name, method.client_streaming, method.server_streaming) == ("R", True, False)


@pytest.mark.parametrize(
    "text", ["import", "message M {", "message M { string a 1; }", 'syntax = "proto2";', "message M { @ }"]
)
def test_what_the_reader_does_not_know_is_an_error(text: str) -> None:
    with pytest.raises(ProtoError):
        parse_proto(text, "x.proto")


def test_an_error_text_is_one_printable_line() -> None:
    assert one_line("a\r\n\x1b[0m\udcff" + "x" * 1000).startswith(r"a\r\n\x1b[0m")
    assert one_line("x" * 1000) == "x" * 600
