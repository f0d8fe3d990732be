"""Which ONNX operators each toolchain parses, and what Ascend-IR operators they become.

Data: `data/operators_<toolchain>.json`, which name their versions and sources. Parsing is not running: kernels and
attribute limits are judged elsewhere (`kernels.py`, `graph/coverage`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

ONNX_DOMAINS: Final = frozenset({"", "ai.onnx"})


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator that ATC's ONNX parser knows.

    Attributes:
        opsets: Opsets of the model (not of the operator) that it is registered for.
        types: Ascend-IR operators that compute it: alternatives by rank, dtype or attributes, the main one first.
        also: Ascend-IR operators that its small graph needs besides.
        listed: Whether the vendor's list of supported operators, validated for 310P, names it.
    """

    opsets: frozenset[int]
    types: tuple[str, ...]
    also: tuple[str, ...] = ()
    listed: bool = False


def atc_operator(op_type: str, domain: str = "") -> Operator | None:
    """Return what ATC's parsers know of the operator; None where none is registered in that domain."""
    return _atc().get((_domain(domain), op_type))


def ascend_types(op_type: str, domain: str = "") -> tuple[str, ...]:
    """Return the Ascend-IR operators that compute it, the main one first; empty where it is not known.

    An operator that a graph pass always replaces is followed by what replaces it: `LSTM` -> `CommonLSTM`, `DynamicRNN`.
    """
    found = atc_operator(op_type, domain)
    types = found.types if found else tuple(_raw("mindspore_lite")["types"].get(op_type, ()))
    return tuple(dict.fromkeys(name for ir in types for name in (ir, *lowered(ir))))


def lowered(ir_type: str) -> tuple[str, ...]:
    """Return the Ascend-IR operators that a graph pass puts in the place of `ir_type`, if any."""
    return tuple(_raw("atc")["lowered"].get(ir_type, ()))


def is_local(ir_type: str) -> bool:
    """Tell whether the graph engine itself handles it: constants, views, control flow. It needs no kernel."""
    return ir_type in _local()


def registered_since(op_type: str) -> int | None:
    """Return the first opset that has a standard operator which ATC parses in none, None for others."""
    return _raw("atc")["unregistered"].get(op_type)


def mindspore_lite_parses(op_type: str, domain: str = "") -> bool:
    """Tell whether the MindSpore Lite converter has a parser; it goes by the operator's name alone."""
    return _domain(domain) == "" and op_type in _names("mindspore_lite")


def cann_provider_takes(op_type: str, domain: str = "") -> bool:
    """Tell whether the CANN provider of ONNX Runtime puts the operator into its graph."""
    return _domain(domain) == "" and op_type in _names("cann_ep")


def tables_version(toolchain: str) -> str:
    """Return which version the operator table of `atc`, `mindspore-lite` or `cann-ep` is of."""
    return str(_raw(toolchain.replace("-", "_"))["version"])


def _domain(domain: str) -> str:
    return "" if domain in ONNX_DOMAINS else domain


def _opsets(text: str) -> frozenset[int]:
    """Read `8-18` or `8,12-18`."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return frozenset(found)


@cache
def _atc() -> Mapping[tuple[str, str], Operator]:
    raw = _raw("atc")
    domains: dict[str, dict[str, Any]] = {"": raw["operators"], **raw["domains"]}
    return {
        (domain, name): Operator(
            _opsets(row["opsets"]), tuple(row["types"]), tuple(row.get("also", ())), bool(row.get("listed"))
        )
        for domain, rows in domains.items()
        for name, row in rows.items()
    }


@cache
def _local() -> frozenset[str]:
    return frozenset(_raw("atc")["local"])


@cache
def _names(table: str) -> frozenset[str]:
    return frozenset(_raw(table)["operators"])


@cache
def _raw(table: str) -> dict[str, Any]:
    text = files("orchestrator.ascend").joinpath(f"data/operators_{table}.json").read_text(encoding="utf-8")
    return json.loads(text)
