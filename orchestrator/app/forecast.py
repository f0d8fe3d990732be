"""`forecast`: what a graph will compute on a SoC, from a file, samples and nothing else."""

from __future__ import annotations

import itertools
import math
import tempfile
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from orchestrator.core.errors import UsageError, UserCodeError

if TYPE_CHECKING:
    from orchestrator.graph.forecast.predict import Evaluate
    from orchestrator.graph.forecast.result import Forecast
    from orchestrator.graph.spec import TensorSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class ForecastRequest:
    """What was asked on the command line.

    Attributes:
        samples: A `.npz` file keyed by input name, or `module:callable` called with `count`; None makes synthetic ones.
        evaluate: `module:callable`, called with `predict`.
        keep: `auto`, `none`, or names of nodes.
        prepare: Forecast what the toolchain's rewrites leave, as a recipe's run does.
        out: Folder for all files; `html` a path for the page alone.
    """

    model: Path
    soc: str | None
    precision: str
    samples: str | None = None
    count: int = 64
    evaluate: str | None = None
    keep: str | Sequence[str] = "auto"
    toolchain: str = "atc"
    prepare: bool = False
    accumulate: Literal["fp32", "fp16"] = "fp32"
    min_sqnr_db: float | None = None
    min_cosine: float | None = None
    out: Path | None = None
    html: Path | None = None


def foresee(request: ForecastRequest, progress: Callable[[float, str], None]) -> Forecast:
    """Make the forecast, and write what was asked for.

    Raises:
        UsageError: A file is not there, or an option is not of its form.
        PlanError: SoC or precision mode do not exist or do not fit.
        UserCodeError: The user's function failed, or the samples are not those that the graph declares.
        GateError: The graph is refused.
    """
    from orchestrator.core.files import write_atomic
    from orchestrator.graph.forecast.files import write_forecast
    from orchestrator.graph.forecast.page import page

    if not request.model.is_file():
        raise UsageError(f"no file {str(request.model)!r}", hint="give the path of an .onnx file")
    with tempfile.TemporaryDirectory(prefix="orchestrate-forecast-") as folder:
        found = _run(request, Path(folder), progress)
    if request.out is not None:
        write_forecast(found, request.out)
    if request.html is not None:
        write_atomic(request.html, page(found).encode())
    return found


def _run(request: ForecastRequest, folder: Path, progress: Callable[[float, str], None]) -> Forecast:
    from orchestrator.ascend.precision import policy
    from orchestrator.graph.forecast.forecast import forecast
    from orchestrator.graph.read import inspect_onnx
    from orchestrator.graph.verdict import thresholds_for

    rules = policy(request.soc, request.precision, accumulate=request.accumulate)
    graph = _graph(request, folder)
    inputs = inspect_onnx(graph).inputs
    samples = None if request.samples is None else _samples(request.samples, request.count, inputs)
    asked = _limits(request)
    return forecast(
        graph,
        policy=rules,
        samples=samples,
        thresholds=thresholds_for(rules.name, asked),
        limits=asked,
        evaluate=None if request.evaluate is None else _evaluate(request.evaluate),
        keep=cast("Literal['auto', 'none'] | Sequence[str]", request.keep),
        scratch=folder,
        progress=progress,
        name=request.model.name,
    )


def _limits(request: ForecastRequest) -> dict[str, float]:
    """Return the limits that were asked for."""
    given = {"min_sqnr_db": request.min_sqnr_db, "min_cosine": request.min_cosine}
    asked = {name: value for name, value in given.items() if value is not None}
    if not math.isfinite(asked.get("min_sqnr_db", 0.0)):
        raise UsageError(f"--min-sqnr-db {request.min_sqnr_db} is no limit", hint="a number of dB, for example 40")
    if not -1 <= asked.get("min_cosine", 0.0) <= 1:
        raise UsageError(f"--min-cosine {request.min_cosine:g} is no cosine", hint="from -1 to 1, for example 0.9995")
    return asked


