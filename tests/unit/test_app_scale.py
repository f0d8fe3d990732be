"""`endpoint scale` and `endpoint delete` as commands: what is asked wrongly is refused with the fix, before anything is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.ledger_samples import request

from orchestrator.app.scale import delete_endpoint, scale_endpoint
from orchestrator.app.wiring import Workplace, open_workplace
from orchestrator.core.errors import Unreachable, UsageError
from orchestrator.ledger import GenerationState, Owner


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    (tmp_path / "e.yaml").write_text(
        f"environment: 1\nstate: {tmp_path}/state\nsites: {{local: {{kind: local}}}}\n"
        "pools: {edge: {site: local, soc: Ascend310P3, rehearsal: true, slots: 2}}\n"
    )
    made = open_workplace(tmp_path / "e.yaml")
    with made.open_ledger() as ledger:
        lease = ledger.leases.acquire("endpoint/digits", Owner.here("test"))
        ledger.generations.append(request(), lease)
        ledger.generations.set_state("digits", 1, GenerationState.LIVE, lease, actor="ada")
        ledger.leases.release(lease)
    return made


def test_an_unknown_endpoint_is_refused_with_the_nearest_name(workplace: Workplace) -> None:
    for command in (
        lambda: scale_endpoint(workplace, "digit", "1", None, print),
        lambda: delete_endpoint(workplace, "digit"),
    ):
        with pytest.raises(UsageError, match="there is no endpoint 'digit'") as refused:
            command()
        assert (refused.value.exit_code, refused.value.hint) == (2, "Did you mean `digits`?")


@pytest.mark.parametrize("slots", ["0", "-1", "two", "1.5", "", "9999"])
def test_a_number_of_slots_that_is_none(workplace: Workplace, slots: str) -> None:
    with pytest.raises(UsageError, match="is no number of slots") as refused:
        scale_endpoint(workplace, "digits", slots, None, print)
    assert "endpoint delete" in refused.value.hint


def test_more_slots_than_the_pool_has(workplace: Workplace) -> None:
    with pytest.raises(UsageError, match="3 slots are asked for, the pool 'edge' has 2"):
        scale_endpoint(workplace, "digits", "3", None, print)


def test_a_site_that_is_down_changes_nothing(workplace: Workplace) -> None:
    with pytest.raises(Unreachable):
        scale_endpoint(workplace, "digits", "1", None, print)
    with pytest.raises(Unreachable):
        delete_endpoint(workplace, "digits")
    with workplace.open_ledger() as ledger:
        assert ledger.generations.slots("digits") is None
        assert ledger.generations.live("digits") is not None
