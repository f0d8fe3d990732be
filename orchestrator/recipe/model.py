"""The recipe: what to build and where it should end up. Only what works today is accepted."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.recipe.compile_options import CompileOptions
from orchestrator.recipe.fields import (
    Command,
    DigestText,
    Dim,
    Duration,
    EntryPoint,
    FilePath,
    Flag,
    Gate,
    Glob,
    JsonValue,
    Keep,
    MlflowUri,
    Model,
    Name,
    Number,
    ParamValue,
    Rewrite,
    Size,
    Soc,
    Text,
    Uri,
    Version,
    Whole,
    Word,
)
from orchestrator.recipe.rollout import Rollout
from orchestrator.recipe.serve import Serve

RESERVED_STEPS = frozenset(
    [
        "preflight",
        "train",
        "source",
        "evaluate",
        "export",
        "forecast",
        "bundle",
        "compile",
        "parity",
        "register",
        "deploy",
    ]
)
"""Names of the steps that the program adds itself; an own step cannot take one."""


def _exactly_one(owner: Model, names: tuple[str, ...]) -> None:
    given = [name for name in names if getattr(owner, name) is not None]
    if len(given) != 1:
        have = f"both {' and '.join(f'`{name}`' for name in given)}" if given else "none"
        raise PydanticCustomError(
            "exactly_one",
            "{text}",
            {"text": f"give exactly one of {', '.join(f'`{n}`' for n in names)}; there is {have}"},
        )


class Data(Model):
    """A dataset that the user's code reads; its identity is part of every fingerprint and of the lineage."""

    uri: Uri = Field(description="Where the data is: file:, package:NAME/set, https:, s3:, ... Never with credentials.")
    digest: DigestText | None = Field(
        None, description="sha256:<hex> of the content, where the URI alone does not pin it."
    )


class Tensor(Model):
    """One input or output of the model."""

    dtype: Literal["float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"] = Field(
        description="Element type, as NumPy names it."
    )
    shape: tuple[Dim, ...] = Field(
        description="Sizes; a name (e.g. batch) stands for a size that varies.", max_length=8
    )


class ModelSpec(Model):
    """The network: how to build it untrained, and what goes in and out."""

    factory: EntryPoint = Field(description="module:function beside the recipe; () -> torch.nn.Module, untrained.")
    inputs: dict[Word, Tensor] = Field(description="Inputs by name, in the order of forward().", min_length=1)
    outputs: dict[Word, Tensor] = Field(
        description="Outputs by name, in the order that forward() returns.", min_length=1
    )
    opset: Annotated[int, Field(strict=True, ge=18, le=23)] | None = Field(
        None, description="ONNX opset to export at, 18 to 23; 18 when absent. Each target's own opset is made from it."
    )


class Resources(Model):
    """What one worker takes."""

    gpu: Whole = Field(
        0, ge=0, le=64, description="GPUs per worker; 0 trains on a CPU where the environment allows it."
    )
    cpu: Whole = Field(1, ge=1, le=1024, description="CPU cores per worker.")


class Retries(Model):
    """How often a failed attempt is repeated, by the cause of the failure."""

    user: Whole = Field(0, ge=0, le=100, description="After the user's code raised or exited non-zero.")
    infra: Whole = Field(3, ge=0, le=100, description="After a process, disk, network or cluster failed.")
    preemption: Whole = Field(10, ge=0, le=1000, description="After the machine was taken away.")
    capacity: Whole = Field(
        0, ge=0, le=1000, description="When the cluster has no room; 0 ends the run as waiting (exit 5)."
    )


class OwnStep(Model):
    """A step of the user's own; runs before training."""

    name: Name = Field(description="Name of the step; unique in the recipe.")
    entrypoint: EntryPoint | None = Field(None, description="module:function beside the recipe; called with the run.")
    command: Command | None = Field(None, description="Program and arguments, instead of an entry point; no shell.")
    needs: tuple[Name, ...] = Field((), description="Own steps whose files this step reads; they run first.")
    params: dict[Word, JsonValue] = Field({}, description="Given to the code; part of the fingerprint.")
    timeout: Duration | None = Field(None, description="Time limit of one attempt, e.g. 30m; none when absent.")

    @model_validator(mode="after")
    def _one_way_to_run(self) -> Self:
        _exactly_one(self, ("entrypoint", "command"))
        return self


class Train(Model):
    """Training on the train site."""

    entrypoint: EntryPoint | None = Field(
        None, description="module:function beside the recipe; main(run) is called on every worker under Ray Train."
    )
    command: Command | None = Field(None, description="A torchrun-style script with its arguments, instead; no shell.")
    params: dict[Word, JsonValue] = Field({}, description="Given to the code as run.params; part of the fingerprint.")
    workers: Whole = Field(1, ge=1, le=4096, description="Number of workers (ranks).")
    resources: Resources = Field(Resources(), description="What one worker takes.")  # pyright: ignore[reportCallIssue]
    retries: Retries = Field(Retries(), description="Attempts by cause of failure.")  # pyright: ignore[reportCallIssue]
    timeout: Duration | None = Field(None, description="Time limit of one attempt, e.g. 8h; none when absent.")

    @model_validator(mode="after")
    def _one_way_to_run(self) -> Self:
        _exactly_one(self, ("entrypoint", "command"))
        return self