def _graph(request: ForecastRequest, folder: Path) -> Path:
    if not request.prepare:
        return request.model
    from orchestrator.graph.prepare import prepare

    made = prepare(
        request.model, folder / "prepared", toolchain=request.toolchain, soc=request.soc, precision=request.precision
    )
    return made.path


def _samples(where: str, count: int, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return the samples as the graph takes them; what is wrong with a file is a wrong option, not the user's code.

    Raises:
        UsageError: The file is not readable or does not fit, or a sample has NaN or infinity.
        UserCodeError: The callable failed, or what it gave does not fit.
    """
    from orchestrator.graph.forecast.batches import Batches, fitted, nonfinite

    given = _given(where, count, inputs)
    takes = f"the graph takes {', '.join(map(str, inputs))}; axis 0 is the sample"
    try:
        samples = fitted(given, inputs)
        Batches(inputs, samples, size=1)
    except UserCodeError as error:
        family = UsageError if where.endswith(".npz") else UserCodeError
        raise family(f"{where}: {error.message}", hint=takes) from error
    bad = nonfinite(given) or nonfinite(samples)
    if bad is not None:
        raise UsageError(f"{where}: {bad}", hint="correct or leave out such samples: on them no network can be judged")
    return samples


def _given(where: str, count: int, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    if where.endswith(".npz"):
        return _read_npz(Path(where))
    if ":" not in where:
        raise UsageError(
            f"--samples {where!r} is neither a .npz file nor module:callable", hint="for example --samples real.npz"
        )
    return _called(where, count, inputs)


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"cannot read {str(path)!r}: {error}", hint="write it with numpy.savez(input=array)"
        ) from error


def _called(entrypoint: str, count: int, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Call `samples(n)`: an iterator of {input: array} with a leading axis, or one mapping with all samples."""
    from orchestrator.steps.user_code import user_code

    function = _function("--samples", entrypoint)
    with _own_words(), user_code(entrypoint, Path.cwd()):
        given: Any = function(count)
        rows: list[Any] = [given] if isinstance(given, Mapping) else list(itertools.islice(given, count))
    wanted = [spec.name for spec in inputs]
    if not rows or not all(
        isinstance(row, Mapping) and set(cast("Mapping[str, Any]", row)) == set(wanted) for row in rows
    ):
        raise UserCodeError(
            f"{entrypoint} gave no samples with the inputs {wanted}", hint="yield {input: ndarray}, axis 0 = sample"
        )
    return {name: np.concatenate([np.asarray(row[name]) for row in rows]) for name in wanted}


def _function(option: str, entrypoint: str) -> Callable[..., Any]:
    """Return the function that an option names.

    Raises:
        UsageError: There is no such module.
        UserCodeError: Importing it failed, or it has no such function.
    """
    from orchestrator.steps.user_code import load_entrypoint

    module = entrypoint.partition(":")[0]
    try:
        with _own_words():
            return load_entrypoint(entrypoint, Path.cwd())
    except UserCodeError as error:
        absent = error.__cause__
        if isinstance(absent, ModuleNotFoundError) and absent.name and f"{module}.".startswith(f"{absent.name}."):
            raise UsageError(
                f"{option} {entrypoint!r}: no module {absent.name!r} in {Path.cwd()}",
                hint=f"{absent.name}.py must lie in the folder where the command runs, or be installed",
            ) from error
        raise


@contextmanager
def _own_words() -> Generator[None]:
    """Let the user's failing code be told without the recipe and the steps that this verb does not have."""
    try:
        yield
    except UserCodeError as error:
        if error.details.get("traceback"):
            error.hint = f"correct {error.place or 'that code'} and run again"
        raise


def _evaluate(entrypoint: str) -> Evaluate:
    from orchestrator.steps.user_code import user_code

    function = _function("--evaluate", entrypoint)

    def evaluate(predict: Any) -> Mapping[str, float]:
        with _own_words(), user_code(entrypoint, Path.cwd()):
            found = function(predict)
        if not isinstance(found, Mapping) or not found:
            raise UserCodeError(f"{entrypoint} returned {found!r:.80}, expected a mapping of metrics")
        return cast("Mapping[str, float]", found)

    return evaluate
