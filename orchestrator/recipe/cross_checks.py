"""What no single field can know: fields against each other, and the recipe against the files beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.core.errors import RecipeError
from orchestrator.recipe.entrypoints import find_fault
from orchestrator.recipe.model import RESERVED_STEPS, Recipe
from orchestrator.recipe.problems import Loc, did_you_mean
from orchestrator.recipe.rollout_checks import rollout_findings
from orchestrator.recipe.source_path import is_in_package, source_path

Finding = tuple[Loc, str]
"""A path and what is wrong there."""


def cross_check(recipe: Recipe, folder: Path) -> Iterator[Finding]:
    """Yield everything that does not fit together.

    Args:
        recipe: Valid field by field.
        folder: Where the user's code is.
    """
    yield from _step_names(recipe)
    yield from _needs(recipe)
    yield from _parts(recipe)
    yield from _targets(recipe)
    yield from _serve(recipe)
    yield from rollout_findings(recipe.rollout)
    yield from _entrypoints(recipe, folder)
    yield from _files(recipe, folder)


def entrypoints_of(recipe: Recipe) -> Iterator[tuple[Loc, str]]:
    """Yield every entry point of a recipe with its path."""
    for index, step in enumerate(recipe.steps):
        if step.entrypoint is not None:
            yield ("steps", index, "entrypoint"), step.entrypoint
    if recipe.model is not None:
        yield ("model", "factory"), recipe.model.factory
    if recipe.train is not None and recipe.train.entrypoint is not None:
        yield ("train", "entrypoint"), recipe.train.entrypoint
    if recipe.evaluate is not None:
        yield ("evaluate", "entrypoint"), recipe.evaluate.entrypoint
    if recipe.samples is not None:
        yield ("samples",), recipe.samples
    if recipe.serve is not None:
        for name in ("preprocess", "postprocess", "samples"):
            entrypoint = getattr(recipe.serve, name)
            if entrypoint is not None:
                yield ("serve", name), entrypoint


def _step_names(recipe: Recipe) -> Iterator[Finding]:
    seen: set[str] = set()
    of_targets = {f"{kind}-{target.name}" for target in recipe.targets for kind in ("forecast", "compile")}
    for index, step in enumerate(recipe.steps):
        at: Loc = ("steps", index, "name")
        if step.name in seen:
            yield at, f"a step `{step.name}` stands above already"
        if step.name in RESERVED_STEPS | of_targets:
            yield at, f"`{step.name}` is a step that the program adds itself; choose another name"
        seen.add(step.name)


def _needs(recipe: Recipe) -> Iterator[Finding]:
    names = [step.name for step in recipe.steps]
    for index, step in enumerate(recipe.steps):
        for position, need in enumerate(step.needs):
            at: Loc = ("steps", index, "needs", position)
            if need not in names:
                yield at, f"there is no own step `{need}`{did_you_mean(need, (n for n in names if n != step.name))}"
            elif need in step.needs[:position]:
                yield at, f"`{need}` stands twice"
    yield from _cycles(recipe)


def _cycles(recipe: Recipe) -> Iterator[Finding]:
    """Yield each cycle once, at the need that closes it. Walks with a stack: a chain may be longer than Python's."""
    needs = {step.name: step.needs for step in recipe.steps}
    index = {step.name: number for number, step in enumerate(recipe.steps)}
    done: set[str] = set()
    for root in needs:
        trail: list[tuple[str, int]] = [(root, 0)] if root not in done else []
        while trail:
            name, position = trail.pop()
            if position >= len(needs[name]):
                done.add(name)
                continue
            trail.append((name, position + 1))
            need = needs[name][position]
            walked = [each for each, _ in trail]
            if need in walked:
                circle = " → ".join([*walked[walked.index(need) :], need])
                yield ("steps", index[name], "needs", position), f"the steps need each other: {circle}"
            elif need in needs and need not in done:
                trail.append((need, 0))


def _parts(recipe: Recipe) -> Iterator[Finding]:
    """Check which sections need which others."""
    if recipe.train is not None and recipe.source is not None:
        yield ("source",), "`train` and `source` exclude each other; keep one"
        return
    produces = recipe.train is not None or recipe.source is not None
    idle = (
        []
        if produces
        else [name for name in ("evaluate", "rollout", "targets", "samples", "serve") if getattr(recipe, name)]
    )
    for name in idle:
        yield (name,), "needs a model to work on: add `train` or `source`"
    section = "train" if recipe.train is not None else "source"
    if produces and recipe.model is None and not (recipe.source is not None and recipe.source.is_graph):
        yield (section,), "needs `model` (factory, inputs, outputs) beside it"
    if not (produces or recipe.steps or idle):
        yield (), "there is nothing to do: add `train`, `source` or `steps`"


