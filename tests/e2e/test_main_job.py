"""The main job as a newcomer meets it: recipes/digits, the embedded environment, real Ray, MLflow, agent and router.

One project and one site for the whole file, in the order of the file; the last test takes the site down.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http
from support.browser import chromium, click, needs_browser, see
from support.project import ROOT, Done, Project

from orchestrator.tracking.ui import serve_ui

RECIPE = str(ROOT / "recipes" / "digits" / "recipe.yaml")
LOCAL = str(ROOT / "configs" / "local.yaml")
STEPS = [
    "preflight",
    "train",
    "evaluate",
    "export",
    "forecast-npu",
    "bundle",
    "compile-npu",
    "parity",
    "register",
    "deploy",
]


EPOCHS = 30
"""Of the training that is killed: so many that it cannot end before its worker has noticed."""


def run(project: Project, *arguments: str, **extra: str) -> Done:
    return project.run("run", RECIPE, "-e", LOCAL, "--json", *arguments, timeout_s=280, **extra)


def ask(project: Project, *arguments: str) -> dict[str, Any]:
    done = project.run(*arguments, "-e", LOCAL, "--json")
    assert done.code == 0, done.err + done.out
    return done.result


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory):
    made = Project(tmp_path_factory.mktemp("digits"))
    try:
        yield made
    finally:
        made.run("down", "-e", LOCAL)


@pytest.fixture(scope="module")
def first(project: Project) -> Done:
    done = run(project)
    assert done.code == 0, done.err[-3000:] + done.out[-6000:]
    return done


@pytest.fixture(scope="module")
def url(project: Project, first: Done) -> str:
    return ask(project, "endpoint", "list")["endpoints"][0]["url"]


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """The recipe's own held-out images and labels, without importing the recipe."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))[-360:]
    return (digits.images[order, None] / 16).astype(np.float32), digits.target[order]


def test_every_step_runs_and_the_model_is_good(first: Done):
    result = first.result
    assert result["state"] == "succeeded"
    assert [s["step"] for s in result["steps"]] == STEPS
    assert {s["action"] for s in result["steps"]} == {"RUN"}
    steps = {s["step"]: s for s in result["steps"]}
    assert steps["evaluate"]["metrics"]["accuracy"] >= 0.97
    assert result["endpoint"]["device"] == "cpu (rehearsal)"
    assert result["endpoint"]["generation"] == 1
    metrics = [line for line in first.lines if line["event"] == "metric" and line["step"] == "train"]
    assert len([m for m in metrics if m["name"] == "loss"]) == 10, "one loss per epoch, streamed"
    assert any(m["name"].startswith("system/") for m in metrics)


def test_nothing_changed_is_reused_whole(project: Project, first: Done):
    second = run(project)
    assert second.code == 0
    assert {s["action"] for s in second.result["steps"]} == {"REUSE"}
    assert second.result["endpoint"]["bundle"] == first.result["endpoint"]["bundle"]


def test_the_move_is_told_and_nothing_is_called_compiled(first: Done):
    (move,) = first.result["moves"]
    assert (move["target"], move["status"], move["compiled"]) == ("npu", "uncalibrated", False)
    assert move["sqnr_db"] > 40
    assert move["skipped"].startswith("no ATC on this site")
    assert first.result["endpoint"]["runtime"] == "twin"


def test_the_twin_answers_and_it_rounds(project: Project, first: Done):
    answer = ask(project, "endpoint", "infer", "digits")
    logits = np.array(answer["outputs"]["logits"], np.float32)
    assert np.array_equal(logits, logits.astype(np.float16).astype(np.float32)), "the output of fp16 is an fp16 number"


