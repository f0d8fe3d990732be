"""The engine's tables: which changes of state are legal, and what retries cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import Conflict, InternalError, RetryClass
from orchestrator.engine.retry import Budget
from orchestrator.engine.transitions import EXECUTION, STEP, ExecutionState, StepState, check_execution, check_step
from orchestrator.plan.model import Retries


def test_tables_name_every_state():
    assert set(STEP) == set(StepState)
    assert set(EXECUTION) == set(ExecutionState)


def test_success_is_final():
    for state in StepState:
        with pytest.raises(InternalError, match="is succeeded and cannot become"):
            check_step("s", StepState.SUCCEEDED, state)
    for state in ExecutionState:
        with pytest.raises(Conflict, match="is succeeded and cannot become"):
            check_execution("x", ExecutionState.SUCCEEDED, state)


@given(st.lists(st.sampled_from(StepState), max_size=12))
def test_a_step_never_runs_again_without_becoming_pending(walk):
    state, ran = StepState.PENDING, False
    for new in walk:
        if new not in STEP[state]:
            continue
        if new is StepState.RUNNING:
            assert not ran or state is not StepState.FAILED
            ran = True
        state = new
    assert state in StepState


@given(
    st.integers(0, 5), st.integers(0, 5), st.lists(st.sampled_from([RetryClass.USER, RetryClass.INFRA]), max_size=20)
)
def test_classes_do_not_spend_each_others_budget(user, infra, failures):
    budget = Budget(Retries(user=user, infra=infra), first_delay_s=1.0)
    granted = {RetryClass.USER: 0, RetryClass.INFRA: 0}
    for failure in failures:
        if budget.spend(failure) is not None:
            granted[failure] += 1
    assert granted[RetryClass.USER] == min(user, failures.count(RetryClass.USER))
    assert granted[RetryClass.INFRA] == min(infra, failures.count(RetryClass.INFRA))


def test_restarts_inside_a_step_count():
    budget = Budget(Retries(infra=3))
    assert budget.spend(RetryClass.INFRA, spent_inside=3) is None
    assert Budget(Retries(infra=3)).spend(RetryClass.INFRA, spent_inside=2) is not None


def test_delays_double_up_to_a_minute_and_never_means_never():
    budget = Budget(Retries(infra=9), first_delay_s=1.0)
    assert [budget.spend(RetryClass.INFRA) for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert budget.spend(RetryClass.INFRA) is None
    assert budget.spend(RetryClass.NEVER) is None
    assert budget.describe(RetryClass.INFRA) == "infra 9 of 9"
