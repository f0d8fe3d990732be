"""Canaries over a real router, agent and replicas, under traffic: promoted on evidence, taken back on evidence, fenced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from support.serving_site import DEVICE, ROOT, Load, ServingSite, scale_bundle, write_bundle
from support.stopping import stop_outside_a_write

from orchestrator.core.errors import GateError
from orchestrator.ledger import Ledger, Owner
from orchestrator.rollout.deploy import deploy
from orchestrator.rollout.request import Deployed, DeployRequest
from orchestrator.rollout.rollback import rollback
from orchestrator.rollout.site import RouterSite
from orchestrator.rollout.strategy import Strategy

Bundle = tuple[str, Path]
CONSTANTS = {"edge": 2.0, "zero": 0.0, "two": 2.0}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    site = ServingSite(tmp_path_factory.mktemp("serving"))
    try:
        site.start_router()
        site.start_agent()
        yield site
    finally:
        site.stop()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: scale_bundle(folder / name, factor) for name, factor in (("two", 2.0), ("also", 2.0000001))}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the one ledger that the router follows."""
    return tmp_path_factory.mktemp("ledger") / "ledger.db"


def metric(name: str, margin: float = 0.2) -> dict[str, Any]:
    return {"name": name, "margin": margin}


def run(site: ServingSite, ledger_path: Path, endpoint: str, bundle: Bundle, how: dict[str, Any]) -> Deployed:
    request = DeployRequest(
        endpoint=endpoint,
        pool="edge",
        bundle=bundle[0],
        path=bundle[1],
        runtime="onnx-cpu",
        device=DEVICE,
        actor="ada",
        ready_timeout_s=60,
        strategy=Strategy.from_json(how),
    )
    with Ledger.open(f"sqlite:///{ledger_path}") as ledger:
        return deploy(ledger, connect(site), request, Owner.here("test"))


def connect(site: ServingSite) -> RouterSite:
    return RouterSite.connect("local", site.url, site.short / "admin.sock")


def test_a_good_canary_is_promoted_on_evidence_and_rolled_back_at_once(
    serving: ServingSite, bundles: dict[str, Bundle], path: Path
) -> None:
    run(serving, path, "good", bundles["two"], {})
    judged = {"metrics": [metric("error_rate"), metric("nonfinite")], "min_samples": 50, "interval_s": 0.2}
    parity = {"metrics": [metric("parity", 0.1)], "min_samples": 50, "interval_s": 0.2}
    steps = [
        {"set_mirror": {"percent": 100}},
        {"analysis": parity},
        {"set_mirror": {"percent": 0}},
        {"set_weight": 30},
        {"pause": {"min_requests": 50}},
        {"set_weight": 60},
    ]
    load = Load(serving.url, "good", clients=4)
    try:
        done = run(serving, path, "good", bundles["also"], {"steps": steps, "analysis": judged, "probe_rate": 20.0})
        assert done.rollout is not None
        assert done.rollout.verdict is not None
        assert done.rollout.verdict["state"] == "passed"
        with Ledger.open(f"sqlite:///{path}") as ledger:
            back = rollback(ledger, connect(serving), "good", actor="bob", reason="drill")
            rows = ledger.rollouts.evidence("good", 2)
            states = [str(g.state) for g in ledger.generations.list("good")]
        assert (back.generation, back.to) == (3, 1)
        assert states == ["retired", "retired", "live"]
        ServingSite.wait(lambda: load.answers[-1][0] == 3 or load.failures, 20, "answers of the rolled back one")
    finally:
        load.stop()
    assert load.failures == []
    assert {number for number, _ in load.answers} == {1, 2, 3}
    traffic = {row.body["traffic"] for row in rows}
    assert {"weighted", "mirror", "probe"} <= traffic
    assert sum((row.body.get("pairs") or {}).get("agree", 0) for row in rows) >= 50


