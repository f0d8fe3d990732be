"""The request that serves a release in a pool: what was compiled from it for the pool's SoCs, by the ledger's edges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestrator.app.releases import Release
from orchestrator.app.wiring import Workplace
from orchestrator.core.digests import short
from orchestrator.core.errors import DeviceError, OrchestratorError
from orchestrator.environment.pool import Pool
from orchestrator.ledger import Generation, Ledger
from orchestrator.rollout.request import LIMITS, DeployRequest

if TYPE_CHECKING:
    from orchestrator.bundle.variant import Variant

REHEARSAL_DEVICE: Final = "cpu (rehearsal)"


def deploy_request(
    workplace: Workplace, ledger: Ledger, release: Release, endpoint: str, pool_name: str, pool: Pool, actor: str
) -> DeployRequest:
    """Return the request that serves a release in a pool, with what was compiled from it for the pool's SoCs.

    Raises:
        DeviceError: The pool has real devices, and nothing was compiled for one of its SoCs.
    """
    from orchestrator.ascend.soc import is_soc, soc
    from orchestrator.graph.verdict import Thresholds, thresholds_for

    earlier = _served_before(ledger, release, endpoint, pool_name, pool)
    if earlier is not None:
        return _again(earlier, release, actor)
    found = {name: _variant(workplace, ledger, release, name, rehearsal=pool.rehearsal) for name in pool.socs}
    variants = {name: each for name, each in found.items() if each is not None}
    if len(variants) < len(found) and not (pool.rehearsal and len(found) == 1):
        missing = ", ".join(name for name in found if name not in variants)
        raise DeviceError(
            f"nothing was compiled from bundle {short(release.bundle)} for {missing} of pool {pool_name!r}",
            hint="run the recipe with a target for it, or promote to another pool",
        )
    artifact, variant = next(iter(variants.values()), ("", None))
    device = REHEARSAL_DEVICE if pool.rehearsal else pool.socs[0]
    limits = Thresholds() if variant is None else replace(thresholds_for(variant.precision, None), metric_drop={})
    return DeployRequest(
        endpoint=endpoint,
        pool=pool_name,
        bundle=release.bundle,
        path=release.path,
        artifact=release.artifact,
        runtime=variant.runtime if variant is not None else "onnx-cpu",
        variant=variant.digest if variant is not None else "",
        variant_artifact=artifact,
        variant_path=str(variant.folder) if variant is not None else "",
        builds=tuple(
            _build(name, each, device, real=not pool.rehearsal) for name, each in variants.items() if len(found) > 1
        ),
        thresholds=limits,
        saturating=variant is not None and is_soc(variant.soc or "") and soc(variant.soc or "").saturating,
        device=device,
        actor=actor,
    )


def _served_before(ledger: Ledger, release: Release, endpoint: str, pool_name: str, pool: Pool) -> Generation | None:
    """Return the endpoint's newest generation of this bundle in this pool whose compiled files are still here and whole."""
    from orchestrator.bundle.variant import read_variant

    device = REHEARSAL_DEVICE if pool.rehearsal else pool.socs[0]
    for generation in reversed(ledger.generations.list(endpoint)):
        same = (generation.bundle, generation.pool, generation.device) == (release.bundle, pool_name, device)
        if not same or generation.error is not None:
            continue
        paths = [generation.variant_path, *(str(build["variant_path"]) for build in generation.builds)]
        try:
            for path in filter(None, paths):
                read_variant(Path(path))
        except OrchestratorError:
            continue  # collected or damaged
        return generation
    return None


def _again(earlier: Generation, release: Release, actor: str) -> DeployRequest:
    """Return the request that serves what an earlier generation served, and asks of it what was asked then."""
    from orchestrator.graph.verdict import Thresholds

    limits: dict[str, Any] = dict(earlier.evidence.get(LIMITS, {}))
    saturating = bool(limits.pop("saturating", False))
    return DeployRequest(
        endpoint=earlier.endpoint,
        pool=earlier.pool,
        bundle=release.bundle,
        path=release.path,
        artifact=release.artifact,
        runtime=earlier.runtime,
        variant=earlier.variant,
        variant_artifact=earlier.variant_artifact,
        variant_path=earlier.variant_path,
        builds=earlier.builds,
        thresholds=Thresholds(**limits),
        saturating=saturating,
        device=earlier.device,
        actor=actor,
    )


def _build(soc_name: str, found: tuple[str, Variant], device: str, *, real: bool) -> dict[str, Any]:
    artifact, variant = found
    own = {"soc": soc_name, "runtime": variant.runtime, "device": soc_name if real else device}
    names = {"variant": variant.digest, "variant_artifact": artifact, "variant_path": str(variant.folder)}
    return own | names


def _variant(
    workplace: Workplace, ledger: Ledger, release: Release, soc_name: str, *, rehearsal: bool
) -> tuple[str, Variant] | None:
    """Return the newest whole variant of the bundle for a SoC: compiled for real devices, a stand-in for a rehearsal."""
    from orchestrator.bundle.variant import read_variant

    rows = [row for each in ledger.artifacts.children(release.artifact) if (row := ledger.artifacts.get(each))]
    for row in sorted(rows, key=lambda row: (row.created_at, row.digest), reverse=True):
        if row.kind != "variant":
            continue
        try:
            variant = read_variant(workplace.store.path(row.digest))
        except OrchestratorError:
            continue  # collected or damaged
        if (variant.bundle, variant.soc) == (release.bundle, soc_name) and variant.rehearsal == rehearsal:
            return row.digest, variant
    return None
