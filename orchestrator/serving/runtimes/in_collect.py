"""Sessions on a CPU: it has nothing to overlap a batch with, so the batch waits for `collect` and runs there."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.serving.protocol.tensors import Tensor


class InCollect:
    """The half of a `Session` that hands out tickets; `collect` takes what was submitted by `taken`."""

    def __init__(self) -> None:
        self._waiting: dict[int, Sequence[Tensor]] = {}
        self._ticket = 0

    def submit(self, inputs: Sequence[Tensor]) -> int:
        """Keep the batch and return its ticket."""
        self._ticket += 1
        self._waiting[self._ticket] = inputs
        return self._ticket

    def done(self, ticket: int, wait_s: float) -> bool:  # noqa: ARG002
        """There is nothing to wait for before `collect`."""
        return True

    def taken(self, ticket: int) -> Sequence[Tensor]:
        """Return the inputs of a ticket, once."""
        return self._waiting.pop(ticket)