def test_parity_is_judged_again_without_a_run(project: Project, first: Done):
    same = project.run("recheck", RECIPE, "-e", LOCAL, "--json")
    assert same.code == 0, same.err
    names = ["torch → onnx", "torch → graph (npu)", "torch → twin (npu)", "torch → variant (npu)"]
    assert [link["link"] for link in json.loads(same.out)["links"]] == names
    strict = project.run("recheck", RECIPE, "-e", LOCAL, "--json", "--set", "targets.0.parity.min_sqnr_db=100")
    assert strict.code == 1
    (miss,) = json.loads(strict.out)["misses"]
    assert miss.startswith("torch → twin (npu): logits: SQNR ")
    policy = project.write("policy.yaml", "policy: 1\ntargets: {npu: {min_sqnr_db: 20}}\n")
    assert project.run("recheck", RECIPE, "-e", LOCAL, "--policy", str(policy)).code == 0
    strange = project.write("strange.yaml", "policy: 1\ntargets: {cpu: {min_sqnr_db: 20}}\n")
    refused = project.run("recheck", RECIPE, "-e", LOCAL, "--policy", str(strange))
    assert (refused.code, "measured: npu" in refused.err) == (2, True)


def test_endpoint_list_has_its_documented_shape(project: Project, first: Done):
    (row,) = ask(project, "endpoint", "list")["endpoints"]
    assert set(row) == {"endpoint", "url", "generation", "bundle", "device", "pool", "state"}
    assert (row["endpoint"], row["generation"], row["pool"], row["state"]) == ("digits", 1, "edge", "ready")
    assert row["bundle"] == first.result["endpoint"]["bundle"]
    answer = ask(project, "endpoint", "infer", "digits")
    assert np.shape(answer["outputs"]["logits"]) == (1, 10)


def test_tritonclient_gets_right_answers(url: str, first: Done):
    host = url.removeprefix("http://").partition("/")[0]
    images, labels = held_out()
    with tritonclient.http.InferenceServerClient(host) as client:
        assert client.is_model_ready("digits")
        assert client.get_model_metadata("digits")["versions"] == ["1"]
        given = tritonclient.http.InferInput("image", [32, 1, 8, 8], "FP32")
        given.set_data_from_numpy(images[:32])
        answer = client.infer("digits", [given])
        assert answer.get_response()["model_version"] == "1"
        assert (answer.as_numpy("logits").argmax(1) == labels[:32]).mean() >= 0.9


def test_curl_gets_json_and_the_header_names_the_bundle(url: str, first: Done, tmp_path: Path):
    images, labels = held_out()
    tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": images[0].ravel().tolist()}
    body = tmp_path / "request.json"
    body.write_text(json.dumps({"id": "q1", "inputs": [tensor]}))
    command = ["curl", "-sS", "-i", "-H", "Content-Type: application/json", "--data", f"@{body}", f"{url}/infer"]
    head, _, text = subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\n\n")
    answer = json.loads(text)
    assert int(np.argmax(answer["outputs"][0]["data"])) == labels[0]
    assert (answer["id"], answer["model_version"]) == ("q1", "1")
    headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:])
    assert headers["x-orchestrate-bundle"] == first.result["endpoint"]["bundle"]
    assert headers["x-orchestrate-device"] == "cpu (rehearsal)"


def test_lineage_from_an_answers_header_back_to_data_and_commit(project: Project, first: Done):
    header = f"x-orchestrate-bundle: {first.result['endpoint']['bundle']}"
    found = ask(project, "lineage", header)
    assert {"bundle", "onnx", "checkpoint"} <= {a["kind"] for a in found["artifacts"]}
    (execution,) = [e for e in found["executions"] if e["execution"] == first.result["execution"]]
    assert execution["data"]["digits"].startswith("package:scikit-learn/digits@")
    assert found["generations"][0]["endpoint"] == "digits"
    if (ROOT / ".git").exists():  # somebody may commit while the tests run, so: a commit of this history
        known = ["git", "-C", str(ROOT), "merge-base", "--is-ancestor", str(execution["commit"]), "HEAD"]
        assert subprocess.run(known, check=False).returncode == 0
    checkpoint = next(a["digest"] for a in found["artifacts"] if a["kind"] == "checkpoint")
    assert ask(project, "lineage", checkpoint)["generations"] == found["generations"]


