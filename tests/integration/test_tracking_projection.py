"""What MLflow shows of an execution, against a real server and a plain SQLite file."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from support.mlflow_server import mlflow_url, session_server  # noqa: F401  # a fixture
from support.tracking_samples import DictMapping, artifact, digits, until

from orchestrator.core.digests import sha256_file
from orchestrator.core.manifest import Manifest
from orchestrator.tracking.client import prepare_environment
from orchestrator.tracking.projector import metrics_sent, project
from orchestrator.tracking.snapshot import Deployment, ExecutionSnapshot, MetricPoint, ProjectionReport, StepSnapshot

prepare_environment()


def client_of(uri: str) -> Any:
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def named(snapshot: ExecutionSnapshot, recipe: str) -> ExecutionSnapshot:
    return dataclasses.replace(snapshot, recipe=recipe, id=f"x{recipe}")


@dataclasses.dataclass
class Shown:
    uri: str
    client: Any
    snapshot: ExecutionSnapshot
    mapping: DictMapping
    report: ProjectionReport

    def run(self, step: str) -> Any:
        return self.client.get_run(self.report.run_ids[step])

    def digest(self, kind: str) -> str:
        return next(ref.digest for step in self.snapshot.steps for ref in step.outputs if ref.kind == kind)

    def model(self, kind: str) -> Any:
        return self.client.get_logged_model(self.report.model_ids[self.digest(kind)])


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('life')}/mlflow.db"


@pytest.fixture(scope="module", params=["server", "sqlite"])
def shown(request: pytest.FixtureRequest, database: str, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("shown")
    uri = session_server().url if request.param == "server" else database
    recipe = f"shown-{request.param}.v1"
    events = folder / "events.ndjson"
    events.write_text('{"type": "started", "url": "https://user:hunter2@host/x"}\n')
    snapshot = dataclasses.replace(named(digits(folder / "store", points=400), recipe), events_path=events)
    mapping = DictMapping()
    report = project(snapshot, mapping, uri=uri, budget_s=60)
    assert report.done, report.pending
    assert report.refused == ()
    return Shown(uri, client_of(uri), snapshot, mapping, report)


def test_experiment_opens_in_the_training_view(shown: Shown) -> None:
    experiment = shown.client.get_experiment_by_name(f"orchestrate/{shown.snapshot.recipe}")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_execution_run(shown: Shown) -> None:
    run = shown.run("execution")
    assert run.info.status == "FINISHED"
    assert run.info.end_time == shown.snapshot.ended_at_ms
    assert run.data.metrics["evaluate/accuracy"] == 0.965
    tags = run.data.tags
    assert tags["orch.kind"] == "execution"
    assert tags["orch.recipe_sha256"] == shown.snapshot.recipe_sha256
    assert tags["mlflow.source.git.commit"] == shown.snapshot.git.commit  # type: ignore[union-attr]
    assert (tags["orch.git_dirty"], tags["mlflow.source.git.branch"]) == ("true", "main")
    assert "| [train](#/experiments/" in tags["mlflow.note.content"]
    files = {file.path for file in shown.client.list_artifacts(run.info.run_id)}
    assert {"recipe.yaml", "plan.json", "events.jsonl"} <= files
    path = shown.client.download_artifacts(run.info.run_id, "events.jsonl")
    assert "hunter2" not in Path(path).read_text()


def test_steps_are_nested_runs_with_what_they_did(shown: Shown) -> None:
    run = shown.run("train")
    assert run.data.tags["mlflow.parentRunId"] == shown.report.run_ids["execution"]
    assert run.data.params == {"epochs": "12", "lr": "0.002"}
    assert run.data.metrics["accuracy"] == 0.97
    assert json.loads(run.data.tags["orch.sources"]) == dict(shown.snapshot.steps[1].sources)
    assert len(shown.client.get_metric_history(run.info.run_id, "loss")) == 400
    assert "system/cpu_utilization_percentage" in run.data.metrics
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "digits"
    assert len(data.dataset.digest) == 36
    assert {tag.key: tag.value for tag in data.tags}["orch.digest"] == shown.snapshot.steps[1].datasets[0].digest
    report = {file.path for file in shown.client.list_artifacts(shown.report.run_ids["evaluate"], "outputs/report")}
    assert "outputs/report/report.json" in report


def test_the_chain_of_models(shown: Shown) -> None:
    checkpoint, onnx = shown.model("checkpoint"), shown.model("onnx")
    assert (checkpoint.model_type, onnx.model_type) == ("checkpoint", "onnx")
    assert (str(checkpoint.status.value), str(onnx.status.value)) == ("READY", "READY")
    assert checkpoint.source_run_id == shown.report.run_ids["train"]
    assert onnx.source_run_id == shown.report.run_ids["export"]
    assert json.loads(onnx.tags["orch.parents"]) == [checkpoint.model_id]
    assert onnx.tags["orch.sha256"] == shown.digest("onnx")
    assert onnx.params["opset"] == "17"
    assert "made from" in onnx.tags["mlflow.note.content"]

    def edges(step: str) -> tuple[set[str], set[str]]:
        run = shown.run(step)
        used = {model.model_id for model in run.inputs.model_inputs} if run.inputs else set()
        made = {model.model_id for model in run.outputs.model_outputs} if run.outputs else set()
        return used, made

    assert edges("train") == (set(), {checkpoint.model_id})
    assert edges("export") == ({checkpoint.model_id}, {onnx.model_id})
    assert edges("parity") == ({checkpoint.model_id, onnx.model_id}, set())
    assert edges("deploy") == ({onnx.model_id}, set())


def test_consumers_logged_a_metric_with_the_model(shown: Shown) -> None:
    runs = {metric.run_id for metric in shown.model("onnx").metrics}
    assert {shown.report.run_ids[step] for step in ("parity", "bundle", "deploy")} <= runs
    metric = next(
        m
        for m in shown.model("checkpoint").metrics
        if m.run_id == shown.report.run_ids["evaluate"] and m.key == "accuracy"
    )
    assert metric.value == 0.965
    assert metric.dataset_name == "digits"


def test_registry(shown: Shown) -> None:
    name = shown.snapshot.recipe
    for registered, kind in ((name, "checkpoint"), (f"{name}.onnx", "onnx")):
        model = shown.client.get_registered_model(registered)
        assert {k: str(v) for k, v in model.aliases.items()} == {"candidate": "1", "live": "1"}
        version = shown.client.get_model_version(registered, "1")
        assert version.source == f"models:/{shown.model(kind).model_id}"
        assert version.tags["orch.generation.digits"] == "1"
        assert version.tags["orch.device"] == "cpu (rehearsal)"
        assert version.tags["orch.bundle"] == shown.snapshot.steps[-1].deployment.bundle  # type: ignore[union-attr]
        assert json.loads(shown.model(kind).tags["mlflow.modelVersions"]) == [{"name": registered, "version": 1}]


def test_aliases_load_and_match_our_manifest(shown: Shown, tmp_path: Path) -> None:
    import mlflow
    import numpy as np

    name = shown.snapshot.recipe
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@candidate", dst_path=str(tmp_path)))
    manifest = Manifest.read(folder)
    assert manifest.digest == shown.digest("checkpoint")
    manifest.verify(folder)
    model = mlflow.pyfunc.load_model(f"models:/{name}.onnx@live")
    assert model.predict({"x": np.ones((2, 4), np.float32)})["y"].tolist() == [[18, 22, 26], [18, 22, 26]]
    assert model.metadata.get_input_schema().input_names() == ["x"]
    copy = Path(mlflow.artifacts.download_artifacts(f"models:/{name}.onnx@live", dst_path=str(tmp_path / "onnx")))
    original = next(ref.path for step in shown.snapshot.steps for ref in step.outputs if ref.kind == "onnx")
    assert original is not None
    assert sha256_file(copy / "model.onnx") == sha256_file(original / "model.onnx")


def test_doing_it_again_sends_nothing(shown: Shown) -> None:
    before = dict(shown.mapping.values)
    started = time.monotonic()
    again = project(shown.snapshot, shown.mapping, uri=shown.uri)
    assert again.done
    assert time.monotonic() - started < 5
    assert shown.mapping.values == before
    assert again.urls == shown.report.urls


def test_forgetting_everything_adopts_what_is_there(shown: Shown) -> None:
    """The ledger was restored from a backup: same picture, no doubles."""
    again = project(shown.snapshot, DictMapping(), uri=shown.uri, budget_s=60)
    assert again.done, again.pending
    assert again.refused == ()
    assert (again.run_ids, again.model_ids) == (shown.report.run_ids, shown.report.model_ids)
    experiment = shown.client.get_experiment_by_name(f"orchestrate/{shown.snapshot.recipe}").experiment_id
    assert len(shown.client.search_runs([experiment], max_results=100)) == 9
    assert len(shown.client.search_logged_models([experiment])) == 2
    assert len(shown.client.get_metric_history(again.run_ids["train"], "loss")) == 400
    assert len(shown.run("train").outputs.model_outputs) == 1
    assert [v.version for v in shown.client.search_model_versions(f"name = '{shown.snapshot.recipe}'")] in (["1"], [1])


# --- the life of executions; on one SQLite file -------------------------------------------------------------------


def test_a_running_execution_streams_and_is_cheap(database: str, tmp_path: Path) -> None:
    whole = named(digits(tmp_path / "store", points=1000), "streaming")
    mapping, times = DictMapping(), []
    for points in (0, 30, 60, 90, 3000):
        started = time.monotonic()
        report = project(until(whole, "train", points=points), mapping, uri=database, budget_s=60)
        times.append(time.monotonic() - started)
        assert report.done, report.pending
        assert metrics_sent(mapping, database, whole.id, "train") == points
    client = client_of(database)
    run = client.get_run(report.run_ids["train"])
    assert run.info.status == "RUNNING"
    assert client.get_run(report.run_ids["execution"]).info.status == "RUNNING"
    assert "evaluate" not in report.run_ids
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1000
    assert max(times[1:4]) < 1.0


def test_a_snapshot_may_leave_out_what_was_sent(database: str, tmp_path: Path) -> None:
    whole = named(digits(tmp_path / "store", points=20), "offsets")
    mapping = DictMapping()
    project(until(whole, "train", points=30), mapping, uri=database, budget_s=60)
    rest = until(whole, "train", points=60)
    train = dataclasses.replace(rest.steps[1], metrics=rest.steps[1].metrics[30:], metrics_offset=30)
    report = project(dataclasses.replace(rest, steps=(rest.steps[0], train)), mapping, uri=database, budget_s=60)
    assert (report.done, report.refused) == (True, ())
    assert len(client_of(database).get_metric_history(report.run_ids["train"], "loss")) == 20


def test_odd_values_survive(database: str, tmp_path: Path) -> None:
    whole = named(digits(tmp_path / "store"), "odd")
    points = tuple(MetricPoint("loss(å)", value, i, 10**12 + i) for i, value in enumerate((1.0, math.nan, math.inf)))
    train = dataclasses.replace(
        whole.steps[1],
        metrics=points,
        params={"prompt": "z" * 20_000, "api_key": "sk-secret-value", "weird(key)": "1"},
        sources={f"package/module_{i}.py": "sha256:" + "0" * 64 for i in range(200)},
        summary={"nan": math.nan},
    )
    report = project(dataclasses.replace(whole, steps=(train,)), DictMapping(), uri=database, budget_s=60)
    assert (report.done, report.refused) == (True, ())
    client = client_of(database)
    run = client.get_run(report.run_ids["train"])
    assert run.data.params["api_key"] == "***"
    assert "20000 characters" in run.data.params["prompt"]
    text = Path(client.download_artifacts(run.info.run_id, "params/prompt.txt")).read_text()
    assert text == "z" * 20_000
    assert "tags/orch.sources.txt" in run.data.tags["orch.sources"]
    assert math.isnan(run.data.metrics["nan"])


def test_failure_resume_and_success(database: str, tmp_path: Path) -> None:
    whole = named(digits(tmp_path / "store"), "resumed")
    failing = until(whole, "export")
    export = dataclasses.replace(
        failing.steps[3], state="failed(user)", ended_at_ms=10**13, error="boom | bang\nline 2"
    )
    failed = dataclasses.replace(
        failing, state="failed(user)", ended_at_ms=10**13, steps=(*failing.steps[:3], export, *failing.steps[4:])
    )
    mapping, client = DictMapping(), client_of(database)
    report = project(failed, mapping, uri=database, budget_s=60)
    assert client.get_run(report.run_ids["execution"]).info.status == "FAILED"
    run = client.get_run(report.run_ids["export"])
    assert (run.info.status, run.data.tags["orch.error"]) == ("FAILED", "boom | bang\nline 2")
    report = project(until(whole, "export"), mapping, uri=database, budget_s=60)
    assert client.get_run(report.run_ids["execution"]).info.status == "RUNNING"
    report = project(whole, mapping, uri=database, budget_s=60)
    assert (report.done, report.refused) == (True, ())
    assert client.get_run(report.run_ids["export"]).info.status == "FINISHED"


def _reusing(whole: ExecutionSnapshot, execution: str) -> ExecutionSnapshot:
    steps = tuple(
        dataclasses.replace(step, action="REUSE", reused_from=whole.id, metrics=(), ended_at_ms=step.started_at_ms)
        if step.kind not in {"register", "deploy"}
        else step
        for step in whole.steps
    )
    return dataclasses.replace(whole, id=execution, steps=steps)


def test_reused_steps_link_to_the_same_models(database: str, tmp_path: Path) -> None:
    whole = named(digits(tmp_path / "store"), "reused")
    mapping, client = DictMapping(), client_of(database)
    first = project(whole, mapping, uri=database, budget_s=60)
    second = project(_reusing(whole, "xreused2"), mapping, uri=database, budget_s=60)
    assert (second.done, second.refused) == (True, ())
    assert second.model_ids == first.model_ids
    run = client.get_run(second.run_ids["train"])
    assert run.data.tags["orch.reused_from"] == whole.id
    assert [o.model_id for o in run.outputs.model_outputs] == [first.model_ids[whole.steps[1].outputs[0].digest]]
    experiment = client.get_experiment_by_name("orchestrate/reused").experiment_id
    assert len(client.search_logged_models([experiment])) == 2
    assert len(client.search_model_versions("name = 'reused'")) == 1


def _deployed(whole: ExecutionSnapshot, generation: int, at_ms: int) -> ExecutionSnapshot:
    deploy = whole.steps[-1]
    assert deploy.deployment is not None
    live = dataclasses.replace(deploy.deployment, generation=generation)
    moved = dataclasses.replace(deploy, deployment=live, started_at_ms=at_ms - 1, ended_at_ms=at_ms)
    register = dataclasses.replace(whole.steps[-2], ended_at_ms=at_ms - 2)
    return dataclasses.replace(whole, steps=(*whole.steps[:-2], register, moved))


def test_live_and_previous_move_forward_only(database: str, tmp_path: Path) -> None:
    one = _deployed(named(digits(tmp_path / "store"), "alias"), 1, 10**12)
    two = dataclasses.replace(
        _deployed(named(digits(tmp_path / "store", seed=b"2"), "alias"), 2, 2 * 10**12), id="xalias2"
    )
    mapping, client = DictMapping(), client_of(database)
    aliases = lambda: {k: str(v) for k, v in client.get_registered_model("alias.onnx").aliases.items()}  # noqa: E731
    project(one, mapping, uri=database, budget_s=60)
    project(two, mapping, uri=database, budget_s=60)
    assert aliases() == {"candidate": "2", "live": "2", "previous": "1"}

    project(one, DictMapping(), uri=database, budget_s=60)  # an old execution, mirrored again by someone who forgot
    assert aliases() == {"candidate": "2", "live": "2", "previous": "1"}

    bundle = one.steps[-1].inputs[0]
    refs = [ref for step in one.steps for ref in step.outputs if ref.kind in {"checkpoint", "onnx"}]
    parents = {"onnx": (refs[0].digest,), "checkpoint": ()}
    lineage = tuple(dataclasses.replace(ref, parents=parents[ref.kind], path=None) for ref in refs)
    back = StepSnapshot(
        "rollback",
        "rollback",
        state="succeeded",
        started_at_ms=3 * 10**12,
        ended_at_ms=3 * 10**12 + 5,
        inputs=(dataclasses.replace(bundle, parents=tuple(ref.digest for ref in refs)),),
        deployment=Deployment("digits", 3, "edge", bundle.digest),
    )
    report = project(
        dataclasses.replace(one, id="xalias3", steps=(back,), lineage=lineage), mapping, uri=database, budget_s=60
    )
    assert (report.done, report.refused) == (True, ())
    assert aliases() == {"candidate": "2", "live": "1", "previous": "2"}

    client.set_registered_model_alias("alias.onnx", "live", "2")  # a person moved it: we show, we do not overrule
    project(two, mapping, uri=database, budget_s=60)
    assert aliases()["live"] == "2"


def test_a_wiped_server_is_filled_again(database: str, tmp_path: Path) -> None:
    whole, mapping = named(digits(tmp_path / "store"), "wiped"), DictMapping()
    first = project(whole, mapping, uri=database, budget_s=60)
    client = client_of(database)
    for run_id in first.run_ids.values():
        client.delete_run(run_id)
    changed = dataclasses.replace(whole, state="cancelled")
    second = project(changed, mapping, uri=database, budget_s=60)
    assert (second.done, second.refused) == (True, ())
    assert set(second.run_ids.values()).isdisjoint(first.run_ids.values())
    assert second.model_ids == first.model_ids
    assert client.get_run(second.run_ids["execution"]).info.status == "KILLED"


def test_missing_and_damaged_files_are_refused_not_shown(database: str, tmp_path: Path) -> None:
    whole = named(digits(tmp_path / "store"), "damaged")
    damaged = artifact(tmp_path / "store", "onnx", {"model.onnx": b"whole"})
    assert damaged.path is not None
    (damaged.path / "model.onnx").chmod(0o644)
    (damaged.path / "model.onnx").write_bytes(b"torn")
    export = dataclasses.replace(whole.steps[3], outputs=(damaged,))
    report = project(
        dataclasses.replace(whole, steps=(*whole.steps[:3], export)), DictMapping(), uri=database, budget_s=60
    )
    assert report.done
    assert "has 4 bytes, expected 5" in report.refused[0]
    assert client_of(database).get_logged_model(report.model_ids[damaged.digest]).status.value == "PENDING"
