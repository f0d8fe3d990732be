"""Moves of an endpoint in a real MLflow: one run each, aliases that follow the ledger, and nothing lost while it was down."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.ledger_samples import digest, execution, request
from support.mlflow_server import mlflow_url, session_server  # noqa: F401  # a fixture
from support.tracking_samples import digits, small

from orchestrator.app.projection import execution_mark
from orchestrator.app.releases import bundle_of, look_up, parse_model
from orchestrator.app.rollout_projection import catch_up_rollouts, project_endpoint, projection_state
from orchestrator.app.watch_aliases import AliasWatch
from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import Unreachable, UsageError
from orchestrator.environment import load_environment
from orchestrator.ledger import ArtifactRow, GenerationState, Ledger, Owner, Rollout, RolloutState
from orchestrator.rollout.evidence.rows import Counts, Delta
from orchestrator.rollout.evidence.spec import AnalysisSpec, MetricSpec
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_steps import Analysis, SetWeight
from orchestrator.tracking.client import prepare_environment
from orchestrator.tracking.projector import project
from orchestrator.tracking.snapshot import Deployment, ExecutionSnapshot

prepare_environment()
RECIPE = "moves"
STRATEGY = Strategy(
    kind="canary",
    steps=(SetWeight(10), Analysis(AnalysisSpec(metrics=(MetricSpec(name="error_rate"),)))),
    promote_from="ascend",
)


def workplace_at(folder: Path, uri: str) -> Workplace:
    path = folder / "environment.yaml"
    path.write_text(
        f"environment: 1\nstate: {folder}/state\ntracking: {{uri: '{uri}'}}\n"
        "sites: {local: {kind: local, allow_cpu: true}}\n"
        "pools: {edge: {site: local, soc: Ascend310P3, rehearsal: true}}\n"
    )
    return Workplace(load_environment(path), path)


@pytest.fixture
def workplace(tmp_path: Path, mlflow_url: str) -> Workplace:  # noqa: F811
    return workplace_at(tmp_path, mlflow_url)


@pytest.fixture
def ledger(workplace: Workplace) -> Iterator[Ledger]:
    with workplace.open_ledger() as opened:
        yield opened


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def made(workplace: Workplace, ledger: Ledger, recipe: str, letter: str) -> str:
    """An execution of `recipe` that has trained and registered a model, in ledger and MLflow; returns its bundle's artifact."""
    name = f"x{recipe}{letter}"
    seed = f"{recipe}{letter}".encode()
    whole = digits(workplace.state / "samples", name, seed=seed)
    shown = small(replace(whole, recipe=recipe))
    onnx = next(ref for step in whole.steps for ref in step.outputs if ref.kind == "onnx")
    bundle = next(ref for step in whole.steps for ref in step.outputs if ref.kind == "bundle")
    owner = Owner.here("test")
    with ledger.leases.held(f"recipe/{recipe}", owner) as lease:
        ledger.executions.create(execution(name, recipe), lease)
        rows = [
            ArtifactRow(digest=ref.digest, media_type="m", kind=ref.kind, size_bytes=1, created_at=1.0, execution=name)
            for ref in (onnx, bundle)
        ]
        ledger.executions.record(lease, artifacts=rows, edges=[(bundle.digest, onnx.digest)])
    steps = tuple(step for step in shown.steps if step.kind != "deploy")
    show(workplace, ledger, replace(shown, steps=steps))
    return bundle.digest


def show(workplace: Workplace, ledger: Ledger, snapshot: ExecutionSnapshot) -> None:
    report = project(snapshot, ledger.projections, uri=workplace.tracking_uri, budget_s=60, force=True)
    if report.done:
        ledger.projections.put(execution_mark(snapshot.id), snapshot.state)


