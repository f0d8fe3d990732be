"""Source: a model that exists already takes the place of training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from orchestrator.bundle.store import Store
from orchestrator.core.digests import is_digest
from orchestrator.core.errors import TrackingError, UsageError, UserCodeError
from orchestrator.core.files import write_json
from orchestrator.core.manifest import MANIFEST_NAME
from orchestrator.recipe.source_path import source_path
from orchestrator.steps.api import CHECKPOINT, ONNX, Output, StepContext, StepResult

_TORCH_FILES: Final = (".pt", ".pth", ".bin", ".ckpt")


def run(ctx: StepContext) -> StepResult:
    """Take the model that the recipe names and leave a `checkpoint`, or an `onnx` artifact for a graph.

    Raises:
        UserCodeError: The file is absent, or holds no weights.
        RecipeError: The package that should hold it is not installed, or does not hold it.
        TrackingError: MLflow does not have the model, or does not answer.
        GateError: The graph is hostile or damaged.
    """
    source: Mapping[str, str] = ctx.spec["source"]
    (kind, where), *_ = source.items()
    path = _from_mlflow(ctx, where) if kind == "mlflow" else _local(ctx, where)
    facts: dict[str, Any] = {"source": f"{kind}: {where}"}
    if kind == "onnx":
        return _graph(ctx, path, facts)
    return _weights(ctx, path, facts)


def _local(ctx: StepContext, where: str) -> Path:
    if is_digest(where):
        return Store(ctx.site.state / str(ctx.spec.get("store", "store"))).path(where)
    path = source_path(where, ctx.recipe_dir)
    if not path.exists():
        raise UserCodeError(f"there is no {path}", place=ctx.step, hint="correct `source:` in the recipe")
    return path


def _graph(ctx: StepContext, path: Path, facts: dict[str, Any]) -> StepResult:
    from orchestrator.graph.read import inspect_onnx, write_onnx_json

    graph = inspect_onnx(path)
    folder = ctx.out / "onnx"
    folder.mkdir()
    shutil.copyfile(path, folder / "model.onnx")
    for name in graph.external_files:
        shutil.copyfile(path.parent / name, folder / name)
    write_onnx_json(folder, graph, "source")
    return StepResult({"onnx": Output(folder, ONNX)}, facts={**facts, "opset": graph.opset})


def _weights(ctx: StepContext, path: Path, facts: dict[str, Any]) -> StepResult:
    """Bring weights into the form of a checkpoint, and prove that they fit the recipe's network."""
    from orchestrator.graph.torch_model import build, load_checkpoint, torch_file_to_safetensors

    folder = ctx.out / "checkpoint"
    folder.mkdir()
    target, file = folder / "model.safetensors", _weights_file(path)
    if file.suffix == ".safetensors":
        shutil.copyfile(file, target)
    else:
        torch_file_to_safetensors(file, target)
    load_checkpoint(build(str(ctx.spec["model"]["factory"]), ctx.recipe_dir), folder)
    write_json(folder / "state.json", {"epoch": 0, "source": facts["source"]})
    return StepResult({"checkpoint": Output(folder, CHECKPOINT)}, facts=facts)


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name != MANIFEST_NAME]
    for suffixes in ((".safetensors",), _TORCH_FILES):
        fitting = [p for p in found if p.suffix in suffixes and not p.name.startswith("optimizer")]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            names = ", ".join(p.name for p in fitting[:5])
            raise UserCodeError(f"{path} holds several files of weights: {names}", hint="name the file itself")
    raise UserCodeError(f"{path} holds no weights", hint=f"expected one .safetensors file, or one of {_TORCH_FILES}")


def _from_mlflow(ctx: StepContext, uri: str) -> Path:
    from orchestrator.tracking.client import prepare_environment

    prepare_environment()  # time-outs and retries: by default MLflow is silent for four minutes
    import mlflow
    from mlflow import artifacts
    from mlflow.exceptions import MlflowException

    folder = ctx.work / "mlflow"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt; an alias may have moved
    folder.mkdir()
    mlflow.set_tracking_uri(_tracking_uri(ctx))
    try:
        return Path(artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except MlflowException as error:
        raise TrackingError(
            f"{uri}: {error.message}", place=ctx.step, hint="check the name, the alias and MLflow"
        ) from error


def _tracking_uri(ctx: StepContext) -> str:
    uri = str(ctx.spec["tracking_uri"])
    if uri == "none":
        raise UsageError("the environment has no MLflow", place="tracking.uri", hint="name it, or use another source")
    return f"sqlite:///{ctx.site.state / 'mlflow.db'}" if uri == "sqlite" else uri
