"""What a bundle says about serving: `serve.json`, written from the recipe's `serve:` block. Router, agent and replica read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import orjson

from orchestrator.core.errors import IntegrityError
from orchestrator.serving.protocol.oip import LAST
from orchestrator.serving.protocol.tensors import MAX_RANK, TensorSpec
from orchestrator.serving.runtimes.api import Stage

SERVE_JSON: Final = "serve.json"
SERVE_FOLDER: Final = "serve"
"""Below it lie the recipe's own files that the stages need, with their paths."""
SCHEMA: Final = 1

MODEL: Final[Stage] = "model"
SHARING: Final = frozenset(["om", "onnx-cpu", "twin"])
"""Runtimes whose models can share a process: compiled graphs. MindSpore Lite and the CANN provider have a process of their own
anyway, and what torch loads brings code.
"""
STAGE_DEVICE: Final = "cpu"
"""A stage runs on the host's CPU, in a pool of NPUs as well; it is no rehearsal of anything."""

_LARGEST_BYTES: Final = 1 << 20
_ENTRYPOINT: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_DATATYPES: Final = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "string": "BYTES", "bytes": "BYTES",
}  # fmt: skip
_KEYS: Final = frozenset(
    [
        "schema", "preprocess", "postprocess", "inputs", "outputs", "isolation", "max_queue_delay_ms", "max_batch", "priority",
        "pinned", "share", "files",
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How a bundle wants to be served.

    Attributes:
        preprocess: `module:function` below the bundle's `serve` folder; None where clients send the model's inputs.
        postprocess: Likewise for what the model gives.
        inputs: What clients send; None = the model's inputs.
        outputs: What clients get; None = the model's outputs.
        max_queue_delay_ms: How long a request may wait for others to share its batch.
        max_batch: Most rows in one batch; None = what the model takes.
        priority: Of requests that ask for none; smaller goes first.
        pinned: Never unloaded to make room.
        share: Weight where several endpoints compete for a device.
        isolation: `process`: the model has a process of its own; `shared`: it shares one with others of its slot. Stages,
            which are code, always have their own.
        binary: Inputs of dtype `bytes`: their elements are given to the stage as bytes, all other BYTES as text.
    """

    preprocess: str | None = None
    postprocess: str | None = None
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    max_queue_delay_ms: float = 0.0
    max_batch: int | None = None
    priority: int = LAST
    pinned: bool = False
    share: float = 1.0
    isolation: Literal["process", "shared"] = "process"
    binary: frozenset[str] = frozenset()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that a request passes, in order; only `model` where the bundle brings no code."""
        before: tuple[Stage, ...] = ("preprocess",) if self.preprocess else ()
        after: tuple[Stage, ...] = ("postprocess",) if self.postprocess else ()
        return (*before, MODEL, *after)


DEFAULTS: Final = ServeSettings()


def read_serve_settings(bundle_path: Path) -> ServeSettings:
    """Return what an unpacked bundle says about serving; all defaults where it says nothing.

    Raises:
        IntegrityError: `serve.json` cannot be read or is not what this program writes.
    """
    path = bundle_path / SERVE_JSON
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return DEFAULTS
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST_BYTES:
        raise _damaged(path, f"has {len(data)} bytes, at most {_LARGEST_BYTES}")
    try:
        return parse_serve_settings(orjson.loads(data))
    except (ValueError, TypeError) as error:  # orjson's error is a ValueError
        raise _damaged(path, str(error)) from error


def parse_serve_settings(data: object) -> ServeSettings:
    """Check the content of `serve.json`.

    Raises:
        ValueError: A key is missing, unknown or has a value that cannot be.
    """
    row = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    if row.keys() != _KEYS:
        raise ValueError(f"must be an object with the keys {sorted(_KEYS)}")
    if row["schema"] != SCHEMA or row["isolation"] not in ("process", "shared") or not isinstance(row["pinned"], bool):
        raise ValueError(f"schema {row['schema']!r}, isolation {row['isolation']!r}, pinned {row['pinned']!r}")
    priority = _number(row, "priority", 1, 2**31 - 1, whole=True)
    max_batch = _number(row, "max_batch", 1, 65_536, whole=True)
    delay_ms, share = _number(row, "max_queue_delay_ms", 0, 10_000), _number(row, "share", 0, 1000)
    if not share or delay_ms is None:
        raise ValueError(f"share {share!r}, max_queue_delay_ms {delay_ms!r}")
    return ServeSettings(
        _entrypoint(row, "preprocess"),
        _entrypoint(row, "postprocess"),
        _specs(row, "inputs"),
        _specs(row, "outputs"),
        float(delay_ms),
        None if max_batch is None else int(max_batch),
        LAST if priority is None else int(priority),
        pinned=row["pinned"],
        share=float(share),
        isolation=row["isolation"],
        binary=frozenset(item["name"] for item in row["inputs"] or () if item["dtype"] == "bytes"),
    )


def model_specs(card: Mapping[str, Any]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of the model itself from the bundle's card.

    Raises:
        ValueError: The card does not say.
    """
    inputs, outputs = _specs(card, "inputs"), _specs(card, "outputs")
    if inputs is None or outputs is None:
        raise ValueError("the card names no inputs and outputs")
    return inputs, outputs


def stage_specs(
    settings: ServeSettings, card: Mapping[str, Any], stage: Stage
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return what a stage takes and gives.

    Raises:
        ValueError: The bundle's card does not name the model's inputs and outputs.
    """
    inputs, outputs = model_specs(card)
    if stage == "preprocess":
        return settings.inputs or inputs, inputs
    if stage == "postprocess":
        return outputs, settings.outputs or outputs
    return inputs, outputs


def _damaged(path: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{SERVE_JSON} {what}", place=str(path), hint="make the bundle again, and deploy it")


def _entrypoint(row: Mapping[str, Any], key: str) -> str | None:
    value = row[key]
    if value is None or (isinstance(value, str) and _ENTRYPOINT.fullmatch(value)):
        return value
    raise ValueError(f"{key} {str(value)[:80]!r} is no entry point")


def _number(row: Mapping[str, Any], key: str, least: float, most: float, *, whole: bool = False) -> float | None:
    value = row[key]
    kinds = int if whole else (int, float)
    if value is None or (isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most):
        return value
    raise ValueError(f"{key} {str(value)[:80]!r} is no number from {least:g} to {most:g}")


def _specs(row: Mapping[str, Any], key: str) -> tuple[TensorSpec, ...] | None:
    items = row.get(key)
    if items is None:
        return None
    if not isinstance(items, list) or not items:
        raise ValueError(f"{key} must be a list of tensors")
    found = tuple(_spec(item, key) for item in cast("list[object]", items))
    if len({spec.name for spec in found}) != len(found):
        raise ValueError(f"{key} name a tensor twice")
    return found


def _spec(item: object, key: str) -> TensorSpec:
    shown = str(item)[:120]
    fields = cast("dict[str, object]", item) if isinstance(item, dict) else dict[str, object]()
    name, datatype, shape = fields.get("name"), _DATATYPES.get(str(fields.get("dtype"))), fields.get("shape")
    if not isinstance(name, str) or not name or datatype is None or not isinstance(shape, list):
        raise ValueError(f"{key} hold {shown}, which is no tensor")
    dims = cast("list[object]", shape)
    if len(dims) > MAX_RANK or not all(isinstance(d, str) or (isinstance(d, int) and d >= 0) for d in dims):
        raise ValueError(f"tensor {name[:80]!r} has shape {str(dims)[:120]}")
    return TensorSpec(name, datatype, tuple(cast("list[int | str]", dims)))
