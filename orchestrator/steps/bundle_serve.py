"""What a bundle says about serving: `serve.json`, the user's own files that the stages need, and samples that prove them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from orchestrator.bundle.names import check_file_names
from orchestrator.bundle.serve_golden import SERVE_GOLDEN, ServeGolden, write_serve_golden
from orchestrator.core.digests import canonical_json, sha256_file
from orchestrator.core.errors import GateError, UserCodeError
from orchestrator.graph.spec import TensorSpec
from orchestrator.recipe.source_files import source_files
from orchestrator.recipe.source_path import is_in_package, source_path
from orchestrator.serving.protocol.tensors import Tensor, from_array
from orchestrator.serving.runtimes.api import ExecutionFailed, InputRejected
from orchestrator.serving.runtimes.stage_call import call_stage
from orchestrator.serving.serve_settings import (
    SCHEMA,
    SERVE_FOLDER,
    SERVE_JSON,
    ServeSettings,
    Stage,
    parse_serve_settings,
    stage_specs,
)
from orchestrator.steps.api import StepContext
from orchestrator.steps.model_inputs import Array, Predict
from orchestrator.steps.user_code import load_entrypoint, user_code

LARGEST_BYTES: Final = 64 << 20
"""All files of the stages together; larger things are data, which a model's weights or outputs should hold."""
_PICKLES: Final = frozenset([".pkl", ".pickle", ".joblib", ".pt", ".pth", ".dill", ".cloudpickle", ".pyc"])
_PICKLE_STARTS: Final = tuple(bytes([0x80, version]) for version in range(2, 6))


def serve_files(
    ctx: StepContext, card: Mapping[str, Any], golden: Mapping[str, Array], predict: Predict
) -> dict[str, Path]:
    """Return name in the bundle -> file; empty where the recipe says nothing about serving.

    Args:
        ctx: Of the step; its spec holds the recipe's `serve:` block.
        card: The bundle's.
        golden: The model's golden inputs, which clients send where there is no `preprocess`.
        predict: The trained model.

    Raises:
        UserCodeError: A stage failed on the samples, or gave something else than declared.
        GateError: A file cannot be carried.
    """
    spec = ctx.spec.get("serve")
    if spec is None:
        return {}
    files = stage_files(ctx.recipe_dir, spec)
    row = _serve_json(spec, {name: sha256_file(path) for name, path in files.items()})
    made = ctx.out / "serve"
    made.mkdir(parents=True)
    (made / SERVE_JSON).write_bytes(canonical_json(row))
    settings = parse_serve_settings(row)
    files[SERVE_JSON] = made / SERVE_JSON
    if len(settings.stages) > 1:
        asked = _asked(ctx, str(spec["samples"])) if settings.preprocess else dict(golden)
        write_serve_golden(made / SERVE_GOLDEN, _prove(ctx.recipe_dir, settings, card, asked, predict))
        files[SERVE_GOLDEN] = made / SERVE_GOLDEN
    return files


