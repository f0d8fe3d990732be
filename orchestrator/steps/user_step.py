"""What a recipe's own step gets. Imports nothing heavy: a step that does nothing costs nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.steps.user_params import Params


class StepRun:
    """What a recipe's own step gets: `def collect(run: user.StepRun) -> None`.

    Attributes:
        params: The step's `params`.
        inputs: Folder of each step that this one `needs`, by that step's name; read-only.
        out: An empty folder; what you leave there is the step's result.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        inputs: Mapping[str, Path],
        out: Path,
        *,
        on_metric: Callable[[str, float, int], None],
        on_progress: Callable[[float, float, str], None],
    ) -> None:
        self.params = Params(params)
        self.inputs = dict(inputs)
        self.out = out
        self._on_metric = on_metric
        self._on_progress = on_progress
        self.metrics: dict[str, float] = {}

    def log(self, *, step: int = 0, **metrics: float) -> None:
        """Record metrics of this step; they show while it runs.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"metric {name} is {value}")
            self.metrics[name] = float(value)
            self._on_metric(name, float(value), step)

    def progress(self, done: float, total: float, text: str = "") -> None:
        """Say how far the step is, in any unit."""
        self._on_progress(done, total, text)
