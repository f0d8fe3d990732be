"""What a request may end with other than 200."""

from __future__ import annotations

from orchestrator.core.errors import ServingError


class RequestError(ServingError):
    """A request that cannot be answered with 200.

    Args:
        message: One sentence for the client.
        status: HTTP status.
        kind: Machine word for events and metrics.
        retry_after_s: When not 0, the `Retry-After` that goes with it.
    """

    def __init__(self, message: str, *, status: int = 400, kind: str = "invalid", retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.retry_after_s = retry_after_s
