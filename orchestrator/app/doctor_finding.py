"""What a check of `doctor` found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "absent", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: `bad` must be mended, `warn` should be known, `absent` is fine where it is not wanted."""

    name: str
    state: State
    found: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the finding as an object."""
        return asdict(self)
