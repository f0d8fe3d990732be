"""The bundle's own Python before or after the model, in a CPU process: `module:function` below the bundle's `serve` folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, cast

from orchestrator.bundle.unpack import read_card
from orchestrator.core.errors import ServingError
from orchestrator.serving.protocol.tensors import Tensor, TensorSpec
from orchestrator.serving.runtimes.api import Bucket, Job, Session
from orchestrator.serving.runtimes.in_collect import InCollect
from orchestrator.serving.runtimes.sizes import MAX_BATCH, batches
from orchestrator.serving.runtimes.stage_call import Function, call_stage
from orchestrator.serving.serve_settings import (
    SERVE_FOLDER,
    STAGE_DEVICE,
    ServeSettings,
    model_specs,
    read_serve_settings,
    stage_specs,
)

NAME: Final = "python-stage"


def load(job: Job) -> Session:
    """Import the stage from the verified bundle.

    Raises:
        ServingError: The bundle has no such stage, or its code does not import here.
    """
    settings = read_serve_settings(job.folder)
    entrypoint = settings.preprocess if job.stage == "preprocess" else settings.postprocess
    if job.stage not in ("preprocess", "postprocess") or not entrypoint:
        raise ServingError(f"the bundle has no stage {job.stage!r}", place=str(job.folder), hint="deploy it again")
    card = read_card(job.folder)
    try:
        inputs, outputs = stage_specs(settings, card, job.stage)
        joins = _joins(inputs, outputs, batches(*model_specs(card)))
    except ValueError as error:
        raise ServingError(str(error), place=str(job.folder), hint="make the bundle again") from error
    function = _function(entrypoint, (job.folder / SERVE_FOLDER).resolve())
    return StageSession(function, f"{job.stage} {entrypoint}", settings, inputs, outputs, joins=joins)


class StageSession(InCollect):
    """See `Session`. A batch runs in `collect`: while it does, the next one arrives in the socket."""

    def __init__(
        self,
        function: Function,
        what: str,
        settings: ServeSettings,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        joins: bool,
    ) -> None:
        super().__init__()
        self._function, self._what, self._binary = function, what, settings.binary
        self.device = STAGE_DEVICE
        self.inputs, self.outputs = inputs, outputs
        self.max_batch = MAX_BATCH if joins else 1
        self.depth = 1  # what ends the process takes no batch along that only waits
        self.buckets: tuple[Bucket, ...] = ()
        self._joins = joins

    def collect(self, ticket: int) -> list[Tensor]:
        """Call the stage."""
        inputs = self.taken(ticket)
        rows = inputs[0].shape[0] if self._joins else None
        return call_stage(self._function, self._what, inputs, self.outputs, binary=self._binary, rows=rows)

    def close(self) -> None:
        """Nothing to free."""
        self._waiting.clear()


def _joins(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], model_batches: bool) -> bool:
    """Requests may be joined where the model takes any number of rows and so does the stage."""
    return model_batches and all(spec.dims and isinstance(spec.dims[0], str) for spec in (*inputs, *outputs))


def _function(entrypoint: str, folder: Path) -> Function:
    module_name, _, name = entrypoint.partition(":")
    sys.dont_write_bytecode = True  # the bundle is read-only and its files are counted
    sys.path.insert(0, str(folder))
    module = _import(module_name, folder)
    found = getattr(module, name, None)
    if not callable(found):
        raise ServingError(f"{module_name} has no function {name!r}", place=str(folder), hint="make the bundle again")
    return cast("Function", found)


def _import(name: str, folder: Path) -> ModuleType:
    top = name.partition(".")[0]
    loaded = sys.modules.get(top)
    if loaded is not None and not _lies_below(loaded, folder):
        # What this program itself has imported keeps its module; only the name is the stage's.
        for key in [key for key in sys.modules if key == top or key.startswith(f"{top}.")]:
            del sys.modules[key]
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        lacks = error.name if isinstance(error, ModuleNotFoundError) else ""
        raise ServingError(
            f"the stage {name} cannot be imported: {type(error).__name__}: {error}",
            place=str(folder),
            hint=f"install {lacks} where the site serves" if lacks else "correct the recipe's code and deploy again",
        ) from error
    if not _lies_below(module, folder):
        raise ServingError(
            f"module {name} came from {module.__file__}, not from the bundle",
            place=str(folder),
            hint="rename the recipe's module: an installed one has its name",
        )
    return module


def _lies_below(module: ModuleType, folder: Path) -> bool:
    return bool(module.__file__) and Path(str(module.__file__)).resolve().is_relative_to(folder)
