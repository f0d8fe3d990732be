"""What the control plane does itself: `register` hands models to MLflow's projection, `deploy` rolls a bundle out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from orchestrator.app.wiring import Workplace
from orchestrator.engine.events import Event
from orchestrator.engine.recorder import Recorder
from orchestrator.ledger import Ledger, Owner
from orchestrator.ledger.rows import user_name
from orchestrator.plan.model import Draft

REHEARSAL_DEVICE = "cpu (rehearsal)"


class PoolControl:
    """The engine's `ControlSteps` over one workplace."""

    def __init__(self, workplace: Workplace, ledger: Ledger, execution: str) -> None:
        self._workplace = workplace
        self._ledger = ledger
        self._execution = execution

    def perform(self, draft: Draft, inputs: Mapping[str, str], recorder: Recorder, attempt: int) -> dict[str, Any]:
        """Do the step and return its result."""
        del attempt
        facts = self._register(draft) if draft.kind == "register" else self._deploy(draft, inputs, recorder)
        return {"outputs": {}, "metrics": facts.pop("metrics", {}), "facts": facts, "ended_at": time.time()}

    def _register(self, draft: Draft) -> dict[str, Any]:
        # The ledger is the truth and this row is the registration; MLflow receives it as a projection (DESIGN D1).
        return {"model": draft.spec["name"]}

    def _deploy(self, draft: Draft, inputs: Mapping[str, str], recorder: Recorder) -> dict[str, Any]:
        from orchestrator.app.serve_site import connect
        from orchestrator.bundle.oci import bundle_digest, unpack
        from orchestrator.rollout.deploy import deploy
        from orchestrator.rollout.request import DeployRequest

        layout = self._workplace.store.path(inputs["bundle"])
        bundle = bundle_digest(layout)
        folder = unpack(layout, self._workplace.bundles, expected=bundle)
        request = DeployRequest(
            endpoint=str(draft.spec["endpoint"]),
            pool=str(draft.spec["pool"]),
            bundle=bundle,
            path=folder,
            artifact=inputs["bundle"],
            runtime="onnx-cpu",
            device=REHEARSAL_DEVICE,
            actor=user_name(),
            reason=f"execution {self._execution}",
            wait_s=60.0,
        )

        def tell(text: str) -> None:
            recorder.say(Event("message", draft.name, {"text": text}))

        owner = Owner.here(f"deploy {request.endpoint}")
        done = deploy(self._ledger, connect(self._workplace, draft.site), request, owner, tell=tell)
        smoke = done.smoke.to_json() if done.smoke is not None else None
        return {
            "endpoint": done.endpoint,
            "generation": done.generation,
            "previous": done.previous,
            "bundle": done.bundle,
            "pool": done.pool,
            "device": done.device,
            "url": done.url,
            "smoke": smoke,
        }
