"""The recipe's parameters as user code sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Params(Mapping[str, Any]):
    """The recipe's parameters: `params.lr`, `params["lr"]`, `params.get("lr", 0.1)`; read-only."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            have = ", ".join(sorted(self._values)) or "none"
            raise AttributeError(f"the recipe gives no parameter {name!r} (given: {have})") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Params({self._values!r})"
