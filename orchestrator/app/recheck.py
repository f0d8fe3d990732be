"""`recheck`: take the verdict of a stored parity again, under other limits. Nothing runs again (DESIGN D10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import UsageError
from orchestrator.graph.links import Link, misses
from orchestrator.ledger import Ledger, StepRow
from orchestrator.recipe import Recipe
from orchestrator.recipe.policy import Policy

_LOOK_BACK = 200


@dataclass(frozen=True, slots=True)
class Rechecked:
    """A verdict taken again.

    Attributes:
        execution: Whose measurements were judged.
        limits: Target -> the limits that ruled.
    """

    recipe: str
    execution: str
    samples: int
    links: tuple[Link, ...]
    limits: Mapping[str, Mapping[str, Any]]
    misses: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every link that was measured keeps its limits."""
        return not self.misses

    def to_json(self) -> dict[str, Any]:
        """Return what `recheck --json` prints."""
        return {
            "recipe": self.recipe,
            "execution": self.execution,
            "passed": self.passed,
            "samples": self.samples,
            "limits": {name: dict(value) for name, value in self.limits.items()},
            "misses": list(self.misses),
            "links": [_row(link, self.limits) for link in self.links],
        }


def recheck(
    workplace: Workplace, recipe: Recipe, policy: Policy | None = None, execution: str | None = None
) -> Rechecked:
    """Judge the last parity measurements of a recipe by the recipe's limits as they are now, or by a policy's.

    Args:
        workplace: Where it ran.
        recipe: As it is now, `--set` applied.
        policy: Limits that rule in place of the recipe's, for the targets that it names.
        execution: Whose measurements; the newest that has some when None.

    Raises:
        UsageError: Nothing was measured, or the policy names a target that was not.
    """
    limits = {target.name: target.parity.model_dump(mode="json") for target in recipe.targets}
    if policy is not None:
        limits |= {name: parity.model_dump(mode="json") for name, parity in policy.targets.items()}
    with workplace.look_into_ledger() as ledger:
        row = _measured(ledger, recipe.name, execution)
    links = tuple(Link.from_json(link) for link in row.facts["links"])
    known = {link.target for link in links} - {""}
    strange = sorted(set(policy.targets) - known) if policy is not None else []
    if strange:
        have = ", ".join(sorted(known)) or "none"
        raise UsageError(f"the policy names target {strange[0]!r}, which was not measured", hint=f"measured: {have}")
    found = misses(links, limits)
    return Rechecked(recipe.name, row.execution, int(row.facts["samples"]), links, limits, tuple(found))


def _measured(ledger: Ledger, recipe: str, execution: str | None) -> StepRow:
    rows = [ledger.executions.get(execution)] if execution else ledger.executions.list(recipe, limit=_LOOK_BACK)
    for row in rows:
        for step in ledger.executions.steps(row.id):
            if step.kind == "parity" and step.facts.get("links"):
                return step
    what = f"execution {execution}" if execution else f"no execution of {recipe!r} here"
    raise UsageError(
        f"{what} has {'no ' if execution else ''}parity measurements",
        hint="run the recipe first; it needs `samples`",
    )


def _row(link: Link, limits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    verdict = link.judge(limits)
    asked = link.thresholds(limits)
    return {
        "link": link.name,
        "device": link.device,
        "passed": None if verdict is None else verdict.passed,
        "skipped": link.skipped,
        "worst_sqnr_db": link.worst_sqnr_db,
        "min_sqnr_db": asked.min_sqnr_db,
        "verdict": None if verdict is None else verdict.to_json(),
    }
