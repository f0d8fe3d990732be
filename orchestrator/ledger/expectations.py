"""What a request for a generation expects of the ledger, and how it is refused."""

from __future__ import annotations

from typing import Any, Final

from orchestrator.core.errors import Conflict
from orchestrator.ledger.rows import Generation, GenerationRequest, GenerationState

_SAME: Final = ("endpoint", "pool", "bundle", "variant", "kind")


def same(earlier: Generation, request: GenerationRequest) -> Generation:
    """Return the first result of a request id, where the repeat asks for the same thing."""
    differs = [name for name in _SAME if getattr(earlier, name) != getattr(request, name)]
    if differs:
        raise Conflict(
            f"request {request.request_id!r} already made generation {earlier.number} of {earlier.endpoint!r} "
            f"with another {', '.join(differs)}",
            hint="use a new request id",
            details={"generation": earlier.number, "bundle": earlier.bundle},
        )
    return earlier


def asked(request: GenerationRequest) -> dict[str, Any]:
    """Return what the record of a refusal tells of a request."""
    return {name: getattr(request, name) for name in ("kind", "expected", "request_id", "bundle")}


def compare_live(known: tuple[Generation, ...], request: GenerationRequest) -> None:
    """Refuse a request that expects another live generation than there is; `details` name the one that is."""
    live = next((g.number for g in known if g.state == GenerationState.LIVE), 0)
    if live != request.expected:
        raise Conflict(
            f"endpoint {request.endpoint!r} is at generation {live}, not {request.expected}",
            hint="someone else changed it; look at the endpoint, then repeat the command",
            details={"live": live, "expected": request.expected},
        )
