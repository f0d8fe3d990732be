"""Parity: torch → ONNX → the target's graph → twin → variant on the same real samples. It measures; the limits judge what is stored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from orchestrator.ascend.soc import is_soc, soc
from orchestrator.bundle.variant import Variant, read_variant
from orchestrator.graph.links import Link
from orchestrator.graph.parity import EXACT_DB, compare
from orchestrator.graph.read import model_file
from orchestrator.graph.run_onnx import OnnxModel
from orchestrator.steps.api import StepContext, StepResult
from orchestrator.steps.model_inputs import Array, Predict, predictor_of, real_samples
from orchestrator.steps.reports import report
from orchestrator.steps.user_metrics import user_metrics
from orchestrator.steps.variant_run import device_of, run_variant, why_not_here

_CPU = "cpu (onnxruntime, fp32)"
_REHEARSAL = "cpu (rehearsal)"


def run(ctx: StepContext) -> StepResult:
    """Run every link of the chain on the same samples.

    Raises:
        UserCodeError: `samples` or `evaluate` failed.
        GateError: A graph does not run, or a sample does not fit it.
    """
    chain = _Chain(ctx)
    links = list(chain.links())
    for link in links:
        ctx.events.message(f"{link.name}: {_summary(link)}")
    body = {"samples": chain.count, "links": [link.to_json() for link in links], "predicted": _predicted(links)}
    metrics = dict(_figures(links))
    for name, value in metrics.items():
        ctx.events.metric(name, value)
    return StepResult({"report": report(ctx, body)}, metrics, {"samples": chain.count, "links": body["links"]})


class _Chain:
    def __init__(self, ctx: StepContext) -> None:
        self._ctx = ctx
        self._onnx = OnnxModel(model_file(ctx.inputs["onnx"]))
        self._samples = real_samples(ctx, self._onnx.inputs)
        self.count = len(next(iter(self._samples.values())))
        self._predict, self._reference = predictor_of(ctx)
        self._expected = self._predict(self._samples)
        self._task: dict[str, float] = {}

    def links(self) -> Iterator[Link]:
        """Yield the links in the order of the chain."""
        targets: list[dict[str, Any]] = self._ctx.spec["targets"]
        self._ctx.events.progress(0, 1 + 3 * len(targets), "onnx")
        if self._ctx.spec.get("evaluate"):
            self._task = user_metrics(self._ctx, str(self._ctx.spec["evaluate"]), self._predict)
        if self._reference != "onnx":
            yield self._measured("onnx", self._onnx, _CPU)
        for number, target in enumerate(targets):
            self._ctx.events.progress(1 + 3 * number, 1 + 3 * len(targets), str(target["name"]))
            yield from self._of_target(target)

    def _of_target(self, target: Mapping[str, Any]) -> Iterator[Link]:
        name, inputs = target["name"], self._ctx.inputs
        if f"graph-{name}" in inputs:
            yield self._measured("graph", fitting(OnnxModel(model_file(inputs[f"graph-{name}"]))), _CPU, target)
            yield self._measured("twin", fitting(OnnxModel(model_file(inputs[f"twin-{name}"]))), _REHEARSAL, target)
        yield self._variant(target, read_variant(inputs[f"variant-{name}"]))

    def _variant(self, target: Mapping[str, Any], variant: Variant) -> Link:
        tools: dict[str, Any] = self._ctx.spec["tools"]
        reason = why_not_here(variant, tools)
        if reason:
            return self._link("variant", target, "not run", skipped=reason)
        # The form that runs on a CPU rounds nothing: it is held to what an fp32 export is held to.
        as_fp32 = {**target, "precision": "fp32", "soc": None}
        return self._measured(
            "variant", lambda samples: run_variant(variant, samples, tools), device_of(variant), as_fp32
        )

    def _measured(self, candidate: str, predict: Predict, device: str, target: Mapping[str, Any] | None = None) -> Link:
        found = compare(self._expected, predict(self._samples))
        rounded = candidate in {"twin", "variant"}
        task: dict[str, float] = {}
        if rounded and self._task:
            task = user_metrics(self._ctx, str(self._ctx.spec["evaluate"]), predict)
        return self._link(
            candidate, target, device, metrics=found, task=task, reference_task=self._task if task else {}
        )

    def _link(self, candidate: str, target: Mapping[str, Any] | None, device: str, **measured: Any) -> Link:
        about = target or {"name": ""}
        rounded = candidate in {"twin", "variant"}
        chip = str(about["soc"] or "") if rounded else ""
        return Link(
            candidate=candidate,
            reference=self._reference,
            target=str(about["name"]),
            precision=str(about["precision"]) if rounded else "fp32",
            device=device,
            saturating=is_soc(chip) and soc(chip).saturating,
            **measured,
        )


def fitting(model: OnnxModel) -> Predict:
    """Return the model behind a cast of its inputs: a target's graph may take int32 where the recipe says int64."""
    dtypes = {spec.name: np.dtype(spec.dtype) for spec in model.inputs}

    def predict(samples: Mapping[str, Array]) -> dict[str, Array]:
        return model({name: np.asarray(value).astype(dtypes[name], copy=False) for name, value in samples.items()})

    return predict


def _summary(link: Link) -> str:
    if link.skipped:
        return f"not run: {link.skipped}"
    return f"{link.device}: worst sample {link.summary}"


def _predicted(links: list[Link]) -> list[dict[str, Any]]:
    """Return, per target and output, what the twin foresaw and what the variant then measured, where it ran."""
    twins = {link.target: link for link in links if link.candidate == "twin"}
    rows: list[dict[str, Any]] = []
    for link in links:
        twin = twins.get(link.target)
        if link.candidate != "variant" or link.skipped or twin is None:
            continue
        for name, measured in link.metrics.items():
            foreseen = twin.metrics.get(name)
            rows.append(
                {
                    "target": link.target,
                    "output": name,
                    "device": link.device,
                    "predicted_sqnr_db": foreseen.worst_sqnr_db if foreseen else None,
                    "measured_sqnr_db": measured.worst_sqnr_db,
                }
            )
    return rows


def _figures(links: list[Link]) -> Iterator[tuple[str, float]]:
    """Yield the finite figures; identical outputs have an infinite SQNR, which is left out."""
    for link in links:
        place = f"{link.candidate}.{link.target}" if link.target else link.candidate
        for name, output in link.metrics.items():
            figures = {
                "sqnr_db": output.worst_sqnr_db if output.worst_sqnr_db < EXACT_DB else None,
                "max_abs": output.max_abs,
                "cosine": output.worst_cosine,
                "top1": output.top1_agreement,
            }
            yield from (
                (f"{key}.{place}.{name}", v) for key, v in figures.items() if v is not None and math.isfinite(v)
            )
        yield from ((f"task.{place}.{name}", value) for name, value in link.task.items())
