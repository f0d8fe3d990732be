"""The one error tree. Every error says what happened, with which value, and what to do next.

Each family has an exit code (what the shell sees) and a retry class (which budget, if any, pays for another attempt).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

_LONGEST_MESSAGE: Final = 2000


class RetryClass(StrEnum):
    """Which retry budget an error draws on; `NEVER` draws on none."""

    NEVER = "never"
    USER = "user"
    INFRA = "infra"
    PREEMPTION = "preemption"
    CAPACITY = "capacity"


class OrchestratorError(Exception):
    """Base of all errors that a user may see.

    Args:
        message: What happened and with which value, one sentence, no trailing period needed; cut where it is endless.
        hint: What to do next.
        place: Where: `file:line:column`, a step, a path or a URL.
        details: Small JSON-ready facts for machines.
    """

    exit_code: int = 3
    retry: RetryClass = RetryClass.NEVER

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        place: str = "",
        details: Mapping[str, object] | None = None,
    ) -> None:
        if len(message) > _LONGEST_MESSAGE:
            message = f"{message[:_LONGEST_MESSAGE]}… ({len(message)} characters)"
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.place = place
        self.details: dict[str, object] = dict(details or {})

    @property
    def code(self) -> str:
        """Stable machine name of the family, e.g. `RecipeError`."""
        return type(self).__name__

    def to_json(self) -> dict[str, object]:
        """Return the error as one JSON-ready object."""
        return {
            "error": self.code,
            "message": self.message,
            "hint": self.hint,
            "place": self.place,
            "exit_code": self.exit_code,
            "retry": str(self.retry),
            "details": self.details,
        }

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        fix = f"\n  fix: {self.hint}" if self.hint else ""
        return f"{where}{self.message}{fix}"


class UsageError(OrchestratorError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class RecipeError(OrchestratorError):
    """The recipe is wrong; `place` is `file:line:column`."""

    exit_code = 2


class EnvironmentFileError(OrchestratorError):
    """The environment file is wrong; `place` is `file:line:column`."""

    exit_code = 2


class PlanError(OrchestratorError):
    """Recipe and environment are each valid but do not fit together."""

    exit_code = 2


class GateError(OrchestratorError):
    """A gate said no: a metric, a parity or a convertibility check."""

    exit_code = 1


class InfraError(OrchestratorError):
    """Something outside the user's code failed: process, disk, network, cluster."""

    exit_code = 3
    retry = RetryClass.INFRA


class Unreachable(InfraError):
    """A remote did not answer. This never means that its work failed."""


class InternalError(OrchestratorError):
    """A bug of ours or a broken installation; another attempt would do the same."""


class Preempted(InfraError):
    """The machine was taken away."""

    retry = RetryClass.PREEMPTION


class NoCapacity(InfraError):
    """The cluster cannot place the work now."""

    exit_code = 5
    retry = RetryClass.CAPACITY


class DeviceError(OrchestratorError):
    """The asked device is absent, or is not what it claims to be."""

    exit_code = 3


class StoreError(InfraError):
    """The artifact store cannot be read or written."""


class IntegrityError(OrchestratorError):
    """Bytes do not match their digest."""

    exit_code = 3


class TrackingError(InfraError):
    """MLflow refused or could not be reached."""


class LedgerError(OrchestratorError):
    """The ledger cannot be opened, is of another schema, or is damaged."""

    exit_code = 3


class Conflict(OrchestratorError):
    """Fenced, lost the race, or busy."""

    exit_code = 4


class Waiting(OrchestratorError):
    """Not failed and not done: needs an approval, capacity or evidence."""

    exit_code = 5


class UserCodeError(OrchestratorError):
    """The user's own code raised or exited non-zero."""

    exit_code = 6
    retry = RetryClass.USER


class ServingError(InfraError):
    """The data plane refused or broke."""


class Interrupted(OrchestratorError):
    """Ctrl-C or SIGTERM; everything done so far is kept."""

    exit_code = 130


def error_from_json(data: Mapping[str, object]) -> OrchestratorError:
    """Rebuild an error that crossed a process boundary; unknown families become `InfraError`."""
    family = _families().get(str(data.get("error")), InfraError)
    details = data.get("details")
    return family(
        str(data.get("message", "")),
        hint=str(data.get("hint", "")),
        place=str(data.get("place", "")),
        details=details if isinstance(details, dict) else None,  # pyright: ignore[reportUnknownArgumentType]
    )


def _families() -> dict[str, type[OrchestratorError]]:
    found: dict[str, type[OrchestratorError]] = {}
    todo: list[type[OrchestratorError]] = [OrchestratorError]
    while todo:
        family = todo.pop()
        if family.__module__ == __name__:  # those of other rooms do not travel
            found[family.__name__] = family
        todo.extend(family.__subclasses__())
    return found
