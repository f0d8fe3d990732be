"""Fields of link heads, each checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from orchestrator.serving.link.frames import LinkError
from orchestrator.serving.protocol.signature import Signature
from orchestrator.serving.protocol.tensors import TensorSpec
from orchestrator.serving.runtimes.api import Bucket

_MAX_TEXT: Final = 16_384


def seconds_of(head: Mapping[str, object], key: str) -> float:
    """Return a time; 0 where there is none.

    Raises:
        LinkError: It is of the wrong kind.
    """
    value = head.get(key, 0.0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e9:
        raise LinkError(f"{key} must be seconds")
    return float(value)


def load_of(head: Mapping[str, object]) -> str:
    """Return whether a model is loaded always or lazily.

    Raises:
        LinkError: It is of the wrong kind.
    """
    load = head.get("load", "always")
    if load not in ("always", "lazy"):
        raise LinkError(f"unknown load {str(load)[:80]!r}")
    return str(load)


def stage_of(head: Mapping[str, object]) -> str:
    """Return what a replica computes of a request.

    Raises:
        LinkError: It is of the wrong kind.
    """
    stage = head.get("stage", "model")
    if stage not in ("preprocess", "model", "postprocess"):
        raise LinkError(f"unknown stage {str(stage)[:80]!r}")
    return str(stage)


def specs_of(head: Mapping[str, object], key: str) -> tuple[TensorSpec, ...]:
    """Return the specs of inputs or outputs.

    Raises:
        LinkError: It is of the wrong kind.
    """
    try:
        return tuple(TensorSpec.from_json(row) for row in rows_of(head, key))
    except ValueError as error:
        raise LinkError(str(error)) from error


def rows_of(head: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    """Return a list of objects.

    Raises:
        LinkError: It is of the wrong kind.
    """
    rows = head.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in cast("list[object]", rows)):
        raise LinkError(f"{key} must be a list of objects")
    return cast("list[Mapping[str, object]]", rows)


def text_of(head: Mapping[str, object], key: str, *, empty: bool = False) -> str:
    """Return a text.

    Raises:
        LinkError: It is of the wrong kind.
    """
    value = head.get(key)
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not (value or empty):
        raise LinkError(f"{key} must be a text")
    return value


def whole_of(head: Mapping[str, object], key: str) -> int:
    """Return a whole number of 0 or more.

    Raises:
        LinkError: It is of the wrong kind.
    """
    return check_whole(head.get(key), key)


def check_whole(value: object, key: str) -> int:
    """Return a value that is a whole number of 0 or more.

    Raises:
        LinkError: It is of the wrong kind.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LinkError(f"{key} must be a whole number of 0 or more")
    return value


def buckets_of(head: Mapping[str, object], signature: Signature) -> tuple[Bucket, ...]:
    """Return the shapes that a model was compiled for.

    Raises:
        LinkError: It is of the wrong kind.
    """
    rows = rows_of(head, "buckets")
    ranks = {spec.name: len(spec.dims) for spec in signature.inputs}
    if any(
        {name: len(cast("list[object]", s)) if isinstance(s, list) else -1 for name, s in r.items()} != ranks
        for r in rows
    ):
        raise LinkError("a bucket must name the shape of every input")
    shapes = [{name: cast("list[object]", shape) for name, shape in row.items()} for row in rows]
    return tuple({n: tuple(check_whole(size, "buckets") for size in s) for n, s in row.items()} for row in shapes)
