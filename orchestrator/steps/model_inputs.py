"""What the model's steps share: the model behind an input artifact, its targets, and the user's real samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from orchestrator.ascend.toolchains import Target
from orchestrator.core.errors import UserCodeError
from orchestrator.graph.spec import TensorSpec, check_arrays, specs
from orchestrator.steps.api import StepContext
from orchestrator.steps.user_code import load_entrypoint, user_code

Array = np.ndarray[Any, Any]
Predict = Callable[[Mapping[str, Array]], dict[str, Array]]


def tensor_specs(ctx: StepContext) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the recipe's inputs and outputs, in its order."""
    model = ctx.spec["model"]
    return specs(model["inputs"]), specs(model["outputs"])


def targets(ctx: StepContext) -> list[Target]:
    """Return the targets that the graph must fit."""
    return [Target(item["name"], item["format"], item["soc"]) for item in ctx.spec.get("targets", ())]


def torch_model(ctx: StepContext, checkpoint: Path) -> Any:
    """Build the user's network and load a checkpoint artifact into it; returns a `torch.nn.Module` in eval mode."""
    from orchestrator.graph.torch_model import build, load_checkpoint

    module = build(str(ctx.spec["model"]["factory"]), ctx.recipe_dir)
    load_checkpoint(module, checkpoint)
    return module.eval()


def predictor_of(ctx: StepContext) -> tuple[Predict, str]:
    """Return `predict` over the step's `checkpoint` or, without one, its `onnx` input, and what it is."""
    if "checkpoint" in ctx.inputs:
        from orchestrator.graph.torch_model import predictor

        names = [spec.name for spec in tensor_specs(ctx)[1]]
        return predictor(torch_model(ctx, ctx.inputs["checkpoint"]), names), "torch"
    from orchestrator.graph.run_onnx import OnnxModel

    return OnnxModel(ctx.inputs["onnx"] / "model.onnx"), "onnx"


def real_samples(ctx: StepContext, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return the user's samples stacked along axis 0, each checked against the recipe's inputs.

    Raises:
        UserCodeError: The function failed, gave no sample, or one that does not fit the recipe.
    """
    entrypoint, wanted = str(ctx.spec["samples"]), int(ctx.spec["samples_count"])
    function = load_entrypoint(entrypoint, ctx.recipe_dir)
    found: list[Mapping[str, Array]] = []
    with user_code(entrypoint, ctx.recipe_dir):
        given = itertools.islice(cast("Iterable[Mapping[str, Array]]", function(wanted)), wanted)
        found.extend({name: np.asarray(value) for name, value in sample.items()} for sample in given)
    if not found:
        raise UserCodeError(f"{entrypoint} gave no sample", place=ctx.step, hint="yield at least one {input: ndarray}")
    for number, sample in enumerate(found):
        check_arrays(inputs, sample, f"sample {number} of {entrypoint}", error=UserCodeError)
    return {spec.name: np.concatenate([sample[spec.name] for sample in found]) for spec in inputs}
