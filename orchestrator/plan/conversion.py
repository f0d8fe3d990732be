"""The drafts of conversion: for each target a forecast and a compilation, and one parity step over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from orchestrator.ascend.atc_checks import check_for_target
from orchestrator.environment import Environment
from orchestrator.plan.model import Input
from orchestrator.recipe import Recipe
from orchestrator.recipe.model import Target

_FORECAST_SAMPLES: Final = 64
_PARITY_SAMPLES: Final = 64
_JUDGED: Final = ("parity",)
_TOOLS: Final[Mapping[str, set[str]]] = {
    "om": {"atc"},
    "mindir": {"mindspore_lite_python"},
    "onnx": {"onnxruntime_cann_python"},
    "torch": set(),
}
"""What of the environment's `tools` a format is compiled with; another tool compiles nothing anew."""


def has_forecast(target: Target) -> bool:
    """Tell whether a target rounds in a way that the twin can foresee: it is compiled for a SoC."""
    return target.soc is not None and target.format != "torch"


def check(target: Target) -> None:
    """Check a target's SoC, precision and compiler options against each other.

    Raises:
        PlanError: They do not fit; `place` is the path in the recipe.
    """
    check_for_target(
        target.compile, soc_version=target.soc, format_=target.format, target=target.name, precision=target.precision
    )


def forecast_name(target: Target) -> str:
    """Return the name of the step that forecasts this target."""
    return f"forecast-{target.name}"


def compile_name(target: Target) -> str:
    """Return the name of the step that compiles for this target."""
    return f"compile-{target.name}"


def target_spec(target: Target) -> dict[str, Any]:
    """Return what makes a target's graph and binary; the limits that only judge it are left out."""
    return target.model_dump(mode="json", exclude=set(_JUDGED))


def forecast_spec(recipe: Recipe, target: Target, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec of a forecast; its limits belong to it, since the search for what stays in fp32 ends there."""
    return {
        **_without_targets(model),
        "target": target_spec(target),
        "samples": recipe.samples,
        "samples_count": _FORECAST_SAMPLES,
        "evaluate": recipe.evaluate.entrypoint if recipe.evaluate is not None else None,
        "parity": target.parity.model_dump(mode="json"),
    }


def compile_spec(target: Target, model: Mapping[str, Any], environment: Environment, tool: str) -> dict[str, Any]:
    """Return the spec of a compilation; `tool` is the identity of the compiler there, so that another one compiles anew."""
    return {
        **_without_targets(model),
        "target": target_spec(target),
        "tools": environment.tools.model_dump(mode="json", include=_TOOLS[target.format]),
        "compiler": tool or "none",
    }


def parity_spec(recipe: Recipe, model: Mapping[str, Any], environment: Environment) -> dict[str, Any]:
    """Return the spec of the parity chain."""
    return {
        **_without_targets(model),
        "targets": [target_spec(target) for target in recipe.targets],
        "samples": recipe.samples,
        "samples_count": _PARITY_SAMPLES,
        "evaluate": recipe.evaluate.entrypoint if _compares_metrics(recipe) and recipe.evaluate else None,
        "tools": environment.tools.model_dump(mode="json", include={"mindspore_lite_python"}),
        "parity": {target.name: target.parity.model_dump(mode="json") for target in recipe.targets},
    }


def forecast_inputs(targets: Sequence[Target]) -> list[Input]:
    """Return the forecasts that the bundle carries."""
    return [
        Input(f"forecast-{target.name}", forecast_name(target), "report") for target in targets if has_forecast(target)
    ]


def compile_inputs(target: Target, onnx: Input) -> tuple[Input, ...]:
    """Return what a compilation takes: the bundle that it belongs to, and the target's own graph where there is one."""
    bundle = Input("bundle", "bundle", "bundle")
    if not has_forecast(target):
        return bundle, onnx
    name = forecast_name(target)
    return (bundle, Input("graph", name, "graph"), Input("twin", name, "twin"), Input("forecast", name, "report"))


def parity_inputs(targets: Sequence[Target]) -> list[Input]:
    """Return the links of the chain behind the ONNX graph: per target its graph, its twin, its variant."""
    found: list[Input] = []
    for target in targets:
        if has_forecast(target):
            found += [Input(f"{part}-{target.name}", forecast_name(target), part) for part in ("graph", "twin")]
        found.append(Input(f"variant-{target.name}", compile_name(target), "variant"))
    return found


def _compares_metrics(recipe: Recipe) -> bool:
    return any(target.parity.metric_drop for target in recipe.targets)


def _without_targets(model: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "targets"}
