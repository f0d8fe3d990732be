"""What the buttons do. Each is recorded with the identity of who pressed it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Final

from orchestrator.app import rollouts
from orchestrator.app.rollout_projection import start
from orchestrator.app.wiring import Workplace
from orchestrator.console.leading import Leading
from orchestrator.core.errors import Conflict, OrchestratorError, UsageError
from orchestrator.ledger import Ledger
from orchestrator.rollout.identity import Identity, Role

ACTIONS: Final[Mapping[str, Role]] = {
    "pause": "promote",
    "resume": "promote",
    "abort": "promote",
    "approve": "approve",
    "reject": "approve",
    "rollback": "promote",
}
"""The role that each button needs."""

_ASKED: Final = {
    "pause": "Asked to pause: the weights stay as they are.",
    "resume": "Asked to go on.",
    "abort": "Asked to abort: the canary loses all its traffic at once.",
}
_MOST_REASON: Final = 200
_PATIENCE_S: Final = 10.0
_log: Final = logging.getLogger(__name__)


class Actions:
    """The buttons.

    Args:
        workplace: Of the environment.
        ledger: Its ledger.
    """

    def __init__(self, workplace: Workplace, ledger: Ledger) -> None:
        self._workplace, self._ledger = workplace, ledger
        self._leading = Leading(workplace, ledger)

    def do(self, action: str, endpoint: str, form: Mapping[str, str], who: Identity) -> str:
        """Carry out a button; returns what to say.

        Raises:
            UsageError: The role is missing, or the form is not whole.
            Conflict: What the page showed is no longer so.
        """
        who.require(ACTIONS[action])
        reason = form.get("reason", "").strip()[:_MOST_REASON]
        if action == "rollback":
            return self._roll_back(endpoint, form, who, reason)
        number = _number(form, "generation")
        self._check(endpoint, number, form.get("bundle", ""))
        if action in _ASKED:
            ask = {"pause": rollouts.pause, "resume": rollouts.resume, "abort": rollouts.abort}[action]
            told = ask(self._workplace, endpoint, actor=who.id, reason=reason, generation=number)
            self._leading.lead_on(endpoint, number)
            return _ASKED[action] if told["changed"] else f"Nothing to do: the rollout is {told['state']}."
        decision = "approve" if action == "approve" else "reject"
        rollouts.decide(
            self._workplace, endpoint, decision, identity=who.id, by_token=True, reason=reason, generation=number
        )
        self._leading.lead_on(endpoint, number)
        return f"Recorded: {who.id} {decision}s generation {number}."

    def _roll_back(self, endpoint: str, form: Mapping[str, str], who: Identity, reason: str) -> str:
        if not reason:
            raise UsageError("a rollback needs a reason", hint="say why; it is recorded with your name")
        to, expect = _number(form, "to"), _number(form, "expect")
        ask = rollouts.RollbackAsk(endpoint=endpoint, to=to, expect=expect, actor=who.id, reason=reason)
        job = threading.Thread(
            target=self._quietly, args=(ask, said := list[str](), failed := list[OrchestratorError]())
        )
        job.start()
        job.join(_PATIENCE_S)
        if failed:
            raise failed[0]
        return said[0] if said else f"The rollback to generation {to} is under way: its replicas are being started."

    def _quietly(self, ask: rollouts.RollbackAsk, said: list[str], failed: list[OrchestratorError]) -> None:
        try:
            done = rollouts.rollback(self._workplace, ask, lambda _line: None)
        except OrchestratorError as error:
            _log.warning("rollback of %s: %s", ask.endpoint, error)
            failed.append(error)
        else:
            start(self._workplace)
            said.append(f"Rolled back to generation {ask.to}; generation {done['generation']} serves that build now.")

    def _check(self, endpoint: str, number: int, bundle: str) -> None:
        """What is approved is what the page showed: a form of yesterday says nothing of today's canary."""
        active = self._ledger.rollouts.active(endpoint)
        if active is None or active.generation != number:
            raise Conflict(f"no rollout of generation {number} of {endpoint!r} is under way any more")
        canary = self._ledger.generations.get(endpoint, number)
        if canary is None or canary.bundle != bundle:
            raise Conflict(f"generation {number} of {endpoint!r} is of another bundle than the page showed")


def _number(form: Mapping[str, str], name: str) -> int:
    text = form.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UsageError(f"{name} must be a number, not {text[:40]!r}", hint="load the page again")
    return int(text)
