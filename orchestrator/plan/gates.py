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


def judge_result(step: str, spec: Mapping[str, Any], result: Mapping[str, Any]) -> OrchestratorError | None:
    """Judge a step's stored result by the gates of its spec and, where it compared numbers, by the targets' limits.

    Args:
        step: The step's name.
        spec: Its spec; `gates` is a list of texts, `parity` the limits by target.
        result: Its stored result: metrics, and in `facts.links` what was compared.

    Returns:
        None when all is met, else the error that names each miss.
    """
    metrics: Mapping[str, float] = result["metrics"]
    gates: Sequence[str] = spec.get("gates", ())
    found = [miss for gate in gates if (miss := Gate.parse(gate).judge(metrics)) is not None]
    links = result["facts"].get("links", ())
    if links:
        found += _missed_links(links, spec.get("parity", {}))
    if not found:
        return None
    what = "the limit of `targets[].parity`" if links else "the gate"
    return GateError(
        "; ".join(found),
        place=step,
        hint=f"improve the model, or correct {what} in the recipe (the result is kept; no step runs again for it)",
        details={"misses": found, "metrics": dict(metrics)},
    )


def _missed_links(links: Sequence[Mapping[str, Any]], parity: Mapping[str, Any]) -> list[str]:
    from orchestrator.graph.links import Link, misses  # needs NumPy, which planning a first run does not

    return misses([Link.from_json(link) for link in links], parity)
