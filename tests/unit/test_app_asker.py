"""Who asks for a rollout that others must approve shows a token; elsewhere it is the user of the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.app import asker
from orchestrator.core.errors import UsageError
from orchestrator.ledger.rows import user_name
from orchestrator.rollout.identity import Identities, add_identity
from orchestrator.rollout.strategy import Strategy

NOWHERE = cast("Any", None)


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of ada's token; the site names approvers."""
    approvers, file = tmp_path / "approvers", tmp_path / "ada.token"
    file.write_text(add_identity(approvers, "ada.l", ["promote"]))
    file.chmod(0o600)
    monkeypatch.setattr(asker, "open_identities", lambda workplace, site: Identities(approvers))
    monkeypatch.delenv("ORCHESTRATE_TOKEN", raising=False)
    monkeypatch.delenv("ORCHESTRATE_TOKEN_FILE", raising=False)
    return file


def test_a_token_names_who_asks(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="needs 2 approvals of others") as refused:
        asker.who_asks(NOWHERE, "plant", Strategy(approvals=2))
    assert "ORCHESTRATE_TOKEN_FILE" in (refused.value.hint or "")
    monkeypatch.setenv("ORCHESTRATE_TOKEN_FILE", str(token))
    who, strategy = asker.who_asks(NOWHERE, "plant", Strategy(approvals=2))
    assert (who, strategy.by_token) == ("ada.l", True)
    assert Strategy.from_json(strategy.to_json()) == strategy
    assert asker.who_asks(NOWHERE, "plant", Strategy()) == (user_name(), Strategy())
    assert asker.who_asks(NOWHERE, "plant", Strategy(approvals=1), "alias ascend")[1].by_token


def test_who_may_only_look_asks_for_nothing(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token.write_text(add_identity(token.parent / "approvers", "eve", ["observe"]))
    monkeypatch.setenv("ORCHESTRATE_TOKEN_FILE", str(token))
    with pytest.raises(UsageError, match="eve may not promote"):
        asker.who_asks(NOWHERE, "plant", Strategy(approvals=2))


def test_where_nobody_is_named_it_is_the_user_whatever_a_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asker, "open_identities", lambda workplace, site: None)
    before = user_name()
    monkeypatch.setenv("LOGNAME", "somebody-else")
    monkeypatch.setenv("USER", "somebody-else")
    assert asker.who_asks(NOWHERE, "plant", Strategy(approvals=2, by_token=True)) == (before, Strategy(approvals=2))