def serve(ledger: Ledger, endpoint: str, artifact: str, letter: str, *, walk: bool = False, **changes: Any) -> int:
    """A generation that goes live, by a canary with evidence if asked."""
    live = ledger.generations.live(endpoint)
    expected = live.number if live is not None else 0
    wanted = request(letter, expected=expected, endpoint=endpoint, artifact=artifact, **changes)
    with ledger.leases.held(f"endpoint/{endpoint}", Owner.here("test")) as lease:
        staged = ledger.generations.append(wanted, lease)
        if walk:
            row = Rollout(
                endpoint=endpoint, generation=staged.number, site="local", pool="edge", stable=expected,
                strategy=STRATEGY.to_json(), actor="ada", reason="better",
            )  # fmt: skip
            row = ledger.rollouts.begin(row, lease)
            counts = Counts(requests=500)
            for _ in range(3):
                delta = Delta(t=ledger.now(), boot="b", traffic="weighted", weight=10, canary=counts, stable=counts)
                ledger.rollouts.add_evidence(endpoint, staged.number, [delta.to_json()], lease)
            verdict = {"state": "passed", "metrics": [{"name": "error_rate", "state": "passed", "text": "no errors"}]}
            ledger.rollouts.save(replace(row, state=RolloutState.SUCCEEDED, step=2, weight=100, verdict=verdict), lease)
        ledger.generations.set_state(
            endpoint, staged.number, GenerationState.LIVE, lease, actor="ada", former=GenerationState.WARM
        )
    return staged.number


def moves_in(client: Any, recipe: str) -> list[Any]:
    experiment = client.get_experiment_by_name(f"orchestrate/{recipe}")
    runs = client.search_runs([experiment.experiment_id], "tags.`orch.kind` = 'rollout'")
    return sorted(runs, key=lambda run: int(run.data.params["to_generation"]))


def test_moves_become_runs_and_aliases(workplace: Workplace, ledger: Ledger) -> None:
    client, recipe, endpoint = client_of(workplace.tracking_uri), "moves-shown", "shown"
    one, two = (made(workplace, ledger, recipe, letter) for letter in "12")
    serve(ledger, endpoint, one, "1")
    serve(ledger, endpoint, two, "2", walk=True)
    assert projection_state(workplace, ledger, endpoint) == "pending"
    assert project_endpoint(workplace, ledger, endpoint, force=True) == ()
    assert projection_state(workplace, ledger, endpoint) == "done"
    aliases = client.get_registered_model(f"{recipe}.onnx").aliases
    assert {name: str(aliases[name]) for name in ("live", "previous")} == {"live": "2", "previous": "1"}

    first, second = moves_in(client, recipe)
    assert (first.info.status, second.info.status) == ("FINISHED", "FINISHED")
    params = second.data.params
    assert (params["from_generation"], params["to_generation"], params["strategy"]) == ("1", "2", "canary")
    assert params["strategy_digest"] == STRATEGY.digest
    assert second.data.tags["orch.verdict"] == "passed"
    assert second.data.metrics["weight"] == 100.0
    assert 0 < second.data.metrics["error_rate/upper"] < 0.05
    files = {file.path for file in client.list_artifacts(second.info.run_id)}
    assert {"evidence.json", "evidence.svg"} <= files
    evidence = json.loads(Path(client.download_artifacts(second.info.run_id, "evidence.json")).read_text())
    assert (evidence["rows"], evidence["verdict"]["state"], len(evidence["evidence"])) == (3, "passed", 3)
    whole = client.get_run(second.info.run_id)
    assert whole.inputs.model_inputs, "linked with the models of the bundle"

    serve(ledger, endpoint, one, "1", kind="rollback", request_id="back")
    for _ in range(2):
        assert catch_up_rollouts(workplace, ledger, force=True) == {}
    aliases = client.get_registered_model(f"{recipe}.onnx").aliases
    assert (str(aliases["live"]), str(aliases["previous"])) == ("1", "2")
    assert [run.data.params["kind"] for run in moves_in(client, recipe)] == ["promote", "promote", "rollback"]


