"""Gates: `accuracy >= 0.97`. Judged on stored metrics, so that a changed gate needs no new run."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from orchestrator.core.errors import GateError, OrchestratorError

_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
_GATE: Final = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(>=|<=|==|>|<)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition on one metric."""

    metric: str
    compare: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Parse `metric >= number`.

        Raises:
            ValueError: Not of that form.
        """
        match = _GATE.fullmatch(text)
        if match is None:
            raise ValueError(f"not a gate: {text!r} (write `accuracy >= 0.97`)")
        return cls(match[1], match[2], float(match[3]))

    def judge(self, metrics: Mapping[str, float]) -> str | None:
        """Return None when the gate is met, else why not and by how much. NaN never meets a gate."""
        if self.metric not in metrics:
            close = get_close_matches(self.metric, metrics, n=1)
            meant = f"; did you mean `{close[0]}`?" if close else ""
            return f"{self.metric} was not measured (have: {', '.join(sorted(metrics)) or 'no metric'}{meant})"
        value = metrics[self.metric]
        if math.isfinite(value) and _COMPARE[self.compare](value, self.limit):
            return None
        by = f", missed by {abs(value - self.limit):.6g}" if math.isfinite(value) else ""
        return f"{self.metric} is {value:.6g}, the gate asks {self.compare} {self.limit:.6g}{by}"


def judge_result(step: str, spec: Mapping[str, Any], metrics: Mapping[str, float]) -> OrchestratorError | None:
    """Judge a step's stored metrics by the gates of its spec.

    Args:
        step: The step's name.
        spec: Its spec; `gates` is a list of texts.
        metrics: What it measured.

    Returns:
        None when all gates are met, else the error that names each miss.
    """
    gates: Sequence[str] = spec.get("gates", ())
    misses = [miss for gate in gates if (miss := Gate.parse(gate).judge(metrics)) is not None]
    if not misses:
        return None
    return GateError(
        "; ".join(misses),
        place=step,
        hint="improve the model, or correct the gate in the recipe (the result is kept; no step runs again for it)",
        details={"misses": misses, "metrics": dict(metrics)},
    )
