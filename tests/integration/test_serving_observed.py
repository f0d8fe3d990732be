"""What a live site shows: metrics by their own port, dashboard and alerts, access log, spans, `top`."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.app import top as app_top
from orchestrator.cli.main import main
from orchestrator.cli.top_table import lines
from orchestrator.serving.observe.arms import Arm
from orchestrator.serving.observe.canary_gauges import canary_families
from orchestrator.serving.observe.evidence import Evidence
from orchestrator.serving.observe.exposition import write
from orchestrator.serving.protocol.oip_grpc import MESSAGES
from orchestrator.serving.router.auth import add_token
from tests.support.npu_smi_texts import ONE_CHIP_PER_NPU
from tests.support.serving_site import ROOT, ServingSite, generation, scale_bundle

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
ROWS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
NPU_LABELS = 'router="0",pool="npus",slot="0",device="Ascend910A",npu="0"'
ELSEWHERE = {"orchestrate_batch_copy_seconds"}
"""Only a runtime that copies has it; tests/unit/test_serving_metrics.py shows it."""


@pytest.fixture(scope="module")
def spans() -> Generator[tuple[str, list[dict[str, Any]]]]:
    """Address of an OTLP receiver, and the spans that it got."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            got.extend(body["resourceSpans"][0]["scopeSpans"][0]["spans"])
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, spans: Any) -> Generator[ServingSite]:
    folder = tmp_path_factory.mktemp("observed")
    site = ServingSite(folder, access_log_sample=1.0, otlp_endpoint=spans[0], metrics_port=0)
    try:
        site.start_router()
        site.start_agent()
        tool = folder / "bin" / "npu-smi"
        tool.parent.mkdir()
        tool.write_text(f"#!/bin/sh\n/bin/cat <<'E'\n{ONE_CHIP_PER_NPU}\nE\n")
        tool.chmod(0o755)
        plain = site.env
        site.env = {**plain, "PATH": f"{tool.parent}{os.pathsep}{plain['PATH']}", "ASCEND_RT_VISIBLE_DEVICES": "0"}
        site.start_agent("agent-npu", pool="npus", device="Ascend910A")
        site.env = plain
        site.serve("double", generation(1, scale_bundle(folder / "double", 2.0)))
        yield site
    finally:
        site.stop()


def scrape(site: ServingSite) -> str:
    return httpx.get(json.loads((site.folder / "router" / "router.json").read_text())["metrics"]).text


def tried() -> str:
    """What a scrape shows besides while an endpoint has a split."""
    evidence = Evidence()
    evidence.ended(canary_request(), 200, "", 0.001, None)
    evidence.unpaired(Arm("double", 2, "mirror", 10), "dropped")
    return write(canary_families("0", evidence)).decode()


def canary_request() -> Any:
    return SimpleNamespace(
        arm=Arm("double", 2, "weighted", 10), ran=("edge-0", 1, 100), flags=0, user=-1, fell_back=False
    )