class Source(Model):
    """Weights or a graph that exist already, instead of training."""

    checkpoint: FilePath | None = Field(None, description="Folder or sha256:<hex> of a checkpoint of ours.")
    safetensors: FilePath | None = Field(
        None, description="File of weights: a path from the recipe's folder, or package:NAME/path of an installed one."
    )
    torch: FilePath | None = Field(
        None, description="File that torch.save wrote, of plain tensors; named as `safetensors` is. Never unpickled."
    )
    onnx: FilePath | None = Field(None, description="ONNX file, named as `safetensors` is; no `model` is needed.")
    mlflow: MlflowUri | None = Field(None, description="models:/name@alias, models:/name/version or runs:/id/path.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        _exactly_one(self, ("checkpoint", "safetensors", "torch", "onnx", "mlflow"))
        return self

    @property
    def is_graph(self) -> bool:
        """The source is an ONNX graph, so there is nothing to export."""
        return self.onnx is not None


class Evaluate(Model):
    """How good the model is, measured by the user's own function."""

    entrypoint: EntryPoint = Field(description="module:function; evaluate(predict) -> {metric: float}.")
    gates: tuple[Gate, ...] = Field((), description="Conditions that must hold, e.g. `accuracy >= 0.95`.")
    timeout: Duration | None = Field(None, description="Time limit of one attempt; none when absent.")


class Parity(Model):
    """How close the converted model must stay to the trained one."""

    min_sqnr_db: Number | None = Field(
        None, description="Least signal to quantisation-noise ratio of an output, in dB."
    )
    min_cosine: Annotated[float, Field(strict=True, ge=-1, le=1)] | None = Field(
        None, description="Least cosine similarity of an output, -1 to 1."
    )
    metric_drop: dict[Text, Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]] = Field(
        {}, description="Metric of `evaluate` -> largest absolute drop."
    )


def _distinct(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(sizes)) != len(sizes):
        raise PydanticCustomError("wrong_value", "{text}", {"text": f"sizes repeat: {list(sizes)}"})
    return sizes


Sizes = Annotated[tuple[Size, ...], Field(min_length=1, max_length=64), AfterValidator(_distinct)]


Precision = Literal["fp16", "mixed_float16", "cube_fp16in_fp32out", "mixed_bfloat16", "origin", "fp32"]


class Target(Model):
    """What to compile for."""

    name: Name = Field(description="Name of the target; unique in the recipe.")
    format: Literal["om", "mindir", "onnx", "torch"] = Field(description="Compiled form that the device loads.")
    soc: Soc | None = Field(None, description="SoC as npu-smi and ATC name it; om and mindir need it.")
    precision: Precision = Field(
        "fp16", description="How the device computes, in ATC's words; fp32 and origin round nothing."
    )
    keep: Keep = Field(
        "auto", description="Nodes to leave in fp32: `auto` (what the forecast finds), `none`, or a list of node names."
    )
    rewrites: dict[Rewrite, Flag] = Field(
        {}, description="Graph rewrites by name: false leaves one out, true adds one that is off by default."
    )
    shapes: dict[Word, Sizes] = Field(
        {}, description="Named size -> the values to compile for, e.g. batch: [1, 4, 16]."
    )
    compile: CompileOptions = Field(CompileOptions(), description="Options of the compiler.")  # pyright: ignore[reportCallIssue]
    parity: Parity = Field(Parity(), description="Limits on the numeric difference.")  # pyright: ignore[reportCallIssue]

    @model_validator(mode="after")
    def _compiled_for_a_soc(self) -> Self:
        if self.soc is None and self.format in {"om", "mindir"}:
            raise PydanticCustomError("wrong_value", "{text}", {"text": f"format {self.format} needs `soc`"})
        return self


class Recipe(Model):
    """A whole recipe."""

    recipe: Version = Field(description="Version of this format: 1.")
    name: Name = Field(description="Name of the recipe; runs, models and lineage carry it.")
    description: Text = Field("", description="One sentence for people.")
    params: dict[Word, ParamValue] = Field(
        {}, description="Values that `${{ params.NAME }}` inserts and --set overrides."
    )
    data: dict[Name, Data] = Field({}, description="Datasets by name.")
    files: tuple[Glob, ...] = Field((), description="Patterns of further files that belong to every fingerprint.")
    steps: tuple[OwnStep, ...] = Field((), description="Own steps, run before training.")
    model: ModelSpec | None = Field(None, description="The network.")
    train: Train | None = Field(None, description="Training; or give `source`.")
    source: Source | None = Field(None, description="An existing model instead of training.")
    evaluate: Evaluate | None = Field(None, description="Metrics and gates.")
    samples: EntryPoint | None = Field(
        None, description="module:function; samples(n) yields {input: ndarray}: real inputs for parity and self-checks."
    )
    targets: tuple[Target, ...] = Field((), description="What to compile for; several make variants of one generation.")
    serve: Serve | None = Field(None, description="What runs before and after the model, and how it is served.")
    rollout: Rollout | None = Field(None, description="Where to serve, and how a new generation takes over.")
