"""Outputs of a batch: cut into the rows of each request, and written as an OIP answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from orchestrator.serving import oip_json
from orchestrator.serving.signature import Fitted
from orchestrator.serving.tensors import Buffer, Tensor, bytes_offsets, count


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


def write_answer(
    fitted: Fitted, outputs: Sequence[Tensor], *, name: str, version: str, request_id: str | None
) -> tuple[list[Buffer], int | None]:
    """Return the body as pieces, and the length of its JSON where binary tensors follow (None: all JSON).

    Raises:
        RequestError: JSON was asked for and cannot carry a value.
    """
    by_name: Mapping[str, Tensor] = {tensor.name: tensor for tensor in outputs}
    described: list[dict[str, object]] = []
    blobs: list[Buffer] = []
    binary = False
    for wanted in fitted.wanted:
        tensor = by_name[wanted.name]
        row: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if wanted.binary:
            binary = True
            row["parameters"] = {"binary_data_size": len(tensor.data)}
            blobs.append(tensor.data)
        else:
            row["data"] = oip_json.encode(tensor)
        described.append(row)
    head: dict[str, object] = {"model_name": name, "model_version": version, "outputs": described}
    if request_id is not None:
        head["id"] = request_id
    text = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    return [text, *blobs], len(text) if binary else None