def test_an_execution_that_is_mirrored_late_moves_no_alias_back(workplace: Workplace, ledger: Ledger) -> None:
    client, recipe, endpoint = client_of(workplace.tracking_uri), "moves-late", "late"
    one, two = (made(workplace, ledger, recipe, letter) for letter in "12")
    serve(ledger, endpoint, one, "1")
    serve(ledger, endpoint, two, "2")
    assert project_endpoint(workplace, ledger, endpoint, force=True) == ()
    late = small(replace(digits(workplace.state / "samples", f"x{recipe}1", seed=f"{recipe}1".encode()), recipe=recipe))
    deployed = replace(late.steps[-1], deployment=Deployment(endpoint, 1, "edge", digest("1"), "", "cpu"))
    show(workplace, ledger, replace(late, steps=(*late.steps[:-1], deployed)))
    assert str(client.get_registered_model(f"{recipe}.onnx").aliases["live"]) == "2"


def test_everything_appears_when_mlflow_is_back(tmp_path: Path, workplace: Workplace, ledger: Ledger) -> None:
    recipe, endpoint = "moves-down", "down"
    artifact = made(workplace, ledger, recipe, "1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = workplace_at(tmp_path, f"http://127.0.0.1:{probe.getsockname()[1]}")
    serve(ledger, endpoint, artifact, "1", walk=True)
    assert endpoint in catch_up_rollouts(dead, ledger, force=True)
    assert projection_state(dead, ledger, endpoint, 1) == "pending"
    with pytest.raises(Unreachable, match=r"."):
        look_up(dead, parse_model(f"{recipe}@live"))
    assert catch_up_rollouts(workplace, ledger, force=True).get(endpoint) is None
    assert projection_state(workplace, ledger, endpoint, 1) == "done"
    assert len(moves_in(client_of(workplace.tracking_uri), recipe)) == 1


def test_a_name_stands_for_the_bundle_of_its_tag_or_of_the_ledger(workplace: Workplace, ledger: Ledger) -> None:
    client, recipe = client_of(workplace.tracking_uri), "moves-named"
    made(workplace, ledger, recipe, "1")
    with pytest.raises(UsageError, match="no bundle is known"):
        bundle_of(workplace, ledger, look_up(workplace, parse_model(f"{recipe}.onnx")))
    client.set_model_version_tag(f"{recipe}.onnx", "1", "orch.bundle", digest("7"))
    for text in (f"{recipe}.onnx", f"{recipe}.onnx/1", f"{recipe}.onnx@candidate"):
        assert bundle_of(workplace, ledger, look_up(workplace, parse_model(text))) == digest("7")
    with pytest.raises(UsageError, match="alias nobody not found"):
        look_up(workplace, parse_model(f"{recipe}.onnx@nobody"))


def test_an_alias_moved_by_hand_is_drift_and_a_followed_one_a_request(workplace: Workplace, ledger: Ledger) -> None:
    client, recipe, endpoint = client_of(workplace.tracking_uri), "moves-alias", "alias"
    one = made(workplace, ledger, recipe, "1")
    made(workplace, ledger, recipe, "2")
    serve(ledger, endpoint, one, "1", evidence={"strategy": STRATEGY.to_json()})
    assert project_endpoint(workplace, ledger, endpoint, force=True) == ()
    events: list[tuple[str, str, str]] = []
    started: list[str] = []
    watch = AliasWatch(
        workplace,
        ledger,
        lambda event, endpoint, text, **_: events.append((event, endpoint, text)),
        lambda name, _endpoint, _work: started.append(name),
    )
    watch.look()
    assert (events, started) == ([], [])
    name = f"{recipe}.onnx"
    client.set_model_version_tag(name, "2", "orch.bundle", digest("2"))
    client.set_registered_model_alias(name, "live", "2")
    client.set_registered_model_alias(name, "ascend", "2")
    for _ in range(2):
        watch.look()
    assert [event for event, *_ in events] == ["drift"]
    assert f"{name}@live is at version 2" in events[0][2]
    assert started == [f"promote {endpoint}"] * 2, "until it is settled"
    assert projection_state(workplace, ledger, endpoint) == "done", "a hand is not overruled"
