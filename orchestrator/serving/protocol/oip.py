"""Open Inference Protocol v2 over REST: request bodies to tensors, with Triton's binary tensors. Sizes are checked before use."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import orjson

from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol import oip_json
from orchestrator.serving.protocol.tensors import ITEM_BYTES, MAX_RANK, Buffer, Tensor, check_size, count

if TYPE_CHECKING:
    from orchestrator.serving.protocol.forms import Form

MAX_INPUTS: Final = 64
MAX_ID_BYTES: Final = 256
MAX_PARAMETERS: Final = 64
MAX_TENSOR_BYTES: Final = 64 << 20
_KEY: Final = re.compile(rb'"\s*:')
_EXACT_CHECK_BYTES: Final = 1 << 20
"""The exact check for duplicate keys costs about 20 ms per MiB on the event loop, so numbers, which have no keys, are taken out
of a larger text first; what is still larger then, nearly all of it texts, goes without.
"""
_NUMBERS: Final = re.compile(rb"\[[\s\d+\-.eE,]{64,}+\]")
_REFUSED: Final = ("sequence_id", "sequence_start", "sequence_end", "headers")
LAST: Final = 1 << 64
"""The priority of a request that asks for none."""
_SCALARS: Final = (str, int, float, bool)


class WantedOutput(NamedTuple):
    """An output that the client asked for."""

    name: str
    binary: bool


class InferRequest(NamedTuple):
    """A request as it was sent; not yet compared with a model.

    Attributes:
        id: To be echoed; None when the client gave none.
        inputs: By name, in the client's order.
        outputs: None = all of the model's.
        binary_output: Whether outputs without a choice of their own go out as binary.
        timeout_us: The client's own deadline, or None.
        priority: Smaller goes first; 1 is the most urgent.
        raw: The whole body is the one input (header length 0): name, datatype and shape come from the model.
        form: What it shares with all requests that differ in the values alone; None where nothing is known.
    """

    id: str | None
    inputs: Mapping[str, Tensor]
    outputs: tuple[WantedOutput, ...] | None
    binary_output: bool
    timeout_us: int | None
    priority: int = LAST
    raw: Buffer | None = None
    form: Form | None = None


def parse_request(body: Buffer, header_length: bytes | None) -> InferRequest:
    """Parse the body of an infer request.

    Args:
        body: The whole body.
        header_length: Value of `Inference-Header-Content-Length`, None where the header is absent.

    Raises:
        RequestError: Anything the client did wrong.
    """
    view = memoryview(body)
    size = len(view) if header_length is None else _header_length(header_length, len(view))
    if header_length is not None and size == 0:
        return InferRequest(None, {}, None, binary_output=True, timeout_us=None, raw=body)
    head = _parse_json(view[:size])
    parameters = _parameters(head.get("parameters"), "parameters")
    refuse_reserved(parameters)
    blobs = _Blobs(view[size:])
    inputs = _inputs(head.get("inputs"), blobs)
    blobs.finish()
    binary_output = _flag(parameters, "binary_data_output", "parameters") or False
    return InferRequest(
        read_id(head.get("id")),
        inputs,
        _outputs(head.get("outputs"), binary_output),
        binary_output,
        read_timeout(parameters),
        read_priority(parameters),
    )


def _header_length(value: bytes, available: int) -> int:
    if not value.isdigit() or len(value) > 12 or int(value) > available:
        raise RequestError(f"Inference-Header-Content-Length {value[:40]!r} must be a number of at most {available}")
    return int(value)


def _parse_json(text: memoryview) -> Mapping[str, object]:
    try:
        head: object = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the request is no valid JSON: {error}") from error
    if not isinstance(head, dict):
        raise RequestError("the request must be a JSON object")
    found = cast("dict[str, object]", head)
    # orjson keeps the last of two equal keys; a cheap count of keys tells when the slow, exact check is needed.
    if len(_KEY.findall(text)) != _count_keys(found):
        few = bytes(text) if len(text) <= _EXACT_CHECK_BYTES else _NUMBERS.sub(b"[]", text)
        if len(few) <= _EXACT_CHECK_BYTES:
            _refuse_duplicates(few)
    return found


def _count_keys(head: Mapping[str, object]) -> int:
    total = len(head)
    for value in head.values():
        if isinstance(value, dict):
            total += len(cast("dict[str, object]", value))
    for key in ("inputs", "outputs"):
        tensors = head.get(key)
        if isinstance(tensors, list):
            for tensor in cast("list[object]", tensors):
                if isinstance(tensor, dict):
                    total += len(cast("dict[str, object]", tensor))
                    parameters = cast("dict[str, object]", tensor).get("parameters")
                    total += len(cast("dict[str, object]", parameters)) if isinstance(parameters, dict) else 0
    return total


def _refuse_duplicates(text: bytes) -> None:
    def check(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise RequestError("the request has a JSON object with two equal keys")
        return found

    try:
        json.loads(text, object_pairs_hook=check)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request is no valid JSON: {error}") from error


class _Blobs:
    """Hands out the binary part in order."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._place = 0

    def take(self, size: int, name: str) -> memoryview:
        left = len(self._view) - self._place
        if size > left:
            raise RequestError(f"input {name!r}: binary_data_size is {size}, {left} bytes are left in the body")
        self._place += size
        return self._view[self._place - size : self._place]

    def finish(self) -> None:
        if self._place != len(self._view):
            raise RequestError(f"{len(self._view) - self._place} bytes of the body belong to no input")


def read_id(value: object) -> str | None:
    """Return the request's id; raises `RequestError` where it is no short text."""
    if value is None:
        return None
    if not isinstance(value, str) or len(value.encode()) > MAX_ID_BYTES:
        raise RequestError(f"id must be a text of at most {MAX_ID_BYTES} bytes")
    return value