def test_no_secret_reaches_arguments_or_environments_of_the_site(project: Project, first: Done):
    status = ask(project, "site", "status")
    token = Path(status["ray_token_path"]).read_text().strip()
    assert len(token) >= 32
    assert Path(status["ray_token_path"]).stat().st_mode & 0o077 == 0
    for pid in {pid for pid in status["pids"].values() if isinstance(pid, int)}:
        for name in ("cmdline", "environ"):
            assert token.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert httpx.get(f"{status['dashboard_url']}/api/version").status_code == 401


def test_a_missed_gate_says_by_how_much(project: Project, first: Done, tmp_path: Path):
    """Only the gate changes, so nothing is trained again: stored metrics are judged anew."""
    text = Path(RECIPE).read_text().replace("accuracy >= 0.97", "accuracy >= 0.9999")
    for name in ("model.py", "train.py"):
        (tmp_path / name).write_text((Path(RECIPE).parent / name).read_text())
    (tmp_path / "recipe.yaml").write_text(text)
    done = project.run("run", str(tmp_path / "recipe.yaml"), "-e", LOCAL, "--json", timeout_s=120)
    assert done.code == 1
    assert done.result["error"] == "GateError"
    assert "missed by" in done.result["message"]
    states = {e["step"]: (e["state"], e["action"]) for e in done.lines if e.get("event") == "step"}
    assert states["train"] == ("succeeded", "REUSE")
    assert states["evaluate"] == ("failed", "REUSE")


def test_three_kills_of_the_orchestrator_end_as_if_nothing_had_happened(project: Project, first: Done):
    """kill -9 in the middle of training, between registering and deploying, and in the middle of the deploy."""
    quick = ("--set", "rollout.probe.rate=100", "--set", "rollout.canary.steps.4.pause.duration=0.1s")
    longer = ("--set", f"params.epochs={EPOCHS}", *quick)
    earlier = len(ask(project, "status", "--recipe", "digits")["executions"])
    process = project.start("run", RECIPE, "-e", LOCAL, "--json", *longer)
    trained = 0
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "metric" and event["name"] == "loss":
            trained += 1
        if trained == 4:
            process.send_signal(signal.SIGKILL)
            break
    assert trained == 4
    process.communicate()
    committed = _newest_checkpoint(project)
    log = project.folder / "faults.log"
    for point in ("engine.register.done", "deploy.staged"):
        killed = run(project, *longer, ORCHESTRATE_FAULT=f"{point}:kill", ORCHESTRATE_FAULT_LOG=str(log))
        assert f"{point} fired" in log.read_text()
        assert killed.code == -signal.SIGKILL
    done = run(project, *longer)
    assert done.code == 0, done.out[-3000:]
    rows = ask(project, "status", "--recipe", "digits")["executions"]
    assert rows[0]["execution"] == done.result["execution"]
    assert rows[0]["state"] == "succeeded"
    assert len(rows) == earlier + 1, "the killed execution was continued, not begun anew"
    shown = ask(project, "status", done.result["execution"])
    assert {s["step"]: s["state"] for s in shown["steps"]} == dict.fromkeys(STEPS, "succeeded")
    actions = {s["step"]: s["action"] for s in shown["steps"]}
    assert actions == {**dict.fromkeys(STEPS, "RUN"), "preflight": "REUSE", "train": "RESUME"}
    train = [a for a in shown["attempts"] if a["step"] == "train"]
    assert [a["state"] for a in train] == ["cancelled", "succeeded"]
    before, after = _epochs_trained(project, committed)
    assert before == list(range(committed + 1)), "what was committed before the kill"
    assert min(after) == committed + 1, "no committed epoch was trained again"
    assert sorted(set(after)) == list(range(committed + 1, EPOCHS))
    assert len(after) - len(set(after)) <= 1, "only the epoch that was being committed may be trained again"
    (row,) = ask(project, "endpoint", "list")["endpoints"]
    assert (row["generation"], row["state"]) == (2, "ready")


