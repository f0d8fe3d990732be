"""Lines of a command that takes a while: plain for people, NDJSON for machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.ledger import Holder


def teller(*, as_json: bool) -> Callable[[str], None]:
    """Return what says one line of progress."""
    from orchestrator.cli.output import print_json, say
    from orchestrator.core.redact import redact_text

    if as_json:
        return lambda text: print_json({"event": "message", "text": text})
    return lambda text: say(redact_text(text))


def waiting(tell: Callable[[str], None]) -> Callable[[Holder], None]:
    """Return what says whom we wait for."""

    def say_whom(holder: Holder) -> None:
        owner = holder.owner
        tell(f"waiting: {owner.user}@{owner.host}, pid {owner.pid}, is at this endpoint")

    return say_whom
