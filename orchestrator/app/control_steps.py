"""What the control plane does itself: `register` hands models to MLflow's projection, `deploy` rolls a bundle out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.app.wiring import Workplace
from orchestrator.ascend.soc import is_soc, soc
from orchestrator.core.errors import DeviceError
from orchestrator.engine.events import Event
from orchestrator.engine.recorder import Recorder
from orchestrator.ledger import Ledger, Owner, Rollout
from orchestrator.plan.model import Draft

if TYPE_CHECKING:
    from orchestrator.bundle.variant import Variant
    from orchestrator.graph.verdict import Thresholds
    from orchestrator.rollout.request import DeployRequest

REHEARSAL_DEVICE = "cpu (rehearsal)"


class PoolControl:
    """The engine's `ControlSteps` over one workplace."""

    def __init__(self, workplace: Workplace, ledger: Ledger, execution: str) -> None:
        self._workplace = workplace
        self._ledger = ledger
        self._execution = execution

    def perform(
        self, draft: Draft, inputs: Mapping[str, str], recorder: Recorder, tick: Callable[[], None]
    ) -> dict[str, Any]:
        """Do the step and return its result."""
        facts = self._register(draft) if draft.kind == "register" else self._deploy(draft, inputs, recorder, tick)
        return {"outputs": {}, "metrics": facts.pop("metrics", {}), "facts": facts, "ended_at": time.time()}

    def _register(self, draft: Draft) -> dict[str, Any]:
        # The ledger is the truth and this row is the registration; MLflow receives it as a projection (DESIGN D1).
        return {"model": draft.spec["name"]}

    def _variant(self, draft: Draft, artifact: str) -> Variant | None:
        """Return the variant that a SoC of the pool loads; None where the bundle's own graph is served.

        Raises:
            DeviceError: The pool has real devices, and this only stands in for them.
        """
        from orchestrator.bundle.variant import read_variant

        variant = read_variant(self._workplace.store.path(artifact)) if artifact else None
        if "device" in draft.spec and (variant is None or variant.rehearsal):
            why = "nothing was compiled" if variant is None else str(variant.skipped)
            raise DeviceError(
                f"pool {draft.spec['pool']!r} has real devices and gets no stand-in: {why}",
                hint="compile for its SoC, or roll out to a pool with `rehearsal: true`",
                place="rollout.pool",
            )
        return variant

    def _builds(self, draft: Draft, inputs: Mapping[str, str], device: str) -> tuple[dict[str, Any], ...]:
        """Return what each SoC of the pool loads; nothing where the pool has one."""
        socs = [str(soc_name) for soc_name, _ in draft.spec.get("builds") or ()]
        artifacts = [inputs["variant" if soc == socs[0] else f"variant-{soc}"] for soc in socs]
        found: list[dict[str, Any]] = []
        for soc_name, artifact in zip(socs, artifacts, strict=True):
            variant = self._variant(draft, artifact)
            assert variant is not None
            own = {
                "soc": soc_name,
                "runtime": variant.runtime,
                "device": soc_name if "device" in draft.spec else device,
            }
            names = {"variant": variant.digest, "variant_artifact": artifact, "variant_path": str(variant.folder)}
            found.append(own | names)
        return tuple(found)

    def _limits(self, draft: Draft, variant: Variant | None) -> Thresholds:
        """Return what the smoke test asks: of a graph that rounds what its target asks, of the fp32 graph an export's."""
        from orchestrator.graph.verdict import Thresholds, thresholds_for

        if variant is None:
            return Thresholds()
        return replace(thresholds_for(variant.precision, draft.spec.get("parity")), metric_drop={})

    def _request(self, draft: Draft, inputs: Mapping[str, str], variant: Variant | None) -> DeployRequest:
        """Return what to serve, its bundle unpacked and verified."""
        from orchestrator.app.asker import who_asks
        from orchestrator.bundle.oci import bundle_digest, unpack
        from orchestrator.rollout.capacity import PoolFacts
        from orchestrator.rollout.request import DeployRequest
        from orchestrator.rollout.strategy import Strategy

        layout = self._workplace.store.path(inputs["bundle"])
        bundle = bundle_digest(layout)
        folder = unpack(layout, self._workplace.bundles, expected=bundle)
        device = str(draft.spec.get("device") or REHEARSAL_DEVICE)
        pool_name = str(draft.spec["pool"])
        pool = self._workplace.environment.pools[pool_name]
        actor, strategy = who_asks(self._workplace, pool.site, Strategy.from_json(draft.spec.get("strategy") or {}))
        return DeployRequest(
            endpoint=str(draft.spec["endpoint"]),
            pool=pool_name,
            bundle=bundle,
            path=folder,
            artifact=inputs["bundle"],
            runtime=variant.runtime if variant is not None else "onnx-cpu",
            variant=variant.digest if variant is not None else "",
            variant_artifact=inputs.get("variant", ""),
            variant_path=str(variant.folder) if variant is not None else "",
            builds=self._builds(draft, inputs, device),
            thresholds=self._limits(draft, variant),
            saturating=variant is not None and is_soc(variant.soc or "") and soc(variant.soc or "").saturating,
            device=device,
            actor=actor,
            reason=reason_of(self._execution),
            wait_s=60.0,
            strategy=strategy,
            facts=PoolFacts(pool_name, pool.models == "lazy", pool.memory or 0),
        )

    def _deploy(
        self, draft: Draft, inputs: Mapping[str, str], recorder: Recorder, tick: Callable[[], None]
    ) -> dict[str, Any]:
        from orchestrator.app.serve_site import connect
        from orchestrator.rollout.deploy import deploy
        from orchestrator.rollout.stage import Pace

        variant = self._variant(draft, inputs.get("variant", ""))
        request = self._request(draft, inputs, variant)

        def tell(text: str) -> None:
            recorder.say(Event("message", draft.name, {"text": text}))

        owner = Owner.here(f"deploy {request.endpoint}")
        site, pace = connect(self._workplace, draft.site), Pace(now=self._ledger.now, alive=tick)
        done = deploy(self._ledger, site, request, owner, tell=tell, pace=pace)
        walked = {} if done.rollout is None else {"rollout": _walked(done.rollout)}
        return done.to_json(request) | {"target": variant.target if variant is not None else ""} | walked


def reason_of(execution: str) -> str:
    """Return why a deploy step rolls out, as the ledger keeps it."""
    return f"execution {execution}"


def _walked(row: Rollout) -> dict[str, Any]:
    """Return what the step remembers of a walk; the ledger has the whole of it."""
    verdict = row.verdict or {}
    walk = {"steps": len(row.strategy.get("steps", ())), "wall_s": round((row.ended_at or 0.0) - row.started_at, 3)}
    return walk | {"verdict": verdict.get("state"), "synthetic_share": verdict.get("synthetic_share", 0.0)}
