"""MLflow down: work goes on, little time is lost, and the projection catches up with everything later."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from pathlib import Path

from support.project import Project

from orchestrator.tracking.ui import serve_ui

RECIPE = 'recipe: 1\nname: patient\nsteps:\n  - {name: a, command: ["true"], params: {n: 1}}\n'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def experiments(url: str) -> list[str]:
    body = json.dumps({"max_results": 100}).encode()
    asked = urllib.request.Request(
        f"{url}/api/2.0/mlflow/experiments/search", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return [e["name"] for e in json.load(answer).get("experiments", [])]


def runs_of(url: str, experiment: str) -> int:
    asked = urllib.request.Request(f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name={experiment}")
    with urllib.request.urlopen(asked, timeout=10) as answer:
        number = json.load(answer)["experiment"]["experiment_id"]
    body = json.dumps({"experiment_ids": [number], "filter": "tags.`orch.kind` = 'execution'"}).encode()
    asked = urllib.request.Request(f"{url}/api/2.0/mlflow/runs/search", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return len(json.load(answer).get("runs", []))


def test_runs_go_on_without_mlflow_and_appear_when_it_is_back(tmp_path: Path):
    port = free_port()
    project = Project(tmp_path)
    project.write("recipe.yaml", RECIPE)
    project.write(
        "env.yaml",
        f"environment: 1\ntracking: {{uri: 'http://127.0.0.1:{port}'}}\nsites: {{local: {{kind: local, allow_cpu: true}}}}\n",
    )
    command = ("run", "recipe.yaml", "-e", "env.yaml", "--json")
    for number in (1, 2):
        began = time.monotonic()
        done = project.run(*command, "--set", f"steps.a.params.n={number}")
        assert done.code == 0, done.err
        assert done.result["state"] == "succeeded"
        assert done.result["tracking"]["state"] in {"pending", "following"}
        assert done.result["wall_s"] < 12, "at most ten seconds of waiting in all"
        assert time.monotonic() - began < 30
    with serve_ui(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts", port=port) as ui:
        done = project.run(*command, "--set", "steps.a.params.n=3", timeout_s=60)
        assert done.code == 0, done.err
        deadline = time.monotonic() + 60
        while "orchestrate/patient" not in experiments(ui.url) or runs_of(ui.url, "orchestrate/patient") < 3:
            assert time.monotonic() < deadline, "the projection did not catch up"
            time.sleep(0.5)
