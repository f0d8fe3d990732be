"""Requests that differ in their values alone: what surrounds the values is parsed, checked and fitted once, then known by its bytes.

Most clients send one form again and again: the same names, shapes and parameters, and other numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

import orjson

from orchestrator.serving.protocol import oip_json
from orchestrator.serving.protocol.oip import InferRequest, parse_request
from orchestrator.serving.protocol.tensors import Buffer, Tensor

if TYPE_CHECKING:
    from orchestrator.serving.protocol.signature import Fitted, Signature

_CACHE: Final = 1024
_FORM_BYTES: Final = 2048
_DATA: Final = b'"data":'
_HOLE: Final = "*"


class Form(NamedTuple):
    """What requests of one form share.

    Attributes:
        inputs: Name, datatype, shape and size in bytes of each.
        request: The first of them, without its inputs.
        size_bytes: Of all inputs.
        fits: By the identity of a signature: the signature, and how this form fits it, without values.
    """

    inputs: list[tuple[str, str, tuple[int, ...], int]]
    request: InferRequest
    size_bytes: int
    fits: dict[int, tuple[Signature, Fitted]]


class Forms:
    """The forms that one listener has seen."""

    __slots__ = ("_binary", "_json")

    def __init__(self) -> None:
        self._binary: dict[bytes, Form] = {}
        self._json: dict[bytes, Form] = {}

    def parse(self, body: Buffer, header_length: bytes | None) -> InferRequest:
        """As `parse_request`, which see."""
        found = self._parse_json(body) if header_length is None else self._parse_binary(body, header_length)
        return parse_request(body, header_length) if found is None else found

    def _parse_binary(self, body: Buffer, header_length: bytes) -> InferRequest | None:
        """Return a request whose tensors are all binary: its JSON says everything else."""
        if len(header_length) > 4 or not header_length.isdigit() or not 0 < (size := int(header_length)) <= _FORM_BYTES:
            return None
        text = bytes(body[:size])
        form = self._binary.get(text)
        if form is None:
            request = parse_request(body, header_length)
            binary = sum(len(tensor.data) for tensor in request.inputs.values()) == len(body) - size
            return _learn(self._binary, text, request) if binary else request
        if len(body) - size != form.size_bytes:
            return None
        view, place, inputs = memoryview(body), size, dict[str, Tensor]()
        for name, datatype, shape, bytes_ in form.inputs:
            end = place + bytes_
            inputs[name] = Tensor(name, datatype, shape, view[place:end])
            place = end
        return request_of(form, inputs)

    def _parse_json(self, body: Buffer) -> InferRequest | None:
        """Return a request of one JSON tensor whose numbers end its object: the text around them says everything else."""
        if isinstance(body, memoryview):
            return None
        start = body.find(_DATA, 0, _FORM_BYTES) + len(_DATA)
        end = body.find(b"}", start)
        if start < len(_DATA) or end < 0 or start + len(body) - end > _FORM_BYTES:
            return None
        before, after = bytes(body[:start]), bytes(body[end:])
        form = self._json.get(before + after)
        if form is None:
            request = parse_request(body, None)
            # A quote in the hole may be a key of the input, and what it says holds for this request alone.
            alike = body.find(b'"', start, end) < 0 and _is_hole(before, after)
            return _learn(self._json, before + after, request) if alike else request
        try:
            # Without a quote or a brace in it this is numbers and brackets, and whatever it is, it ends where the hole ends.
            values: object = orjson.loads(memoryview(body)[start:end])
            name, datatype, shape, _ = form.inputs[0]
            tensor = Tensor(name, datatype, shape, oip_json.decode(name, datatype, shape, values))
        except orjson.JSONDecodeError:
            return None
        return request_of(form, {name: tensor})


def request_of(form: Form, inputs: dict[str, Tensor]) -> InferRequest:
    """Return the request of this form with these values."""
    known = form.request
    return InferRequest(None, inputs, known.outputs, known.binary_output, known.timeout_us, known.priority, None, form)


def _is_hole(before: bytes, after: bytes) -> bool:
    """Whether what lies between is the data of the only input."""
    try:
        head: object = orjson.loads(before + b'"%b"' % _HOLE.encode() + after)
    except orjson.JSONDecodeError:
        return False
    rows = cast("dict[str, list[dict[str, object]]]", head)["inputs"]
    return len(rows) == 1 and rows[0].get("data") == _HOLE


def _learn(forms: dict[bytes, Form], text: bytes, request: InferRequest) -> InferRequest:
    """Remember the form of a request, unless the next one would have an id or sizes of its own; returns the request."""
    if request.id is not None or any(tensor.datatype == "BYTES" for tensor in request.inputs.values()):
        return request
    inputs = [(name, datatype, shape, len(data)) for name, datatype, shape, data in request.inputs.values()]
    if len(forms) >= _CACHE:
        forms.clear()
    forms[text] = form = Form(inputs, request._replace(inputs={}), sum(size for *_, size in inputs), {})
    return request._replace(form=form)
