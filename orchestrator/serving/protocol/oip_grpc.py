"""Open Inference Protocol v2 over gRPC: messages to requests, and outputs to messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from google.protobuf.message import DecodeError

from orchestrator.serving.dispatch.lanes import Lane, Request
from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.oip import (
    MAX_INPUTS,
    MAX_PARAMETERS,
    InferRequest,
    WantedOutput,
    read_id,
    read_kind,
    read_name,
    read_priority,
    read_timeout,
    refuse_reserved,
)
from orchestrator.serving.protocol.proto import load_messages
from orchestrator.serving.protocol.tensors import Buffer, Tensor, check_size, count, join_bytes, numpy_dtype

MESSAGES: Final = load_messages(Path(__file__).with_name("inference.proto"))
_FINAL: Final = "triton_enable_empty_final_response"
"""Asks that the last answer of a stream is marked; each of ours is the last of its request, and marked."""
_CONTENTS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def decode(kind: Any, data: bytes) -> Any:
    """Parse a message of this kind.

    Raises:
        RequestError: It is none.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RequestError(f"the message is no {kind.DESCRIPTOR.name}: {error}") from error


def parse_request(message: Any, *, always_raw: bool = False) -> InferRequest:
    """Turn a `ModelInferRequest` into a request; outputs are raw where the inputs are, or always.

    Raises:
        RequestError: Anything the client did wrong.
    """
    parameters = _parameters(message.parameters, "parameters")
    refuse_reserved({name: value for name, value in parameters.items() if name != _FINAL})
    rows, raw = message.inputs, message.raw_input_contents
    if not 1 <= len(rows) <= MAX_INPUTS:
        raise RequestError(f"a request has 1 to {MAX_INPUTS} inputs, not {len(rows)}")
    if raw and len(raw) != len(rows):
        raise RequestError(f"raw_input_contents has {len(raw)} entries for {len(rows)} inputs")
    inputs: dict[str, Tensor] = {}
    for place, row in enumerate(rows):
        tensor = _input(row, raw[place] if raw else None)
        if tensor.name in inputs:
            raise RequestError(f"input {tensor.name!r} is given twice")
        inputs[tensor.name] = tensor
    return InferRequest(
        read_id(message.id) or None,
        inputs,
        _outputs(message.outputs, always_raw or bool(raw)),
        always_raw or bool(raw),
        read_timeout(parameters),
        read_priority(parameters),
    )


def _parameters(given: Any, place: str) -> Mapping[str, object]:
    if len(given) > MAX_PARAMETERS:
        raise RequestError(f"{place} must hold at most {MAX_PARAMETERS} values")
    found: dict[str, object] = {}
    for name, value in given.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise RequestError(f"{place}: {name[:80]!r} has no value")
        found[name] = getattr(value, choice)
    return found


def _input(row: Any, raw: bytes | None) -> Tensor:
    name = read_name(row.name, "input")
    datatype, shape = read_kind(name, row.datatype, list(row.shape))
    if row.parameters and any(
        key.startswith("shared_memory") for key in _parameters(row.parameters, f"input {name!r}: parameters")
    ):
        raise RequestError(f"input {name!r}: shared memory is not supported")
    if raw is None:
        return Tensor(name, datatype, shape, _typed(name, datatype, shape, row.contents))
    if row.HasField("contents"):
        raise RequestError(f"input {name!r} has contents beside raw_input_contents")
    try:
        check_size(datatype, shape, raw)
    except ValueError as error:
        raise RequestError(f"input {name!r} {error}") from error
    return Tensor(name, datatype, shape, raw)


def _typed(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> Buffer:
    field = _CONTENTS.get(datatype)
    if field is None:
        raise RequestError(f"input {name!r}: {datatype} must be sent in raw_input_contents")
    others = [found.name for found, _ in contents.ListFields() if found.name != field]
    if others:
        raise RequestError(f"input {name!r}: {datatype} belongs into {field}, not {others[0]}")
    values = getattr(contents, field)
    if len(values) != count(shape):
        raise RequestError(
            f"input {name!r}: {field} has {len(values)} elements, shape {list(shape)} needs {count(shape)}"
        )
    if datatype == "BYTES":
        return join_bytes(values)
    dtype = numpy_dtype(datatype)
    if dtype.kind in "iu" and dtype.itemsize < 4:
        limits = np.iinfo(cast("np.dtype[np.integer]", dtype))
        if len(values) and not (limits.min <= min(values) and max(values) <= limits.max):
            raise RequestError(f"input {name!r}: a number is out of the range of {datatype}")
    return np.fromiter(values, dtype, len(values)).tobytes()


def _outputs(rows: Any, binary: bool) -> tuple[WantedOutput, ...] | None:
    if len(rows) > MAX_INPUTS:
        raise RequestError(f"at most {MAX_INPUTS} outputs may be asked for")
    found: list[WantedOutput] = []
    for row in rows:
        name = read_name(row.name, "output")
        for key in _parameters(row.parameters, f"output {name!r}: parameters"):
            if key.startswith("shared_memory") or key == "classification":
                raise RequestError(f"output {name!r}: shared memory and classification are not supported")
        found.append(WantedOutput(name, binary))
    if len({output.name for output in found}) != len(found):
        raise RequestError("an output is asked for twice")
    return tuple(found) or None


def lane_part(lane: Lane) -> bytes:
    """Return what is the same in every answer of a lane, serialized: protobuf joins messages by joining their bytes."""
    if lane.grpc_head:
        return lane.grpc_head
    head = MESSAGES["ModelInferResponse"](model_name=lane.endpoint, model_version=lane.version)
    head.parameters["bundle"].string_param = lane.generation.bundle
    head.parameters["device"].string_param = lane.generation.device
    head.parameters["triton_final_response"].bool_param = True
    lane.grpc_head = head.SerializeToString()
    return lane.grpc_head


def writes_raw(wanted: Sequence[WantedOutput], outputs: Sequence[Tensor]) -> bool:
    """Whether outputs go out raw: where the inputs were, and where one of those wanted has no typed form."""
    names = {output.name for output in wanted}
    return wanted[0].binary or any(tensor.datatype not in _CONTENTS and tensor.name in names for tensor in outputs)


def write_answer(request: Request, outputs: Sequence[Tensor]) -> bytes:
    """Return the part of a serialized `ModelInferResponse` that differs from answer to answer.

    Outputs are raw where the inputs were, else typed; FP16 and BF16 make all of them raw, since they have no typed form.
    """
    by_name = {tensor.name: tensor for tensor in outputs}
    wanted = [by_name[output.name] for output in request.fitted.wanted]
    raw = writes_raw(request.fitted.wanted, wanted)
    answer = MESSAGES["ModelInferResponse"](id=request.request_id or "")
    for tensor in wanted:
        row = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            answer.raw_output_contents.append(bytes(tensor.data))
        else:
            getattr(row.contents, _CONTENTS[tensor.datatype]).extend(tensor.array().reshape(-1).tolist())
    return answer.SerializeToString()