def nan_bundle(folder: Path) -> Bundle:
    """Doubles what the golden samples hold; other inputs give NaN: what no smoke test sees."""
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["x", "edge"], ["below"]),
            helper.make_node("Sqrt", ["below"], ["root"]),
            helper.make_node("Mul", ["root", "zero"], ["nothing"]),
            helper.make_node("Mul", ["x", "two"], ["doubled"]),
            helper.make_node("Add", ["doubled", "nothing"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in CONSTANTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.arange(12, dtype=np.float32).reshape(3, 4) + 5
    return write_bundle(folder, model, {"input/x": x, "output/y": x * 2})


def test_a_canary_that_answers_nan_is_taken_back_and_no_client_sees_an_error(
    serving: ServingSite, bundles: dict[str, Bundle], path: Path, tmp_path: Path
) -> None:
    run(serving, path, "bad", bundles["two"], {})
    judged = {"metrics": [metric("error_rate"), metric("nonfinite", 0.01)], "min_samples": 50, "interval_s": 0.2}
    how = {"steps": [{"set_weight": 20}, {"pause": {"duration_s": 120.0}}], "analysis": judged}
    how["kill"] = {"failures_in_row": None}  # JSON has no NaN, so that such an answer is a failure as well
    load = Load(serving.url, "bad", clients=4)
    try:
        with pytest.raises(GateError, match=r"was taken back: .*(NaN or infinity|requests failed)"):
            run(serving, path, "bad", nan_bundle(tmp_path / "nan"), how)
        seen = len(load.answers)
        ServingSite.wait(lambda: len(load.answers) > seen + 50 or load.failures, 20, "answers afterwards")
        assert {number for number, _ in load.answers[seen + 10 :]} == {1}
    finally:
        load.stop()
    assert load.failures == []
    with Ledger.open(f"sqlite:///{path}") as ledger:
        assert [str(g.state) for g in ledger.generations.list("bad")] == ["live", "failed"]
        row = ledger.rollouts.get("bad", 2)
    assert row is not None
    assert row.verdict is not None
    assert (row.weight, row.verdict["state"]) == (0, "failed")


CONTROLLER = """
    import sys
    from pathlib import Path
    from orchestrator.core.errors import OrchestratorError
    sys.path.insert(0, sys.argv[1])
    from test_rollout_canary import run
    class Site: pass
    site = Site(); site.url = sys.argv[2]; site.short = Path(sys.argv[3])
    how = {"steps": [{"set_weight": 20}, {"pause": {"duration_s": 600.0}}]}
    try:
        run(site, Path(sys.argv[4]), "held", (sys.argv[5], Path(sys.argv[6])), how)
    except OrchestratorError as error:
        print(error.message)
        sys.exit(error.exit_code)
"""


def test_a_stopped_controller_that_wakes_after_a_rollback_changes_nothing(
    serving: ServingSite, bundles: dict[str, Bundle], path: Path
) -> None:
    run(serving, path, "held", bundles["two"], {})
    known = [str(Path(__file__).parent), serving.url, str(serving.short), str(path), *map(str, bundles["also"])]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CONTROLLER), *known], env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        with Ledger.open(f"sqlite:///{path}") as ledger:
            ServingSite.wait(lambda: _weight(serving, "held") == 20, 60, "the canary's weight")
            stop_outside_a_write(child.pid, path)
            done = rollback(ledger, connect(serving), "held", actor="bob")
            assert (done.generation, done.aborted) == (1, 2)
            before = (serving.admin.table().to_json(), _done(ledger))
            os.kill(child.pid, signal.SIGCONT)
            out, _ = child.communicate(timeout=30)
            after = (serving.admin.table().to_json(), _done(ledger))
    finally:
        child.kill()
        child.wait()
    assert (child.returncode, before) == (4, after)
    assert "no longer ours" in out


def _weight(serving: ServingSite, endpoint: str) -> int:
    found = serving.admin.table().endpoints.get(endpoint)
    return max((g.weight for g in found.generations if g.generation == 2), default=0) if found else 0


def _done(ledger: Ledger) -> list[str]:
    """What was done, in order; that somebody was refused is no deed."""
    return [row.hash for row in ledger.audit.rows(limit=10_000) if row.action != "refused"]
