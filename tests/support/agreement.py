"""What coverage says of a graph beside what MindSpore Lite's real converter and CPU runtime do with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from orchestrator.ascend.mindspore_lite import MindSporeLite
from orchestrator.ascend.quirks import quirk
from orchestrator.core.errors import GateError, InfraError
from orchestrator.graph.coverage import cover
from orchestrator.graph.prepare import prepare

TOOLCHAIN = "mindspore-lite"
RIGHT_DB = 60.0
"""float32 against float32: real graphs agree to 100 dB and more, wrong ones to 30 and less."""
FORMS: Mapping[str, str] = {
    "as is": "the graph as it was given",
    "prepared": "after prepare()",
    "fixed": "after prepare() with every free dimension fixed to the samples'",
}

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Row:
    """One graph in one form. `outcome` is `ok`, or the reason of the refusal; `parity_db` the worst output's, None without a run."""

    graph: str
    form: str
    rewrites: tuple[str, ...]
    verdict: str
    findings: tuple[str, ...]
    outcome: str
    parity_db: float | None
    agree: bool | None
    explanation: str

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        if self.parity_db is not None and math.isinf(self.parity_db):
            row["parity_db"] = "inf"
        return row


def judge(
    name: str,
    form: str,
    source: Path,
    samples: Mapping[str, Array],
    lite: MindSporeLite,
    work: Path,
    *,
    timeout_s: float = 60.0,
) -> Row:
    """Bring the graph into its form, ask coverage, then ask the converter and run what it made."""
    graph, rewrites = source, ()
    if form != "as is":
        try:
            sizes = _free_sizes(source, samples) if form == "fixed" else {}
            prepared = prepare(source, work / form, toolchain=TOOLCHAIN, soc=None, shapes=sizes, samples=samples)
        except GateError as error:
            return Row(name, form, (), "blocked", (error.message,), "not asked: prepare() refused it", None, True, "")
        graph, rewrites = prepared.path, tuple(item.rewrite for item in prepared.applied)
    coverage = cover(graph, soc=None, toolchain=TOOLCHAIN)
    findings = tuple(
        f"{item.node} ({item.op_type}): {item.verdict}: {item.reasons[0] if item.reasons else ''}"
        for item in coverage.nodes
        if item.verdict != "ok"
    )
    outcome, parity_db, text = _really(graph, source, samples, lite, work / f"{form}.mindir", timeout_s)
    good = outcome == "ok" and parity_db is not None and parity_db >= RIGHT_DB
    agree = None if coverage.verdict == "unknown" else good == (coverage.verdict in ("ok", "slow"))
    known = next((meaning for is_it, meaning in EXPLAINED.items() if is_it(findings, outcome)), "")
    explanation = known if agree is False else text
    return Row(name, form, rewrites, coverage.verdict, findings, outcome, parity_db, agree, explanation)


def _really(
    graph: Path, source: Path, samples: Mapping[str, Array], lite: MindSporeLite, out: Path, timeout_s: float
) -> tuple[str, float | None, str]:
    try:
        converted = lite.convert(graph, out, timeout_s=timeout_s)
        (got,) = lite.run(converted.path, [samples], timeout_s=timeout_s)
    except (GateError, InfraError) as error:
        return str(error.details.get("reason", error.code)), None, error.message
    wanted = _onnxruntime(source, samples)
    parity_db = min(sqnr_db(array, got.get(name)) for name, array in wanted.items())
    return "ok", parity_db, "" if parity_db >= RIGHT_DB else "converted without a word, and answers wrong numbers"


def _onnxruntime(path: Path, samples: Mapping[str, Array]) -> dict[str, Array]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(samples)), strict=True))


def sqnr_db(wanted: Array, got: Array | None) -> float:
    """Signal to noise, dB; -inf where shapes differ or something is not finite that should be."""
    if got is None or wanted.shape != got.shape:
        return -math.inf
    want, have = wanted.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return _sqnr_db(want, have)


def _sqnr_db(want: Array, have: Array) -> float:
    same = (want == have) | (np.isnan(want) & np.isnan(have))
    if same.all():
        return math.inf
    if not np.isfinite(np.where(same, 0, have - want)).all():
        return -math.inf
    noise = float(np.square(np.where(same, 0, have - want)).sum())
    signal = float(np.square(want[np.isfinite(want)]).sum())
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _free_sizes(source: Path, samples: Mapping[str, Array]) -> dict[str, list[int]]:
    sizes: dict[str, list[int]] = {}
    for item in onnx.load(source, load_external_data=False).graph.input:
        for place, dim in enumerate(item.type.tensor_type.shape.dim):
            if dim.dim_param and item.name in samples:
                sizes[dim.dim_param] = [int(samples[item.name].shape[place])]
    return sizes


def _epsilon(findings: tuple[str, ...], outcome: str) -> bool:
    return outcome == "ok" and bool(findings) and all("epsilon" in item for item in findings)


EXPLAINED: Mapping[Callable[[tuple[str, ...], str], bool], str] = {
    _epsilon: f"quirk {quirk('mindspore-lite-layernorm-epsilon').name}: right on these samples, wrong where the variance "
    "is near epsilon",
}
"""Disagreements that we know, each with a test of its own."""
