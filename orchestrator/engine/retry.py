"""Retry budgets: each class of failure has its own, so that a preempted job does not use up the user's tries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from orchestrator.core.errors import RetryClass
from orchestrator.plan.model import Retries

_LONGEST_DELAY_S: Final = 60.0


@dataclass(slots=True)
class Budget:
    """What is left of one step's retries.

    Args:
        allowed: The step's budgets.
        first_delay_s: Delay before the first further attempt; doubles each time, to at most a minute.
    """

    allowed: Retries
    first_delay_s: float = 1.0
    used: Counter[str] = field(default_factory=Counter[str])

    def spend(self, retry: RetryClass, spent_inside: int = 0) -> float | None:
        """Take one further attempt from the class's budget.

        Args:
            retry: The class of the failure.
            spent_inside: Restarts that the step made itself before it gave up; they count, so budgets do not multiply.

        Returns:
            Seconds to wait before it, or None when the budget is empty or the class has none.
        """
        if retry is RetryClass.NEVER:
            return None
        self.used[retry] += spent_inside
        used, limit = self.used[retry], int(getattr(self.allowed, retry))
        if used >= limit:
            return None
        self.used[retry] += 1
        return min(self.first_delay_s * 2**used, _LONGEST_DELAY_S)

    def describe(self, retry: RetryClass) -> str:
        """Say how much of the budget is used: `infra 2 of 3`."""
        return f"{retry} {self.used[retry]} of {int(getattr(self.allowed, retry, 0))}"
