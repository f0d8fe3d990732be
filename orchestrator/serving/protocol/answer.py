"""Outputs of a batch: cut into the rows of each request, and written as an OIP answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import orjson

from orchestrator.serving.protocol import oip_json
from orchestrator.serving.protocol.signature import Fitted
from orchestrator.serving.protocol.tensors import Buffer, Tensor, bytes_offsets, count

_FORMS: Final = 256


def split_rows(outputs: Sequence[Tensor], rows: Sequence[int]) -> list[list[Tensor]]:
    """Cut each output along axis 0 into one piece per request; pieces are views.

    Raises:
        ValueError: An output does not have the sum of `rows` on axis 0.
    """
    pieces: list[list[Tensor]] = [[] for _ in rows]
    total = sum(rows)
    for tensor in outputs:
        if not tensor.shape or tensor.shape[0] != total:
            raise ValueError(f"output {tensor.name!r} has shape {list(tensor.shape)} for a batch of {total} rows")
        for piece, part in zip(pieces, _cut(tensor, rows), strict=True):
            piece.append(part)
    return pieces


def _cut(tensor: Tensor, rows: Sequence[int]) -> list[Tensor]:
    view, rest = memoryview(tensor.data), tensor.shape[1:]
    if tensor.datatype == "BYTES":
        offsets, step = bytes_offsets(view), count(rest)
        edges = [offsets[row * step] for row in _edges(rows)]
    else:
        step = len(view) // tensor.shape[0] if tensor.shape[0] else 0
        edges = [row * step for row in _edges(rows)]
    return [
        Tensor(tensor.name, tensor.datatype, (size, *rest), view[edges[i] : edges[i + 1]])
        for i, size in enumerate(rows)
    ]


def _edges(rows: Sequence[int]) -> list[int]:
    edges = [0]
    for size in rows:
        edges.append(edges[-1] + size)
    return edges


class AnswerForm(NamedTuple):
    """Answers that differ in their values and their id alone.

    Attributes:
        texts: The JSON, cut where the values of each JSON output belong; without its last brace.
        json: The places of the JSON outputs among the outputs, in the order of `texts`.
        binary: The places of the binary outputs.
    """

    texts: list[bytes]
    json: list[int]
    binary: list[int]


AnswerForms = dict[tuple[object, ...], AnswerForm]
"""By what was wanted, and the shapes and sizes of the outputs."""


def write_answer(
    forms: AnswerForms, fitted: Fitted, outputs: Sequence[Tensor], name: str, version: str, request_id: str | None
) -> tuple[list[Buffer], int | None]:
    """Return the body as pieces, and the length of its JSON where binary tensors follow (None: all JSON).

    `forms` are those of this name and version; a new one is added.

    Raises:
        RequestError: JSON was asked for and cannot carry a value.
    """
    key = fitted.wanted, *[(tensor.shape, len(tensor.data)) for tensor in outputs]
    form = forms.get(key)
    if form is None:
        if len(forms) >= _FORMS:
            forms.clear()
        form = forms[key] = _form(fitted, outputs, name, version)
    texts = form.texts
    end = b"}" if request_id is None else b',"id":%b}' % orjson.dumps(request_id)
    if not form.json:
        text = texts[0] + end
        return [text, *[outputs[place].data for place in form.binary]], len(text)
    pieces = [texts[0]]
    for place, following in zip(form.json, texts[1:], strict=True):
        pieces += oip_json.encode(outputs[place]), following
    text = b"".join([*pieces, end])
    return [text, *[outputs[place].data for place in form.binary]], len(text) if form.binary else None


def _form(fitted: Fitted, outputs: Sequence[Tensor], name: str, version: str) -> AnswerForm:
    places = {tensor.name: place for place, tensor in enumerate(outputs)}
    texts, json, binary = list[bytes](), list[int](), list[int]()
    head = orjson.dumps({"model_name": name, "model_version": version})[:-1] + b',"outputs":['
    for number, wanted in enumerate(fitted.wanted):
        place = places[wanted.name]
        tensor = outputs[place]
        row: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if wanted.binary:
            row["parameters"] = {"binary_data_size": len(tensor.data)}
        head += (b"," if number else b"") + orjson.dumps(row)
        if wanted.binary:
            binary.append(place)
        else:
            json.append(place)
            texts.append(head[:-1] + b',"data":')
            head = b"}"
    return AnswerForm([*texts, head + b"]"], json, binary)