def _newest_checkpoint(project: Project) -> int:
    """The newest complete checkpoint of the training that is under way: the one whose folder was touched last."""
    work = (project.folder / ".orchestrate").glob("work/*/checkpoints")
    newest = max(work, key=lambda path: path.stat().st_mtime)
    return max(int(path.parent.name.removeprefix("epoch-")) for path in newest.glob("epoch-*/manifest.json"))


def _epochs_trained(project: Project, committed: int) -> tuple[list[int], list[int]]:
    """Epochs recorded by the longest training, in order: those up to `committed`, and all that came after."""
    files = (project.folder / ".orchestrate").glob("work/*/metrics.ndjson")
    found = [[json.loads(line) for line in path.read_text().splitlines()] for path in files]
    epochs = [record["epoch"] for record in max(found, key=len) if "epoch" in record]
    split = epochs.index(committed) + 1 if committed in epochs else len(epochs)
    after = epochs[split:]
    if after[:1] == [committed]:  # a training that resumes first says again what the last checkpoint holds
        after = after[1:]
    return epochs[:split], after


@needs_browser
def test_mlflows_pages_link_training_to_checkpoint_to_onnx_to_deployment(project: Project, first: Done, tmp_path: Path):
    """Click through the pages that `orchestrate ui` serves, in a real browser."""
    steps = ask(project, "status", first.result["execution"])["steps"]
    (onnx,) = [step["outputs"]["onnx"] for step in steps if step["step"] == "export"]
    with serving_pages(project, first.result["execution"]) as pages, chromium(tmp_path / "profile") as browser:
        browser.get(pages["step:train"])
        see(browser, "train", "epochs", "digits", "system/cpu_utilization_percentage")
        click(browser, "a[href*='/models/m-']")
        see(browser, "digits-checkpoint", "export", "evaluate")
        click(browser, f"a[href$='#/runs/{run_id(pages['step:export'])}']")
        see(browser, "digits-checkpoint", "digits-onnx")
        click(browser, f"a[href$='/models/{run_id(pages[f'model:{onnx}'])}']")
        see(browser, "digits-onnx", "deploy", "opset")
        click(browser, f"a[href$='#/runs/{run_id(pages['step:deploy'])}']")
        see(browser, "digits-onnx", "cpu (rehearsal)", "orch.generation")


def run_id(url: str) -> str:
    """Return the last part of a page's address: the id of its run or model."""
    return url.partition("?")[0].rpartition("/")[2]


