"""kill -9 at every commit of a small life, then the same command again: the end is the same, and the chain holds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from support.forked import fired, passings, run_forked
from support.ledger_samples import digest, execution, request, rollout, step

from orchestrator.core.errors import Conflict
from orchestrator.ledger import (
    ArtifactRow,
    EventRow,
    ExecutionUpdate,
    GenerationState,
    Ledger,
    MetricRow,
    Owner,
    RolloutState,
)


def life(url: str) -> None:
    """What an engine does, written so that it may be repeated."""
    with Ledger.open(url) as ledger:
        lease = ledger.leases.acquire("recipe/digits", Owner.here("test"), ttl_s=3600)
        ledger.executions.create(execution(), lease)
        ledger.executions.record(lease, steps=[step()])
        ledger.executions.record(
            lease,
            execution=ExecutionUpdate(id="x1", state="succeeded", ended_at=9.0),
            steps=[step(state="succeeded", outputs={"checkpoint": digest("c")})],
            events=[] if ledger.executions.events("x1") else [EventRow(execution="x1", type="done", t=8.0)],
            metrics=[MetricRow(execution="x1", step="train", name="loss", step_number=1, value=0.5, t=8.0)],
            artifacts=[
                ArtifactRow(digest=digest("c"), media_type="m", kind="checkpoint", size_bytes=1, created_at=8.0)
            ],
            edges=[(digest("d"), digest("c"))],
        )
        for number, bundle in enumerate("12"):
            made = ledger.generations.append(request(bundle, expected=number), lease)
            if made.state == GenerationState.STAGED:
                if number:
                    row = ledger.rollouts.begin(rollout(made.number, stable=number), lease)
                    ledger.rollouts.save(replace(row, state=RolloutState.SUCCEEDED, weight=100), lease)
                ledger.generations.set_state("digits", made.number, GenerationState.LIVE, lease, actor="ada")
        back = request("1", expected=2, kind="rollback", request_id="back")
        ledger.generations.roll_back(back, lease)
        ledger.generations.set_state("digits", 1, GenerationState.RETIRED, lease, actor="ada")
        ledger.leases.release(lease)


def picture(url: str) -> dict[str, object]:
    with Ledger.open(url) as ledger:
        return {
            "executions": ledger.executions.list(),
            "steps": ledger.executions.steps("x1"),
            "events": [(row.type, row.t) for row in ledger.executions.events("x1")],
            "metrics": ledger.executions.metrics("x1"),
            "artifacts": ledger.artifacts.list(),
            "edges": ledger.artifacts.children(digest("c")),
            "generations": [(g.number, g.bundle, g.state) for g in ledger.generations.list("digits")],
            "rollouts": [(r.generation, r.state, r.weight) for r in ledger.rollouts.list("digits")],
            "audit": [(row.action, row.subject) for row in ledger.audit.rows()],
            "chain": ledger.audit.verify().count,
            "holder": ledger.leases.holder("recipe/digits"),
        }


def test_kill_at_every_commit_then_repeat(request: pytest.FixtureRequest, tmp_path: Path, ledger_url: str) -> None:
    fresh = [0]

    def new_url() -> str:
        if ledger_url.startswith("sqlite"):
            fresh[0] += 1
            return f"sqlite:///{tmp_path}/ledger-{fresh[0]}.db"
        return request.getfixturevalue("postgres_server").database()

    calm, log = new_url(), tmp_path / "calm.log"
    assert run_forked(partial(life, calm), log=log) == 0
    expected = picture(calm)
    points = passings(log)
    assert len(points) == 28, points  # 14 transactions, each with a point on both sides of its commit
    for number, point in enumerate(points):
        url, log = new_url(), tmp_path / f"{number}.log"
        assert run_forked(partial(life, url), fault=f"{point}:kill", log=log) == -9, point
        assert fired(log), point
        assert run_forked(partial(life, url)) == 0, point
        assert picture(url) == expected, point


def test_a_killed_transition_leaves_nothing_of_itself(ledger_url: str, tmp_path: Path) -> None:
    with Ledger.open(ledger_url) as ledger:
        lease = ledger.leases.acquire("recipe/digits", Owner.here())
        ledger.executions.create(execution(), lease)

    def write() -> None:
        with Ledger.open(ledger_url) as ledger:
            ledger.executions.record(
                lease,
                execution=ExecutionUpdate(id="x1", state="succeeded"),
                steps=[step(state="succeeded")],
                events=[EventRow(execution="x1", type="done", t=1.0)],
            )

    assert run_forked(write, fault="ledger.before_commit:kill") == -9
    with Ledger.open(ledger_url) as ledger:
        assert ledger.executions.get("x1").state == "running"
        assert ledger.executions.steps("x1") == ()
        assert ledger.executions.events("x1") == ()
        with pytest.raises(Conflict):
            ledger.leases.acquire("recipe/digits", Owner.here())  # the parent still lives and holds it