@pytest.fixture(scope="module")
def asked(site: ServingSite) -> ServingSite:
    """The site after a good REST request, a bad one, an unknown model, and a good gRPC call."""
    headers = {"traceparent": PARENT, "x-request-id": "r-1", "authorization": "Bearer orc_never-written"}
    with httpx.Client(base_url=site.url, headers=headers) as client:
        assert client.post("/v2/models/double/infer", json=ROWS).status_code == 200
        assert client.post("/v2/models/double/infer", json={"inputs": []}).status_code == 400
        assert client.post("/v2/models/no-such-model/infer", json=ROWS).status_code == 404
    with grpc.insecure_channel(site.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        message = MESSAGES["ModelInferRequest"](model_name="double")
        tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        tensor.contents.fp32_contents.extend([1, 2, 3, 4])
        call(message.SerializeToString(), timeout=20, metadata=(("x-request-id", "r-2"), ("traceparent", PARENT)))
    return site


def test_metrics_are_on_their_own_port_and_unknown_models_are_no_labels(asked: ServingSite) -> None:
    text = scrape(asked)
    labels = 'router="0",endpoint="double",generation="1",stage="model"'
    assert f'orchestrate_requests_total{{{labels},status="200",kind="ok"}} 2' in text
    assert f"orchestrate_request_duration_seconds_count{{{labels}}} 2" in text
    assert f'orchestrate_batch_compute_seconds_count{{{labels},replica="edge-0",device="cpu (rehearsal)"}} 2' in text
    assert f'orchestrate_input_bytes_total{{{labels},replica="edge-0",device="cpu (rehearsal)"}} 32' in text
    assert "no-such-model" not in text
    assert 'orchestrate_http_errors_total{router="0",status="404"} 1' in text
    asked.wait(lambda: "orchestrate_npu_" in scrape(asked), 10, "npu-smi has been asked")
    text = scrape(asked)
    assert set(app_top.read_series(text)) == set(app_top.read_series(asked.admin.metrics()))
    port = json.loads((asked.folder / "router" / "router.json").read_text())["metrics"]
    assert httpx.get(port.replace("/metrics", "/status")).status_code == 404


def test_the_device_s_figures_come_from_npu_smi(asked: ServingSite) -> None:
    asked.wait(lambda: "orchestrate_npu_" in scrape(asked), 10, "npu-smi has been asked")
    text = scrape(asked)
    assert f"orchestrate_npu_memory_used_bytes{{{NPU_LABELS}}} {30710 << 20}" in text
    assert f"orchestrate_npu_temperature_celsius{{{NPU_LABELS}}} 44" in text
    assert f"orchestrate_npu_healthy{{{NPU_LABELS}}} 1" in text
    assert 'pool="edge",slot="0",device="cpu (rehearsal)",npu' not in text


def test_dashboard_and_alerts_ask_for_what_the_router_shows(asked: ServingSite) -> None:
    asked.wait(lambda: "orchestrate_npu_" in scrape(asked), 10, "npu-smi has been asked")
    families = list(text_string_to_metric_families(scrape(asked) + tried()))
    labels = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    dashboard = json.loads((ROOT / "deploy/grafana/pools.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries.append(dashboard["templating"]["list"][1]["query"]["query"])
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    queries += [rule["expr"] for rule in rules]
    assert len(queries) > 40
    for query in queries:
        assert query.count("(") == query.count(")")
        names = set(re.findall(r"orchestrate_\w+", query))
        missing = {name for name in names if name not in labels and name.removesuffix("_bucket") not in ELSEWHERE}
        assert not missing, query
        shown = set().union(*(labels.get(name, set()) for name in names))
        used = {label for group in re.findall(r"(?:by|without) \(([^)]*)\)", query) for label in group.split(", ")}
        used |= set(re.findall(r"(\w+)(?:=~|!=|=)\"", query)) - {"job"}
        assert used <= shown or names <= {f"{name}_bucket" for name in ELSEWHERE}, query
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]}
    assert len(places) == len(dashboard["panels"])
    job = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
    assert job["scrape_configs"][0]["job_name"] == "orchestrate"
    assert job["rule_files"] == ["alerts.yaml"]


def test_the_access_log_has_a_line_for_each(asked: ServingSite) -> None:
    path = asked.folder / "router" / "access.log"
    asked.wait(lambda: path.exists() and len(path.read_text().splitlines()) >= 3, 5, "three lines")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["protocol"], r["status"], r["kind"], r["request_id"]) for r in rows] == [
        ("http", 200, "ok", "r-1"),
        ("http", 400, "invalid", "r-1"),
        ("grpc", 200, "ok", "r-2"),
    ]
    assert {row["trace_id"] for row in rows} == {TRACE}
    assert rows[0]["bytes_in"] == len(json.dumps(ROWS, separators=(",", ":")))
    assert rows[0]["replica"].startswith("edge-0.")
    assert rows[2]["bytes_out"] > 16
    assert "never-written" not in path.read_text()


def test_a_traced_request_leaves_its_spans(asked: ServingSite, spans: Any) -> None:
    got = spans[1]
    asked.wait(lambda: sum(span["name"] == "replica.compute" for span in got) >= 2, 5, "spans of both protocols")
    assert {span["traceId"] for span in got} == {TRACE}
    assert sorted(span["name"] for span in got) == [
        "replica.compute", "replica.compute", "router.queue", "router.queue",
        "router.request", "router.request", "router.request",
    ]  # fmt: skip


def test_top_shows_the_pool(
    asked: ServingSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = app_top.look(asked.admin)
    with asked.client() as client:
        for _ in range(10):
            client.infer("double", {"x": np.ones((2, 4), np.float32)})
    shown = app_top.compare(before, app_top.look(asked.admin))
    (row,) = shown["endpoints"]
    assert (row["endpoint"], row["generation"], row["ready"], row["state"]) == ("double", 1, 1, "live")
    assert row["requests_per_s"] == pytest.approx(10 / shown["interval_s"], rel=0.05)
    assert row["errors_per_s"] == 0
    assert row["rows_per_batch"] == 2
    assert 0 < row["compute_p50_ms"] <= row["compute_p99_ms"] < 1000
    assert row["devices"] == ["cpu (rehearsal)"]
    by_pool = {device["pool"]: device for device in shown["devices"]}
    assert by_pool["edge"]["replicas"] == 1
    assert by_pool["edge"]["used_ratio"] is None
    assert by_pool["npus"]["memory_bytes"] == 32768 << 20
    assert shown["routers"][0]["resident_bytes"] > 1 << 20
    text = lines(shown, "12:00:00")
    assert max(map(len, text)) <= 80
    assert text[2].endswith("COMPUTE ms BATCH WAIT")
    assert text[3].startswith("double          1 100 live       1 ")

    monkeypatch.setattr(app_top, "open_admin", lambda *_: app_top.RouterAdmin(asked.short / "admin.sock"))
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["top", "--once", "--interval", "0.1", *more])
        assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "ENDPOINT" in printed
    assert json.loads(printed.splitlines()[-1])["endpoints"][0]["endpoint"] == "double"


def test_the_metrics_port_wants_the_token_that_the_others_want(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    secret = add_token(tokens, "prometheus")
    site = ServingSite(tmp_path / "site", metrics_port=0, tokens_file=str(tokens), grpc_port=-1)
    try:
        site.start_router()
        url = json.loads((site.folder / "router" / "router.json").read_text())["metrics"]
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"authorization": f"Bearer {secret}"}).status_code == 200
    finally:
        site.stop()
