"""Which toolchain reads a target's graph, and which ONNX opsets it knows.

Data: `data/toolchains.json`, which names its sources. An opset outside the range is no matter of taste: ATC finds no parser
for any node of an opset-19 model, and the CANN provider moves what it does not know to the CPU without a word.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final, Protocol

from orchestrator.ascend.soc import soc
from orchestrator.core.errors import PlanError

PREFERRED_OPSET: Final = 18
"""What torch's dynamo exporter writes natively; anything lower goes through a converter that gives up in silence."""

_BY_FORMAT: Final = {"om": "atc", "mindir": "mindspore-lite", "onnx": "onnx", "torch": "torch"}


class TargetLike(Protocol):
    """What is needed of a recipe's target."""

    @property
    def name(self) -> str:
        """The target's name in the recipe."""
        ...

    @property
    def format(self) -> str:
        """`om`, `mindir`, `onnx` or `torch`."""
        ...

    @property
    def soc(self) -> str | None:
        """The SoC, where the format compiles for one."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """A target as plain data, for callers that hold JSON."""

    name: str
    format: str
    soc: str | None = None


@dataclass(frozen=True, slots=True)
class Toolchain:
    """One toolchain: `atc`, `mindspore-lite`, `cann-ep`, `onnx` or `torch`; its name for people, the opsets it reads, why."""

    key: str
    tool: str
    minimum: int
    maximum: int | None
    why: str
    sources: tuple[str, ...]


def toolchain(target: TargetLike) -> Toolchain:
    """Return the toolchain that reads the ONNX graph for `target`.

    Raises:
        PlanError: The format is unknown, or the SoC of format onnx.
    """
    if target.format not in _BY_FORMAT:
        known = ", ".join(sorted(_BY_FORMAT))
        raise PlanError(f"target {target.name!r} has unknown format {target.format!r}", hint=f"use one of {known}")
    if target.format == "onnx" and target.soc is not None:
        soc(target.soc)  # a name that is mistyped must not become the plain target without a word
        return _table()["cann-ep"]
    return _table()[_BY_FORMAT[target.format]]


def toolchain_called(key: str) -> Toolchain:
    """Return the toolchain with that key.

    Raises:
        PlanError: There is none.
    """
    if key not in _table():
        raise PlanError(f"unknown toolchain {key[:80]!r}", hint=f"use one of {', '.join(_table())}")
    return _table()[key]


@cache
def _table() -> dict[str, Toolchain]:
    text = files("orchestrator.ascend").joinpath("data/toolchains.json").read_text(encoding="utf-8")
    rows = json.loads(text)["toolchains"]
    return {
        key: Toolchain(key, row["tool"], row["minimum"], row["maximum"], row["why"], tuple(row["sources"]))
        for key, row in rows.items()
    }
