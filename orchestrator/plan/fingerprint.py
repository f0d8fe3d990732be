"""Fingerprints: one digest over everything that can change a step's output, and the words that explain a miss.

Not in it: cluster, retries, labels, time-outs, thresholds (they judge an output, they do not make it). The same pure
function settles a step at plan time and, where its inputs were not known then, inside the worker.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Final, cast

from orchestrator.core.digests import Digest, sha256_bytes, sha256_json
from orchestrator.core.redact import is_secret_name
from orchestrator.plan.model import Draft

SCHEMA: Final = 1
"""Raised when the meaning of the parts themselves changes; old results then no longer match."""

_MOST_NAMED: Final = 3


def parts_of(draft: Draft, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return the parts of a step's fingerprint.

    Args:
        draft: The step.
        inputs: Digest of each input artifact by input name.
    """
    kind = draft.about
    return {
        "schema": SCHEMA,
        "kind": f"{draft.kind}/{kind.schema}",
        "spec": _flat({key: value for key, value in draft.spec.items() if key not in kind.judged}),
        "inputs": dict(inputs),
        "sources": dict(draft.sources),
        "data": dict(draft.data),
        "versions": {
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            **{package: package_version(package) for package in kind.packages},
        },
    }


def fingerprint_of(parts: Mapping[str, Any]) -> Digest:
    """Return the fingerprint of the parts."""
    return sha256_json(parts)


def package_version(package: str) -> str:
    """Return an installed package's version without importing it; `absent` where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def explain(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> str:
    """Say in a few words why `new` misses although `old` was there."""
    if old is None:
        return "never run before"
    changes = [f"{part} changed" for part in ("schema", "kind") if old.get(part) != new.get(part)]
    for part, text in (
        ("sources", "{key} changed"),
        ("inputs", "input {key} changed"),
        ("spec", "{key} {old} → {new}"),
        ("data", "data {key} changed"),
        ("versions", "{key} {old} → {new}"),
    ):
        changes += _changes(old.get(part, {}), new.get(part, {}), text)
    if not changes:
        return "no finished result of it is in the store"
    more = f" and {len(changes) - _MOST_NAMED} more" if len(changes) > _MOST_NAMED else ""
    return ", ".join(changes[:_MOST_NAMED]) + more


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], text: str) -> list[str]:
    found: list[str] = []
    for key in sorted({*old, *new}):
        if key not in old:
            found.append(f"{key} added")
        elif key not in new:
            found.append(f"{key} removed")
        elif old[key] != new[key]:
            secret = is_secret_name(key.rpartition(".")[2])
            said = "{key} changed" if secret else text
            found.append(said.format(key=key, old=_brief(old[key]), new=_brief(new[key])))
    return found


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:21] + "…"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        path = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            flat.update(_flat(cast("Mapping[str, Any]", item), path + "."))
        elif isinstance(item, str) and is_secret_name(key):
            flat[path] = sha256_bytes(item.encode())  # parts are stored and shown; the secret itself must not be
        else:
            flat[path] = item
    return flat
