"""MLflow away, slow, lying, or losing replies; the projector killed anywhere: one run, one model, one version, in time."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.forked import run_forked
from support.mlflow_server import mlflow_url  # noqa: F401  # a fixture
from support.proxy import Fault, Proxy, black_hole, closed_port, post, proxy_to
from support.tracking_samples import DictMapping, FileMapping, digits, small, until

from orchestrator.tracking.client import prepare_environment
from orchestrator.tracking.projector import project
from orchestrator.tracking.snapshot import ExecutionSnapshot, ProjectionReport

prepare_environment()


def sample(store: Path, recipe: str) -> ExecutionSnapshot:
    return small(dataclasses.replace(digits(store), recipe=recipe, id=f"x{recipe}"))


def client_of(uri: str) -> Any:
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def counts(uri: str, recipe: str) -> tuple[int, int, int, int, int]:
    """Runs, distinct run keys, models, checkpoint versions, onnx versions."""
    client = client_of(uri)
    experiment = client.get_experiment_by_name(f"orchestrate/{recipe}").experiment_id
    runs = client.search_runs([experiment], max_results=200)
    return (
        len(runs),
        len({run.data.tags["orch.key"] for run in runs}),
        len(client.search_logged_models([experiment])),
        len(client.search_model_versions(f"name = '{recipe}'")),
        len(client.search_model_versions(f"name = '{recipe}.onnx'")),
    )


ONCE = (5, 5, 2, 1, 1)


def until_done(snapshot: ExecutionSnapshot, mapping: DictMapping, uri: str, calls: int = 12) -> ProjectionReport:
    for _ in range(calls):
        report = project(snapshot, mapping, uri=uri, budget_s=30, force=True)
        if report.done:
            assert report.refused == ()
            return report
    raise AssertionError(report)


LOSSES = {
    "experiment": post("/experiments/create"),
    "run": post("/runs/create"),
    "model": post("/logged-models"),
    "version": post("/model-versions/create"),
    "registered": post("/registered-models/create"),
    "outputs": post("/runs/outputs"),
    "inputs": post("/runs/log-inputs"),
    "batch": post("/runs/log-batch"),
    "status": post("/runs/update"),
    "alias": post("/registered-models/alias"),
    "finalize": lambda method, path: method == "PATCH" and "/logged-models/" in path,
    "upload": lambda method, path: method == "PUT" and "/mlflow-artifacts/" in path,
}


@pytest.mark.parametrize("what", ["run", "model", "version", "outputs"])
def test_lost_replies_make_no_doubles(what: str, mlflow_url: str, tmp_path: Path) -> None:  # noqa: F811
    recipe = f"lost-{what}"
    with proxy_to(mlflow_url) as proxy:
        faults = [Fault(LOSSES[what], "drop", times=2)]
        proxy.faults += faults
        report = until_done(sample(tmp_path, recipe), DictMapping(), proxy.url)
        assert faults[0].fired == 2
    assert counts(mlflow_url, recipe) == ONCE
    outputs = client_of(mlflow_url).get_run(report.run_ids["train"]).outputs.model_outputs
    assert len(outputs) == 1


def test_a_lost_reply_on_every_kind_of_post_once(mlflow_url: str, tmp_path: Path) -> None:  # noqa: F811
    with proxy_to(mlflow_url) as proxy:
        proxy.faults += [Fault(match, "drop") for match in LOSSES.values()]
        until_done(sample(tmp_path, "lost-all"), DictMapping(), proxy.url, calls=30)
        assert all(fault.fired == 1 for fault in proxy.faults)
    assert counts(mlflow_url, "lost-all") == ONCE


@pytest.mark.parametrize("kind", ["status", "html"])
def test_a_broken_front_is_pending_and_catches_up(kind: str, mlflow_url: str, tmp_path: Path) -> None:  # noqa: F811
    snapshot, mapping = sample(tmp_path, f"front-{kind}"), DictMapping()
    with proxy_to(mlflow_url) as proxy:
        proxy.faults.append(Fault(lambda _, __: True, kind, times=3))
        first = project(snapshot, mapping, uri=proxy.url)
        assert not first.done
        assert proxy.faults[0].fired == 1  # one request, no retry storm
        assert until_done(snapshot, mapping, proxy.url).done
    assert counts(mlflow_url, snapshot.recipe) == ONCE


def test_a_request_that_is_carried_out_after_we_gave_up(mlflow_url: str, tmp_path: Path) -> None:  # noqa: F811
    """The server is slow: our create is executed long after the budget; the next call must find it, not repeat it."""
    snapshot, mapping = sample(tmp_path, "late"), DictMapping()
    with proxy_to(mlflow_url) as proxy:
        fault = Fault(post("/runs/create"), "delay", delay_s=2.5)
        proxy.faults.append(fault)
        started = time.monotonic()
        assert not project(snapshot, mapping, uri=proxy.url, budget_s=1.5).done
        assert time.monotonic() - started < 3.5
        assert until_done(snapshot, mapping, proxy.url).done
        assert fault.fired == 1
    assert counts(mlflow_url, "late") == ONCE


def test_a_slow_upload_goes_on_and_is_not_repeated(mlflow_url: str, tmp_path: Path) -> None:  # noqa: F811
    """A large checkpoint takes longer than a call may: the next calls wait for the same upload."""
    snapshot, mapping = sample(tmp_path, "upload"), DictMapping()
    with proxy_to(mlflow_url) as proxy:
        fault = Fault(lambda method, path: method == "PUT" and path.endswith("/model.safetensors"), "delay", delay_s=5)
        proxy.faults.append(fault)
        first = project(snapshot, mapping, uri=proxy.url, budget_s=4)
        assert not first.done
        assert "deploy" in first.run_ids or fault.fired == 0  # figures and edges come before large files
        assert until_done(snapshot, mapping, proxy.url).done
        uploads = [path for method, path in proxy.requests if method == "PUT" and path.endswith("/model.safetensors")]
        assert len(uploads) == 1
    assert counts(mlflow_url, "upload") == ONCE


def test_down_is_quick_and_the_breaker_spares_the_next_calls(tmp_path: Path) -> None:
    snapshot, mapping, uri = sample(tmp_path, "down"), DictMapping(), closed_port()
    started = time.monotonic()
    report = project(snapshot, mapping, uri=uri)
    assert not report.done
    assert report.pending
    assert time.monotonic() - started < 10
    started = time.monotonic()
    again = project(snapshot, mapping, uri=uri)
    assert "next attempt in" in again.pending[0]
    assert time.monotonic() - started < 1


def test_a_half_open_peer_costs_the_budget_and_no_more(tmp_path: Path) -> None:
    with black_hole() as uri:
        started = time.monotonic()
        report = project(sample(tmp_path, "hole"), DictMapping(), uri=uri, budget_s=2)
        assert not report.done
        assert time.monotonic() - started < 3


def test_a_stuck_request_does_not_hold_the_process_at_exit(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from pathlib import Path; from support.tracking_samples import *;"
        "from orchestrator.tracking.projector import project;"
        "r = project(digits(Path(sys.argv[2])), DictMapping(), uri=sys.argv[3], budget_s=4); print(r.done)"
    )
    with black_hole() as uri:
        started = time.monotonic()
        tests = str(Path(__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "-c", code, tests, str(tmp_path), uri], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == "False", done.stderr
        assert time.monotonic() - started < 9


def test_a_server_that_comes_back_is_caught_up(mlflow_url: str, tmp_path: Path) -> None:  # noqa: F811
    """Down while the execution runs and ends; the same mapping later gives the whole picture."""
    snapshot, mapping = sample(tmp_path, "back"), DictMapping()
    with proxy_to(mlflow_url) as proxy:
        fault = Fault(lambda _, __: True, "status", times=10**6)
        proxy.faults.append(fault)
        for state in (until(snapshot, "train", points=9), snapshot):
            assert not project(state, mapping, uri=proxy.url, budget_s=5, force=True).done
        fault.times = 0
        report = project(snapshot, mapping, uri=proxy.url, budget_s=60, force=True)
        assert report.done
    assert counts(mlflow_url, "back") == ONCE
    assert len(client_of(mlflow_url).get_metric_history(report.run_ids["train"], "loss")) == 12


def test_every_request_of_a_call_is_made_once(mlflow_url: str, tmp_path: Path) -> None:  # noqa: F811
    with proxy_to(mlflow_url) as proxy:
        assert project(sample(tmp_path, "counted"), DictMapping(), uri=proxy.url, budget_s=60).done
        made = Counter(path.partition("?")[0] for method, path in _posts(proxy))
        assert made["/api/2.0/mlflow/runs/create"] == 5
        assert made["/api/2.0/mlflow/model-versions/create"] == 2


def _posts(proxy: Proxy) -> list[tuple[str, str]]:
    return [request for request in proxy.requests if request[0] == "POST"]


def project_once(folder: Path, uri: str) -> None:
    report = project(sample(folder / "store", "killed"), FileMapping(folder / "mapping"), uri=uri, budget_s=60)
    assert report.done, report
    assert not report.refused, report


def test_kill_9_anywhere_then_again(mlflow_url: str, tmp_path: Path) -> None:  # noqa: F811
    """SIGKILL around creates and after other replies, again and again; each call goes on from where the last one died."""
    kills, code = 0, -1
    work = partial(project_once, tmp_path, mlflow_url)
    points = ["before_create#1", "after_create#1", "after_create#2", "before_create#1", "after_create#3", "reply#9"]
    for number, point in enumerate([*points, "reply#14", "after_create#1", "reply#17", "reply#12", "reply#19", ""]):
        fault, log = f"tracking.{point}:kill" if point else "", tmp_path / f"faults-{number}"
        code = run_forked(work, fault=fault, log=log)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert " fired" in log.read_text()
        kills += 1
    assert code == 0
    assert kills >= 8
    assert counts(mlflow_url, "killed") == ONCE
