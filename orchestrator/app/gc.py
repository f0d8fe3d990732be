"""`gc`: what no recent execution needs, and no generation that serves or may be rolled back to, goes; everything else stays."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.app.history import going
from orchestrator.app.wiring import Workplace
from orchestrator.core.digests import hex_of, is_digest
from orchestrator.ledger import Ledger
from orchestrator.ledger.generations import variant_artifacts
from orchestrator.rollout.kept import kept
from orchestrator.steps.segment import work_folder

_UNFINISHED: Final = ("running", "waiting")


def collect(workplace: Workplace, keep_executions: int, older_than_s: float, *, remove: bool) -> dict[str, Any]:
    """Collect garbage, or say what would go.

    Args:
        workplace: Where.
        keep_executions: Per recipe, how many of the newest executions keep their results.
        older_than_s: Nothing younger is touched; nor anything younger than the oldest execution that runs now.
        remove: False = only say.

    Returns:
        `{removed, size_bytes, items: [{kind, name, size_bytes}]}`.
    """
    now = time.time()
    with workplace.look_into_ledger() as ledger:
        digests, fingerprints = _kept(ledger, keep_executions)
        older_than_s = max(older_than_s, *(now - began for began in _running_since(ledger)), 0.0)
    for fingerprint in fingerprints:  # what a running execution has planned to reuse stands in no row of it yet
        digests |= _outputs(workplace.store.result(fingerprint))
    work = {work_folder(workplace.work, fingerprint).name for fingerprint in fingerprints}
    bundles = {hex_of(digest) for digest in digests if is_digest(digest)}
    before = now - older_than_s
    old = _old_folders(workplace.work, work, before) + _old_folders(workplace.bundles, bundles, before)
    items = [{"kind": path.parent.name, "name": path.name, "size_bytes": _size(path)} for path in old]
    store = workplace.store
    removed = store.gc(digests, older_than_s, remove=remove)
    items += [{"kind": item.kind, "name": item.name, "size_bytes": item.size_bytes} for item in removed]
    if remove:
        for path in old:
            _remove_read_only(path)
    return {"removed": remove, "size_bytes": sum(int(str(item["size_bytes"])) for item in items), "items": items}


def _kept(ledger: Ledger, keep_executions: int) -> tuple[set[str], set[str]]:
    """Return what stays: of each recipe the newest executions that succeeded and all after them, and what is served."""
    served = _served(ledger)
    makers = {row.execution for digest in served if (row := ledger.artifacts.get(digest)) is not None}
    digests, fingerprints = set(served), set[str]()
    succeeded: dict[str, int] = {}
    for row in ledger.executions.list(limit=100_000):
        before = succeeded.get(row.recipe, 0)
        succeeded[row.recipe] = before + (row.state == "succeeded")
        if before >= keep_executions and row.state not in _UNFINISHED and row.id not in makers:
            continue
        for step in ledger.executions.steps(row.id):
            digests |= set(step.outputs.values())
            fingerprints |= {step.fingerprint} if step.fingerprint else set()
    return digests, fingerprints


def _served(ledger: Ledger) -> set[str]:
    """Return the bundles of what is loaded or may be rolled back to, and all that they were made from."""
    names = ledger.generations.endpoints()
    generations = [g for endpoint in names for g in kept(ledger.generations.list(endpoint))]
    found: set[str] = set()
    todo = [digest for g in generations for digest in (g.bundle, g.artifact, *variant_artifacts(g)) if digest]
    while todo:
        digest = todo.pop()
        if digest not in found:
            found.add(digest)
            todo.extend(ledger.artifacts.parents(digest))
    return found


def _running_since(ledger: Ledger) -> list[float]:
    running = (row for row in ledger.executions.list(limit=100_000) if row.state == "running")
    return [row.created_at for row in running if going(ledger, row.id)]


def _outputs(result: Mapping[str, object] | None) -> set[str]:
    outputs = cast("Mapping[str, Mapping[str, str]]", result["outputs"] if result else {})
    return {ref["digest"] for ref in outputs.values()}


def _old_folders(root: Path, keep: set[str], before: float) -> list[Path]:
    if not root.is_dir():
        return []
    folders = (path for path in sorted(root.iterdir()) if path.is_dir() and path.name not in keep)
    return [path for path in folders if path.stat().st_mtime < before]


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def _remove_read_only(path: Path) -> None:
    for folder in [path, *(p for p in path.rglob("*") if p.is_dir() and not p.is_symlink())]:
        folder.chmod(0o700)
    shutil.rmtree(path)
