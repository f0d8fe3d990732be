"""Stored results of steps: what the completion manifest of a fingerprint says, if its artifacts are still whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from orchestrator.bundle.store import Store
from orchestrator.core.errors import IntegrityError, StoreError

_ALWAYS_HASHED_BYTES: Final = 64 << 20


def stored_result(store: Store, fingerprint: str) -> dict[str, Any] | None:
    """Return the stored result of a fingerprint whose artifacts are whole, else None.

    Small artifacts are hashed, large ones checked by names and sizes: whoever consumes one hashes it first anyway.
    """
    result = cast("dict[str, Any] | None", store.result(fingerprint))
    if result is None or not all(_whole(store, ref) for ref in result["outputs"].values()):
        return None
    return result


def _whole(store: Store, ref: Mapping[str, Any]) -> bool:
    try:
        store.verify(ref["digest"], content=ref["size_bytes"] <= _ALWAYS_HASHED_BYTES)
    except (StoreError, IntegrityError):
        return False
    return True
