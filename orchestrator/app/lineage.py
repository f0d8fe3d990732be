"""`lineage`: from any id, digest or answer back to dataset and commit, and forward to endpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.core.digests import is_digest
from orchestrator.core.errors import LedgerError, UsageError
from orchestrator.ledger import ArtifactRow, Generation, Ledger
from orchestrator.ledger.generations import variant_artifacts

_GENERATION: Final = re.compile(r"([a-z0-9][a-z0-9._-]*)[/@](\d+)")
_DIGEST_INSIDE: Final = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is known of one thing.

    Attributes:
        subject: What was asked, resolved: a digest.
        artifacts: Everything it was made from, itself first, then parents breadth-first; with the step that made each.
        used_by: Artifacts made from it.
        generations: Endpoint generations that serve it or something made from it.
        executions: The executions involved, with commit, recipe and data.
    """

    subject: str
    artifacts: list[dict[str, Any]]
    used_by: list[dict[str, Any]]
    generations: list[dict[str, Any]]
    executions: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return what `lineage --json` prints."""
        return {
            "subject": self.subject,
            "artifacts": self.artifacts,
            "used_by": self.used_by,
            "generations": self.generations,
            "executions": self.executions,
        }


def lineage(ledger: Ledger, asked: str) -> Lineage:
    """Trace `asked`: an execution id, an artifact or bundle digest (or its first 12+ hex digits), `endpoint/N`, a header.

    Raises:
        UsageError: Nothing of that name is known.
    """
    seeds = _seeds(ledger, asked)
    back = _walk(seeds, ledger.artifacts.parents)
    forward = _walk(seeds, ledger.artifacts.children)
    everything = [*back, *(d for d in forward if d not in back)]
    rows = {digest: ledger.artifacts.get(digest) for digest in everything}
    generations = [g for endpoint in ledger.generations.endpoints() for g in ledger.generations.list(endpoint)]
    touched = [g for g in generations if {g.artifact, g.bundle, *variant_artifacts(g)} & set(rows)]
    makers = (row.execution for row in rows.values() if row is not None and row.execution)
    own = [asked] if _is_execution(ledger, asked) else []
    executions = list(dict.fromkeys([*own, *makers]))
    return Lineage(
        subject=asked,
        artifacts=[_artifact(ledger, digest, rows[digest]) for digest in back],
        used_by=[_artifact(ledger, digest, rows[digest]) for digest in forward if digest not in back],
        generations=[_generation(g) for g in touched],
        executions=[_execution(ledger, execution) for execution in executions],
    )


def _seeds(ledger: Ledger, asked: str) -> list[str]:
    generation = _GENERATION.fullmatch(asked)
    if generation and generation[1] in ledger.generations.endpoints():
        for row in ledger.generations.list(generation[1]):
            if row.number == int(generation[2]):
                return _built(row)
    inside = _DIGEST_INSIDE.search(asked)
    if inside:
        digest = f"sha256:{inside[1]}"
        known = ledger.artifacts.get(digest) or ledger.artifacts.parents(digest)
        if known:
            return [digest]
    beginning = asked.removeprefix("sha256:")
    by_prefix = [digest for digest in _all_digests(ledger) if digest.startswith(f"sha256:{beginning}")]
    if len(beginning) >= 6 and by_prefix:
        return by_prefix
    if _is_execution(ledger, asked):
        return [digest for step in ledger.executions.steps(asked) for digest in step.outputs.values()]
    if asked in ledger.generations.endpoints():
        live = ledger.generations.live(asked)
        if live is not None:
            return _built(live)
    raise UsageError(
        f"nothing is known of {asked[:100]!r}",
        hint="give an execution id, a digest (or its first 12 digits), `endpoint/generation`, or an x-orchestrate-bundle header",
    )


def _built(row: Generation) -> list[str]:
    """Return what a generation serves: its bundle and, where one is loaded, its variant."""
    return [digest for digest in (row.bundle, *variant_artifacts(row)) if digest]


def _is_execution(ledger: Ledger, asked: str) -> bool:
    try:
        ledger.executions.get(asked)
    except LedgerError:
        return False
    return True


def _all_digests(ledger: Ledger) -> list[str]:
    """Return every artifact's digest, and the names that clients see of the bundles that were served."""
    served = [g.bundle for endpoint in ledger.generations.endpoints() for g in ledger.generations.list(endpoint)]
    return [*dict.fromkeys(served), *(row.digest for row in ledger.artifacts.list(limit=100_000))]


def _walk(seeds: Sequence[str], step: Callable[[str], Sequence[str]]) -> list[str]:
    found: dict[str, None] = dict.fromkeys(seeds)
    queue = list(seeds)
    while queue:
        for digest in step(queue.pop(0)):
            if digest not in found:
                found[digest] = None
                queue.append(digest)
    return list(found)


def _artifact(ledger: Ledger, digest: str, row: ArtifactRow | None) -> dict[str, Any]:
    assert is_digest(digest)
    if row is None:
        return {"digest": digest, "kind": "bundle digest", "step": None, "execution": None}
    return {
        "digest": digest,
        "kind": row.kind,
        "size_bytes": row.size_bytes,
        "step": row.step,
        "execution": row.execution,
        "parents": list(ledger.artifacts.parents(digest)),
    }


def _generation(row: Generation) -> dict[str, Any]:
    return {
        "endpoint": row.endpoint,
        "generation": row.number,
        "state": str(row.state),
        "pool": row.pool,
        "bundle": row.bundle,
        "variant": row.variant,
        "device": row.device,
    }


def _execution(ledger: Ledger, execution: str) -> dict[str, Any]:
    row = ledger.executions.get(execution)
    data: dict[str, str] = {}
    for step in ledger.executions.steps(execution):
        parts: dict[str, Any] = dict(step.parts)
        data |= parts.get("data", {})
    git: dict[str, Any] = dict(row.git or {})
    return {
        "execution": row.id,
        "recipe": row.recipe,
        "recipe_sha256": row.recipe_sha256,
        "state": row.state,
        "user": row.user,
        "created_at": row.created_at,
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "data": data,
    }