@contextlib.contextmanager
def serving_pages(project: Project, execution: str) -> Iterator[dict[str, str]]:
    """Run `orchestrate ui` and yield its pages by name."""
    process = project.start("ui", execution, "--no-browser", "--json", "-e", LOCAL)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["pages"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_the_router_serves_on_while_its_table_switches(project: Project, url: str):
    answer = httpx.get(url).json()
    assert answer["versions"][-1] == "2"


def test_a_user_goes_back_and_forth_and_a_person_is_waited_for(project: Project, first: Done, tmp_path: Path):
    (served,) = ask(project, "endpoint", "list")["endpoints"]
    back = ask(project, "rollback", "--endpoint", "digits", "--reason", "slow answers")
    assert (back["generation"], back["to"], back["bundle"]) == (3, 1, first.result["endpoint"]["bundle"])
    recipe = tmp_path / "digits" / "recipe.yaml"
    shutil.copytree(Path(RECIPE).parent, recipe.parent)
    before, _, _ = recipe.read_text().partition("\nrollout:")
    gated = "{endpoint: digits, pool: edge, canary: {steps: [{set_weight: 50}, {pause: {}}]}}"
    recipe.write_text(f"{before}\nrollout: {gated}\n")
    promote = (
        "promote",
        served["bundle"],
        "--endpoint",
        "digits",
        "--pool",
        "edge",
        "--recipe",
        str(recipe),
        "-e",
        LOCAL,
    )
    waiting = project.run(*promote, "--json", timeout_s=120)
    assert waiting.code == 5, waiting.err + waiting.out
    assert "rollout resume" in waiting.result["hint"]
    (row,) = ask(project, "rollout", "status", "--endpoint", "digits")["endpoints"]
    assert (row["live"], row["rollout"]["state"], row["rollout"]["weight"]) == (3, "paused", 50)
    assert project.run("rollout", "resume", "--endpoint", "digits", "-e", LOCAL, timeout_s=120).code == 0
    history = ask(project, "rollout", "history", "--endpoint", "digits")["generations"]
    assert [(g["generation"], g["kind"], g["state"]) for g in history][-2:] == [
        (3, "rollback", "warm"),
        (4, "promote", "live"),
    ]
    assert project.run("rollout", "watch", "--once", "-e", LOCAL, timeout_s=120).code == 0
    assert (row := ask(project, "endpoint", "list")["endpoints"][0])["bundle"] == served["bundle"], row


def test_a_promotion_without_mlflow_is_done_and_shown_when_mlflow_is_back(
    project: Project, first: Done, tmp_path: Path
):
    (served,) = ask(project, "endpoint", "list")["endpoints"]
    assert served["bundle"] != first.result["endpoint"]["bundle"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment, recipe = tmp_path / "down.yaml", tmp_path / "digits" / "recipe.yaml"
    text = Path(LOCAL).read_text()
    assert "tracking: {uri: sqlite}" in text
    environment.write_text(text.replace("tracking: {uri: sqlite}", f"tracking: {{uri: 'http://127.0.0.1:{port}'}}"))
    shutil.copytree(Path(RECIPE).parent, recipe.parent)
    before, _, _ = recipe.read_text().partition("\nrollout:")
    quick = "{endpoint: digits, pool: edge, canary: {steps: [{set_weight: 50}, {pause: {duration: 0.1s}}]}}"
    recipe.write_text(f"{before}\nrollout: {quick}\n")
    there = ("-e", str(environment), "--json")

    def latest() -> dict[str, Any]:
        done = project.run("rollout", "history", "--endpoint", "digits", *there)
        return done.result["generations"][-1]

    done = project.run(
        "promote", first.result["endpoint"]["bundle"], "--endpoint", "digits", "--pool", "edge",
        "--recipe", str(recipe), *there, timeout_s=120,
    )  # fmt: skip
    assert done.code == 0, done.err + done.out
    row = latest()
    assert (row["generation"], row["state"], row["projection"]) == (5, "live", "pending")
    state = project.folder / ".orchestrate"
    with serve_ui(f"sqlite:///{state}/mlflow.db", state / "mlartifacts", port=port) as ui:
        deadline = time.monotonic() + 60
        while latest()["projection"] != "done":
            assert time.monotonic() < deadline, "MLflow was not brought up to date"
            assert project.run("rollout", "watch", "--once", "-e", str(environment), timeout_s=60).code == 0
        shown = httpx.post(
            f"{ui.url}/api/2.0/mlflow/runs/search",
            json={"experiment_ids": _experiments(ui.url), "filter": "tags.`orch.kind` = 'rollout'"},
        ).json()["runs"]
    assert [run["info"]["status"] for run in shown if run["info"]["run_name"] == "promote digits 4 -> 5"] == [
        "FINISHED"
    ]


def _experiments(url: str) -> list[str]:
    found = httpx.post(f"{url}/api/2.0/mlflow/experiments/search", json={"max_results": 100}).json()
    return [experiment["experiment_id"] for experiment in found["experiments"]]


def test_down_leaves_nothing(project: Project, url: str):
    status = ask(project, "site", "status")
    pids = [pid for pid in status["pids"].values() if isinstance(pid, int)]
    assert pids
    assert ask(project, "down")["state"] == "down"
    assert ask(project, "site", "status")["state"] == "down"
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    assert not _listening_of_ours(status)
    assert os.path.exists(project.folder / ".orchestrate" / "ledger.db")


def _listening_of_ours(status: dict[str, Any]) -> list[str]:
    ports = {int(status[key].rpartition(":")[2].strip("/")) for key in ("router_url", "dashboard_url", "ray_address")}
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = {int(line.split()[1].rpartition(":")[2], 16) for line in lines if line.split()[3] == "0A"}
    return [str(port) for port in ports & listening]