def _targets(recipe: Recipe) -> Iterator[Finding]:
    names = [target.name for target in recipe.targets]
    dims = _named_dims(recipe)
    for index, target in enumerate(recipe.targets):
        if target.name in names[:index]:
            yield ("targets", index, "name"), f"a target `{target.name}` stands above already"
        if dims is not None:
            for dim in target.shapes:
                if dim not in dims:
                    message = f"no input of the model has a size named `{dim}`{did_you_mean(dim, dims)}"
                    yield ("targets", index, "shapes", dim), message
        if target.parity.metric_drop and recipe.evaluate is None:
            yield ("targets", index, "parity", "metric_drop"), "needs `evaluate`, which measures the metrics"


def _serve(recipe: Recipe) -> Iterator[Finding]:
    serve = recipe.serve
    if serve is None:
        return
    for name, stage in (("inputs", "preprocess"), ("outputs", "postprocess"), ("samples", "preprocess")):
        if getattr(serve, name) is not None and getattr(serve, stage) is None:
            yield ("serve", name), f"needs `{stage}`, which would make the difference"
    if serve.preprocess is not None and serve.samples is None:
        yield (
            ("serve", "preprocess"),
            "needs `samples` beside it: what clients send, to prove the stage before it serves",
        )
    other = next((target for target in recipe.targets if target.format != "om"), None)
    if serve.isolation == "shared" and other is not None:
        text = f"target `{other.name}` is {other.format}, which cannot share a process: only om can; use `process`, or an om target"
        yield ("serve", "isolation"), text
    yield from _max_batch(recipe, serve.max_batch)
    if serve.files and serve.preprocess is None and serve.postprocess is None:
        yield ("serve", "files"), "needs a stage that reads them: `preprocess` or `postprocess`"


def _max_batch(recipe: Recipe, wanted: int | None) -> Iterator[Finding]:
    """Yield where a batch is asked for that no target is compiled for: it would never be filled."""
    rows = {tensor.shape[0] for tensor in (recipe.model.inputs.values() if recipe.model else ()) if tensor.shape}
    for target in recipe.targets if wanted is not None else ():
        sizes = [size for dim in rows for size in (target.shapes.get(dim, ()) if isinstance(dim, str) else (dim,))]
        if wanted and sizes and wanted > max(sizes):
            text = f"target `{target.name}` takes at most {max(sizes)} rows, {wanted} are never sent; add that size to its `shapes`"
            yield ("serve", "max_batch"), text
            return


def _named_dims(recipe: Recipe) -> set[str] | None:
    if recipe.model is None:
        return None
    return {dim for tensor in recipe.model.inputs.values() for dim in tensor.shape if isinstance(dim, str)}


def _entrypoints(recipe: Recipe, folder: Path) -> Iterator[Finding]:
    for loc, entrypoint in entrypoints_of(recipe):
        fault = find_fault(folder, entrypoint)
        if fault:
            yield loc, fault


def _files(recipe: Recipe, folder: Path) -> Iterator[Finding]:
    for index, pattern in enumerate(recipe.files):
        if next(_matching(folder, pattern), None) is None:
            yield ("files", index), f"no file below the recipe's folder matches `{pattern}`"
    for index, pattern in enumerate(recipe.serve.files if recipe.serve is not None else ()):
        if is_in_package(pattern):
            fault = _missing(pattern, folder)
        else:
            matches = next(_matching(folder, pattern), None) is not None
            fault = "" if matches else f"no file below the recipe's folder matches `{pattern}`"
        if fault:
            yield ("serve", "files", index), fault
    source = recipe.source
    for name in ("onnx", "safetensors", "torch"):
        file = getattr(source, name, None)
        fault = _missing(file, folder) if file is not None else ""
        if fault:
            yield ("source", name), fault


def _missing(file: str, folder: Path) -> str:
    try:
        return "" if source_path(file, folder).is_file() else f"there is no file {file}"
    except RecipeError as error:
        return f"{error.message}; {error.hint}"


def _matching(folder: Path, pattern: str) -> Iterator[Path]:
    try:
        yield from (path for path in folder.glob(pattern) if path.is_file())
    except (ValueError, NotImplementedError):
        return  # Patterns that pathlib refuses, such as `a**b`, match nothing.