def try_stages(ctx: StepContext, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Look before anything is trained: the files can be carried, the stages import, and `preprocess` gives the model's inputs.

    What `postprocess` makes of the outputs is seen only once they mean something.

    Args:
        ctx: Of the step; its spec holds the recipe's `serve:` block.
        inputs: Of the untrained model.
        outputs: Likewise.

    Returns:
        One line of evidence.

    Raises:
        UserCodeError: A stage does not import, or `preprocess` fails on a sample or gives something else than declared.
        GateError: A file cannot be carried.
    """
    spec = ctx.spec["serve"]
    files = stage_files(ctx.recipe_dir, spec)
    settings = parse_serve_settings(_serve_json(spec, {}))
    if settings.postprocess:
        load_entrypoint(settings.postprocess, ctx.recipe_dir)
    if not settings.preprocess:
        return f"{len(files)} files"
    card = {"inputs": [tensor.to_json() for tensor in inputs], "outputs": [tensor.to_json() for tensor in outputs]}
    found = _run(ctx.recipe_dir, settings, card, "preprocess", _asked(ctx, str(spec["samples"])))
    return f"{len(files)} files; " + ", ".join(f"{n} {value.dtype}{list(value.shape)}" for n, value in found.items())


def _serve_json(spec: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    row = {key: value for key, value in spec.items() if key not in ("samples", "further")}
    return {**row, "schema": SCHEMA, "files": dict(digests)}


def stage_files(folder: Path, spec: Mapping[str, Any]) -> dict[str, Path]:
    """Return the Python files that the stages can reach below the recipe's folder, and what `serve.files` names.

    Args:
        folder: The recipe's.
        spec: `serve` of the step's spec.

    Raises:
        GateError: One cannot be carried.
    """
    entrypoints = [spec[stage] for stage in ("preprocess", "postprocess") if spec[stage]]
    if not entrypoints:
        return {}
    packaged = [name for name in spec["further"] if is_in_package(name)]
    own = source_files(folder, entrypoints, [name for name in spec["further"] if not is_in_package(name)])
    found = {f"{SERVE_FOLDER}/{name}": path for name, path in own.items()}
    found |= {f"{SERVE_FOLDER}/{name.rpartition('/')[2]}": source_path(name, folder) for name in packaged}
    problem = check_file_names(found)
    if not problem and len(found) != len(own) + len(packaged):
        problem = "two files would have the same name"
    for name, path in found.items():
        problem = problem or _unfit(name, path, None if path in own.values() else path.parent, folder)
    total = sum(path.stat().st_size for path in found.values()) if not problem else 0
    if total > LARGEST_BYTES:
        problem = f"they have {total} bytes, at most {LARGEST_BYTES} are carried"
    if problem:
        raise GateError(
            f"the files of the stages cannot be carried: {problem}", place="serve.files", hint="correct `serve.files`"
        )
    return found


def _unfit(name: str, path: Path, packaged: Path | None, folder: Path) -> str:
    if packaged is None and not path.resolve().is_relative_to(folder.resolve()):
        return f"{name} is a link to {path.resolve()}, outside the recipe's folder"
    with path.open("rb") as file:
        start = file.read(2)
    if path.suffix.lower() in _PICKLES or start in _PICKLE_STARTS:
        return (
            f"{name} is a pickle or compiled code, which would run unread; store plain data (JSON, safetensors, text)"
        )
    return ""


def _asked(ctx: StepContext, entrypoint: str) -> dict[str, Array]:
    function, wanted = load_entrypoint(entrypoint, ctx.recipe_dir), int(ctx.spec["samples_count"])
    with user_code(entrypoint, ctx.recipe_dir):
        given = itertools.islice(cast("Iterable[Mapping[str, Array]]", function(wanted)), wanted)
        found = [{name: np.asarray(value) for name, value in sample.items()} for sample in given]
        if found:
            return {name: np.concatenate([sample[name] for sample in found]) for name in found[0]}
    raise UserCodeError(f"{entrypoint} gave no sample", place=ctx.step, hint="yield at least one {input: ndarray}")


def _prove(
    folder: Path, settings: ServeSettings, card: Mapping[str, Any], asked: dict[str, Array], predict: Predict
) -> ServeGolden:
    inputs = _run(folder, settings, card, "preprocess", asked) if settings.preprocess else asked
    outputs = predict(inputs)
    answers = _run(folder, settings, card, "postprocess", outputs) if settings.postprocess else outputs
    return ServeGolden(asked, inputs, outputs, answers)


def _run(
    folder: Path, settings: ServeSettings, card: Mapping[str, Any], stage: Stage, given: Mapping[str, Array]
) -> dict[str, Array]:
    entrypoint = settings.preprocess if stage == "preprocess" else settings.postprocess
    what = f"{stage} {entrypoint}"
    takes, gives = stage_specs(settings, card, stage)
    function = load_entrypoint(str(entrypoint), folder)
    if set(given) != {spec.name for spec in takes}:
        raise UserCodeError(
            f"{what} takes {sorted(spec.name for spec in takes)}, it is given {sorted(given)}",
            place=f"serve.{stage}",
            hint="`serve.samples` must yield what `serve.inputs` declares",
        )
    tensors = [_tensor(spec.name, spec.datatype, given[spec.name], what) for spec in takes]
    try:
        found = call_stage(function, what, tensors, gives, binary=settings.binary, rows=tensors[0].shape[0])
    except (InputRejected, ExecutionFailed) as error:
        raise UserCodeError(error.message, place=f"serve.{stage}", hint="correct the recipe's code") from error
    return {tensor.name: cast("Array", tensor.array()) for tensor in found}


def _tensor(name: str, datatype: str, array: Array, what: str) -> Tensor:
    try:
        tensor = from_array(name, array)
    except ValueError as error:
        raise UserCodeError(f"{what}: {error}", place="serve.samples", hint="yield numbers, text or bytes") from error
    if tensor.datatype != datatype:
        raise UserCodeError(
            f"{what}: input {name!r} is {tensor.datatype}, declared is {datatype}",
            place="serve.samples",
            hint="correct `serve.inputs` or what `serve.samples` yields",
        )
    return tensor
