"""Rows for ledger tests."""

from __future__ import annotations

from typing import Any

from orchestrator.ledger import ExecutionRow, GenerationRequest, Rollout, StepRow


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


def execution(number: str = "x1", recipe: str = "digits", **changes: Any) -> ExecutionRow:
    values: dict[str, Any] = {
        "id": number,
        "recipe": recipe,
        "recipe_sha256": digest("a"),
        "recipe_text": "recipe: 1\n",
        "environment": "local.yaml",
        "environment_sha256": digest("b"),
        "plan": {"steps": [{"name": "train", "action": "RUN"}]},
        "user": "ada",
        "host": "here",
        "git": {"commit": "0" * 40, "dirty": True},
        "state": "running",
        "created_at": 1_700_000_000.123456,
    }
    return ExecutionRow(**{**values, **changes})


def step(execution: str = "x1", name: str = "train", **changes: Any) -> StepRow:
    values: dict[str, Any] = {
        "execution": execution,
        "name": name,
        "kind": "train",
        "position": 0,
        "action": "RUN",
        "state": "running",
        "fingerprint": digest("f"),
    }
    return StepRow(**{**values, **changes})


def request(bundle: str = "1", *, expected: int = 0, endpoint: str = "digits", **changes: Any) -> GenerationRequest:
    values: dict[str, Any] = {
        "endpoint": endpoint,
        "site": "local",
        "pool": "edge",
        "bundle": digest(bundle),
        "artifact": digest("e"),
        "path": f"/bundles/{bundle}",
        "runtime": "onnx-cpu",
        "device": "cpu (rehearsal)",
        "kind": "promote",
        "expected": expected,
        "request_id": f"{bundle}-after-{expected}",
        "actor": "ada",
    }
    return GenerationRequest(**{**values, **changes})


def rollout(generation: int = 2, *, stable: int = 1, endpoint: str = "digits", **changes: Any) -> Rollout:
    values: dict[str, Any] = {
        "endpoint": endpoint,
        "generation": generation,
        "site": "local",
        "pool": "edge",
        "stable": stable,
        "strategy": {"kind": "canary", "steps": [{"kind": "set_weight", "weight": 10}, {"kind": "pause"}]},
        "actor": "ada",
    }
    return Rollout(**{**values, **changes})
