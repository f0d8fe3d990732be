"""Stored results of steps: what the completion manifest of a fingerprint says, if its artifacts are still there."""

from __future__ import annotations

from typing import Any, cast

from orchestrator.bundle.store import Store


def stored_result(store: Store, fingerprint: str) -> dict[str, Any] | None:
    """Return the stored result of a fingerprint when all its artifacts are there by names and sizes, else None."""
    result = cast("dict[str, Any] | None", store.result(fingerprint))
    if result is None or not all(store.has(ref["digest"]) for ref in result["outputs"].values()):
        return None
    return result
