"""A caller between a client and a lane."""

from __future__ import annotations

from orchestrator.serving.dispatch.lanes import Caller


class Between:
    """Waits as long as the client, `outer`, does."""

    __slots__ = ("outer",)

    def __init__(self, outer: Caller) -> None:
        self.outer = outer

    @property
    def done(self) -> bool:
        """Whether the client has its answer."""
        return self.outer.done

    @property
    def gone(self) -> bool:
        """Whether the client waits no more."""
        return self.outer.gone
