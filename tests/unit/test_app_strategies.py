"""A promotion without a recipe goes by the endpoint's last strategy, which must be enough for what the pool demands now."""

from __future__ import annotations

import pytest

from orchestrator.app.strategies import _at_least
from orchestrator.core.errors import UsageError
from orchestrator.environment.rollout import RolloutPolicy
from orchestrator.rollout.evidence.spec import AnalysisSpec, MetricSpec
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_steps import SetWeight

LAST = Strategy(
    kind="canary",
    steps=(SetWeight(0), SetWeight(100)),
    analysis=AnalysisSpec(metrics=(MetricSpec(name="error_rate"),), min_samples=1),
)


@pytest.mark.parametrize(
    ("policy", "lacks"),
    [
        ({"max_first_weight": 10}, "its first weight is 100 %"),
        ({"min_samples": 5000}, "error_rate has 1 min_samples"),
        ({"min_steps": 3}, "it has 2 steps"),
        ({"require": ["latency"]}, "latency must judge it"),
        ({"max_margins": {"error_rate": 0.001}}, "the margin 0.01 of error_rate is above 0.001"),
    ],
)
def test_what_the_pool_demands_holds_without_a_recipe_too(policy: dict[str, object], lacks: str) -> None:
    with pytest.raises(UsageError, match="no longer enough for its pool") as refused:
        _at_least(LAST, RolloutPolicy.model_validate(policy))
    assert lacks in refused.value.message


def test_more_approvals_are_taken_over() -> None:
    assert _at_least(LAST, RolloutPolicy.model_validate({"approvals": 2})).approvals == 2
    assert _at_least(LAST, None) is LAST