def _parameters(value: object, place: str) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError(f"{place} must be an object")
    found = cast("dict[str, object]", value)
    if len(found) > MAX_PARAMETERS or not all(isinstance(item, _SCALARS) for item in found.values()):
        raise RequestError(f"{place} must hold at most {MAX_PARAMETERS} texts, numbers or booleans")
    return found


def refuse_reserved(parameters: Mapping[str, object]) -> None:
    """Raise `RequestError` on a parameter that has a meaning elsewhere and none here."""
    for name in parameters:
        if name in _REFUSED or name.startswith("triton_"):
            raise RequestError(f"parameter {name!r} is not supported")


def _flag(parameters: Mapping[str, object], name: str, place: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{place}: {name} must be true or false")
    return value


def read_timeout(parameters: Mapping[str, object]) -> int | None:
    """Return the client's deadline in microseconds; raises `RequestError` where it is no number."""
    value = parameters.get("timeout")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise RequestError("parameter timeout must be a number of microseconds")
    return value or None


def read_priority(parameters: Mapping[str, object]) -> int:
    """Return the request's priority; raises `RequestError` where it is no number."""
    value = parameters.get("priority")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < LAST):
        raise RequestError("parameter priority must be a whole number of 0 or more")
    return value or LAST


def _inputs(value: object, blobs: _Blobs) -> Mapping[str, Tensor]:
    if not isinstance(value, list):
        raise RequestError("inputs must be a list")
    rows = cast("list[object]", value)
    if not 1 <= len(rows) <= MAX_INPUTS:
        raise RequestError(f"a request has 1 to {MAX_INPUTS} inputs, not {len(rows)}")
    found: dict[str, Tensor] = {}
    for row in rows:
        if not isinstance(row, dict):
            raise RequestError("each input must be an object")
        tensor = _input(cast("dict[str, object]", row), blobs)
        if tensor.name in found:
            raise RequestError(f"input {tensor.name!r} is given twice")
        found[tensor.name] = tensor
    return found


def _input(row: Mapping[str, object], blobs: _Blobs) -> Tensor:
    name = read_name(row.get("name"), "input")
    datatype, shape = read_kind(name, row.get("datatype"), row.get("shape"))
    parameters = _parameters(row.get("parameters"), f"input {name!r}: parameters")
    if any(key.startswith("shared_memory") for key in parameters):
        raise RequestError(f"input {name!r}: shared memory is not supported")
    blob_size = parameters.get("binary_data_size")
    if blob_size is None:
        if "data" not in row:
            raise RequestError(f"input {name!r} has neither data nor binary_data_size")
        return Tensor(name, datatype, shape, oip_json.decode(name, datatype, shape, row["data"]))
    if "data" in row:
        raise RequestError(f"input {name!r} has both data and binary_data_size")
    if not isinstance(blob_size, int) or isinstance(blob_size, bool) or blob_size < 0:
        raise RequestError(f"input {name!r}: binary_data_size must be a number of bytes")
    data = blobs.take(blob_size, name)
    try:
        check_size(datatype, shape, data)
    except ValueError as error:
        raise RequestError(f"input {name!r} {error}") from error
    return Tensor(name, datatype, shape, data)


def read_name(value: object, what: str) -> str:
    """Return the name of an input or output; raises `RequestError` where it is none."""
    if not isinstance(value, str) or not 1 <= len(value) <= 256:
        raise RequestError(f"each {what} needs a name of 1 to 256 characters")
    return value


def read_kind(name: str, datatype: object, shape: object) -> tuple[str, tuple[int, ...]]:
    """Return datatype and shape of input `name`.

    Raises:
        RequestError: Not a datatype, not a shape, or more than one request may hold: a 0 counts as 1, as numpy has it.
    """
    if not isinstance(datatype, str) or datatype not in ITEM_BYTES:
        raise RequestError(f"input {name!r}: datatype must be one of {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(cast("list[object]", shape)) > MAX_RANK:
        raise RequestError(f"input {name!r}: shape must be a list of at most {MAX_RANK} sizes")
    sizes = cast("list[object]", shape)
    if not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 63 for size in sizes):
        raise RequestError(f"input {name!r}: shape must hold whole numbers of 0 or more")
    found = tuple(cast("list[int]", sizes))
    size = count([side or 1 for side in found]) * max(1, ITEM_BYTES[datatype])
    if size > MAX_TENSOR_BYTES:
        raise RequestError(
            f"input {name!r}: shape {list(found)} needs {size} bytes, at most {MAX_TENSOR_BYTES} are allowed"
        )
    return datatype, found


def _outputs(value: object, binary_output: bool) -> tuple[WantedOutput, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(cast("list[object]", value)) > MAX_INPUTS:
        raise RequestError(f"outputs must be a list of at most {MAX_INPUTS}")
    found: list[WantedOutput] = []
    for row in cast("list[object]", value):
        if not isinstance(row, dict):
            raise RequestError("each output must be an object")
        name = read_name(cast("dict[str, object]", row).get("name"), "output")
        parameters = _parameters(cast("dict[str, object]", row).get("parameters"), f"output {name!r}: parameters")
        if any(key.startswith("shared_memory") or key == "classification" for key in parameters):
            raise RequestError(f"output {name!r}: shared memory and classification are not supported")
        binary = _flag(parameters, "binary_data", f"output {name!r}")
        found.append(WantedOutput(name, binary_output if binary is None else binary))
    if len({output.name for output in found}) != len(found):
        raise RequestError("an output is asked for twice")
    return tuple(found) or None
