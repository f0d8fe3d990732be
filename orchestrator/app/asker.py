"""Who asks for a rollout. Where others must approve it, that must be beyond doubt: nobody approves what they asked for."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from orchestrator.app.tokens import open_identities
from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import UsageError
from orchestrator.ledger.rows import user_name
from orchestrator.rollout.identity import given_token
from orchestrator.rollout.strategy import Strategy

TOKEN_FILE_VARIABLE: Final = "ORCHESTRATE_TOKEN_FILE"  # noqa: S105 - a name


def who_asks(workplace: Workplace, site: str, strategy: Strategy, actor: str = "") -> tuple[str, Strategy]:
    """Return who asks, and the strategy with whether approvals must be shown by tokens.

    Where the site names approvers and approvals are wanted, it is the identity of a token; else the login name. An `actor` is one
    who is known already, such as an alias of MLflow that was moved.

    Raises:
        UsageError: A token is needed, and none is given, it is none of this site's, or it has not the role `promote`.
    """
    identities = open_identities(workplace, site) if strategy.approvals else None
    if identities is None:
        return actor or user_name(), replace(strategy, by_token=False)
    if actor:
        return actor, replace(strategy, by_token=True)
    file = os.environ.get(TOKEN_FILE_VARIABLE, "")
    try:
        asker = identities.identify(given_token(Path(file) if file else None))
    except UsageError as error:
        raise UsageError(
            f"this rollout needs {strategy.approvals} approvals of others, so who asks for it must show a token: {error.message}",
            hint=f"set {TOKEN_FILE_VARIABLE} to the file of your token (`orchestrate rollout token` makes one), then repeat it",
        ) from error
    return asker.require("promote").id, replace(strategy, by_token=True)
