"""Access log and spans: what they say, what they cost when they are off, and that they never wait."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from orchestrator.serving.observe import access_log as access_log_module
from orchestrator.serving.observe.access_log import AccessLog
from orchestrator.serving.observe.observers import LOG_FILE, Observers
from orchestrator.serving.observe.otlp import Exporter
from orchestrator.serving.observe.otlp_settings import OtlpSettings, otlp_settings
from orchestrator.serving.observe.record import Recorder
from orchestrator.serving.observe.tracing import Tracer, read_parent
from orchestrator.serving.protocol.exchange import Exchange
from orchestrator.serving.protocol.heads import Head
from orchestrator.serving.table import Generation

LIVE = Generation(3, "sha256:" + "0" * 64, "/bundle", "onnx-cpu", 100, "live", "cpu (rehearsal)")
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def exchange(**headers: str) -> Exchange:
    sent = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    made = Exchange(
        SimpleNamespace(lost=False, answered=lambda *_: None, failed=print),
        Head(b"POST", b"/v2/models/digits/infer?x=1", sent, keep_alive=True),
    )  # type: ignore[arg-type]
    made.body = b"12345"
    return made


def end(recorder: Recorder, caller: Any, status: int = 200, error: str = "", replica: str = "edge-0") -> None:
    recorder.record(
        "digits", LIVE, status, error, replica=replica, batch_size=4, queue_s=0.001, compute_us=2000, total_s=0.004,
        synthetic=False, caller=caller,
    )  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def watched(tmp_path: Path, **settings: Any) -> tuple[Recorder, Observers]:
    recorder = Recorder()
    rest = {"sample": 0.0, "otlp_endpoint": "", "name_token": lambda _: "alice", **settings}
    return recorder, Observers(recorder, state=tmp_path, **rest)


def batched(recorder: Recorder, callers: list[Any], stage: str = "model") -> None:
    """A batch of these callers' requests has come back."""
    lane = SimpleNamespace(endpoint="digits", generation=LIVE, stage=stage)
    now = time.monotonic()
    requests = [
        SimpleNamespace(
            lane=lane, caller=c, fitted=SimpleNamespace(size_bytes=1), arrived=now - 0.004, sent=now - 0.003
        )
        for c in callers
    ]
    replica: Any = SimpleNamespace(name="edge-0", device="cpu (rehearsal)")
    statuses: Any = SimpleNamespace(compute_us=2000, copy_us=-1)
    recorder.batch(replica, SimpleNamespace(requests=requests, rows=[1] * len(callers)), statuses, 3)  # type: ignore[arg-type]


# --- access log ---


def test_a_line_says_what_happened_and_never_the_token(tmp_path: Path) -> None:
    recorder, observers = watched(tmp_path, sample=1.0)
    caller = exchange(authorization="Bearer orc_secret", x_request_id="r-1", traceparent=PARENT)
    caller.reply(200, [b"yes"])
    end(recorder, caller)
    end(recorder, None, 429, "queue_full", "")
    observers.tick(0.0)
    observers.close()
    good, refused = lines(tmp_path / LOG_FILE)
    assert time.time() - 60 < __import__("datetime").datetime.fromisoformat(good.pop("time")).timestamp() <= time.time()
    sizes = good.pop("bytes_out")
    assert sizes > 3
    assert good == {
        "endpoint": "digits", "generation": 3, "stage": "model", "status": 200, "kind": "ok", "queue_us": 1000,
        "compute_us": 2000, "total_us": 4000, "batch": 4, "replica": "edge-0", "device": "cpu (rehearsal)",
        "protocol": "http", "method": "POST", "path": "/v2/models/digits/infer", "bytes_in": 5, "request_id": "r-1",
        "token": "alice", "trace_id": TRACE,
    }  # fmt: skip
    assert refused["kind"] == "queue_full"
    assert "secret" not in (tmp_path / LOG_FILE).read_text()


def test_a_grpc_call_is_named_by_its_metadata(tmp_path: Path) -> None:
    recorder, observers = watched(tmp_path, sample=1.0)
    metadata = (("x-request-id", "r-2"), ("authorization", "Bearer x"), ("some-bin", b"\xff"))
    end(recorder, SimpleNamespace(outer=SimpleNamespace(metadata=metadata, size=77, answer_bytes=9)))
    observers.close()
    (line,) = lines(tmp_path / LOG_FILE)
    assert [line[key] for key in ("protocol", "bytes_in", "bytes_out", "request_id", "token")] == [
        "grpc",
        77,
        9,
        "r-2",
        "alice",
    ]


def test_a_share_is_logged_and_every_error_up_to_a_rate(tmp_path: Path) -> None:
    chances = iter([0.005, 0.5] * 100)
    log = AccessLog(tmp_path / "a.log", 0.01, lambda _: "", chance=lambda: next(chances))
    recorder = Recorder()
    recorder.observers.append(log)
    for _ in range(200):
        end(recorder, None)
    for _ in range(250):
        end(recorder, None, 500, "execution")
    log.close()
    found = lines(tmp_path / "a.log")
    assert sum(line["status"] == 200 for line in found) == 100
    failed = sum(line["status"] == 500 for line in found)
    assert failed in (100, 200)  # a second may have begun in between
    assert (log.written, log.lost) == (100 + failed, 250 - failed)


def test_a_slow_disk_costs_lines_and_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(access_log_module._Writer, "_rotate", lambda _: gate.wait(20))
    log = AccessLog(tmp_path / "a.log", 1.0, lambda _: "")
    recorder = Recorder()
    recorder.observers.append(log)
    begun = time.monotonic()
    for _ in range(100):
        end(recorder, None)
        log.flush()
    assert time.monotonic() - begun < 5
    assert log.lost >= 30
    gate.set()
    log.close()
    assert log.written + log.lost == 100


def test_a_disk_that_refuses_is_counted(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "no" / "a.log", 1.0, lambda _: "")
    recorder = Recorder()
    recorder.observers.append(log)
    end(recorder, None)
    log.close()
    assert (log.written, log.lost) == (0, 1)


def test_full_files_are_put_aside(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "a.log", 1.0, lambda _: "", file_bytes=100)
    recorder = Recorder()
    recorder.observers.append(log)
    for number in range(6):
        end(recorder, None, 200, str(number))
        log.flush()
        while log.written <= number:
            time.sleep(0.001)
    log.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.log", "a.log.1", "a.log.2", "a.log.3"]
    assert sum(len(lines(tmp_path / name)) for name in names) == 4
    assert [line["kind"] for line in lines(tmp_path / "a.log")] == ["5"]


# --- spans ---


@pytest.fixture
def collector() -> Generator[tuple[str, list[tuple[str, dict[str, str], Any]]]]:
    """A tiny OTLP receiver: (path, headers, parsed message) of every post."""
    got: list[tuple[str, dict[str, str], Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            message = json_format.ParseDict(body, ExportTraceServiceRequest())  # unknown or wrong fields raise
            got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body if message else None))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


def spans(got: list[tuple[str, dict[str, str], Any]]) -> list[dict[str, Any]]:
    return [
        span
        for _, _, body in got
        for resource in body["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def test_a_sampled_request_gives_its_spans_to_the_collector(tmp_path: Path, collector: Any) -> None:
    url, got = collector
    recorder, observers = watched(tmp_path, otlp_endpoint=url)
    caller = exchange(traceparent=PARENT, x_request_id="r-1")
    batched(recorder, [caller])
    end(recorder, caller)
    end(recorder, exchange(traceparent=PARENT[:-1] + "0"))
    end(recorder, None)
    observers.tick(time.monotonic() + 10)
    observers.close()
    assert {path for path, _, _ in got} == {"/v1/traces"}
    queue, compute, whole = spans(got)
    assert [span["name"] for span in (queue, compute, whole)] == ["router.queue", "replica.compute", "router.request"]
    assert {span["traceId"] for span in spans(got)} == {TRACE}
    assert whole["parentSpanId"] == SPAN
    assert queue["parentSpanId"] == compute["parentSpanId"] == whole["spanId"]
    took = [int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"]) for span in (queue, compute, whole)]
    assert took == [pytest.approx(1_000_000, rel=0.01), 2_000_000, 4_000_000]
    assert compute["startTimeUnixNano"] >= queue["endTimeUnixNano"] >= queue["startTimeUnixNano"]
    attributes = {row["key"]: next(iter(row["value"].values())) for row in whole["attributes"]}
    assert attributes["orchestrate.endpoint"] == "digits"
    assert attributes["orchestrate.generation"] == "3"
    assert attributes["orchestrate.request.id"] == "r-1"
    assert "status" not in whole
    assert observers.exporter is not None
    assert (observers.exporter.sent, observers.exporter.dropped) == (3, 0)


def test_the_span_of_a_batch_and_those_of_its_requests_link_to_each_other(collector: Any) -> None:
    url, got = collector
    settings = otlp_settings(url)
    assert settings is not None
    exporter, recorder = Exporter(settings), Recorder()
    recorder.tracer = Tracer(exporter, 0.0)
    recorder.observers.append(recorder.tracer)
    callers = [exchange(traceparent=PARENT), exchange(), exchange(traceparent=PARENT)]
    batched(recorder, callers)
    for caller in callers:
        end(recorder, caller, 500, "execution")
    exporter.close()
    found = spans(got)
    (batch,) = [span for span in found if span["name"] == "replica.batch"]
    wholes = [span for span in found if span["name"] == "router.request"]
    computes = [span for span in found if span["name"] == "replica.compute"]
    assert len(wholes) == len(computes) == 2
    assert {link["spanId"] for link in batch["links"]} == {span["spanId"] for span in wholes}
    assert all(span["links"] == [{"traceId": batch["traceId"], "spanId": batch["spanId"]}] for span in computes)
    assert wholes[0]["status"] == {"code": 2, "message": "execution"}


def test_every_stage_of_a_chain_is_below_the_one_request(collector: Any) -> None:
    url, got = collector
    settings = otlp_settings(url)
    assert settings is not None
    exporter, recorder = Exporter(settings), Recorder()
    recorder.tracer = Tracer(exporter, 1.0)
    recorder.observers.append(recorder.tracer)
    client = exchange()
    for stage in ("preprocess", "model", "postprocess"):
        batched(recorder, [SimpleNamespace(outer=client, done=False)], stage)
    batched(recorder, [SimpleNamespace(outer=exchange(), done=True)])
    end(recorder, client)
    exporter.close()
    found = spans(got)
    names = [
        "router.queue",
        "replica.preprocess",
        "router.queue",
        "replica.compute",
        "router.queue",
        "replica.postprocess",
    ]
    assert [span["name"] for span in found] == [*names, "router.request"]
    assert {span["parentSpanId"] for span in found[:-1]} == {found[-1]["spanId"]}
    assert len({span["traceId"] for span in found}) == 1


def test_without_a_parent_a_share_is_sampled() -> None:
    made: Any = SimpleNamespace(add=lambda span: added.extend([span]))
    added: list[Any] = []
    for ratio, expected in ((0.0, 0), (1.0, 1)):
        recorder = Recorder()
        recorder.observers.append(Tracer(made, ratio))
        end(recorder, exchange())
        assert len(added) == expected
    assert added[0].parent == ""


def test_a_collector_that_is_gone_costs_spans_and_no_time() -> None:
    exporter = Exporter(OtlpSettings("http://127.0.0.1:1/v1/traces"))
    recorder = Recorder()
    recorder.observers.append(Tracer(exporter, 1.0))
    begun = time.monotonic()
    for _ in range(50):
        end(recorder, exchange())
        exporter.flush()
    assert time.monotonic() - begun < 5
    exporter.close()
    assert (exporter.sent, exporter.dropped) == (0, 50)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "x",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        PARENT + "-x",
        PARENT.upper(),
    ],
)
def test_a_header_against_the_rules_is_no_parent(header: str) -> None:
    assert read_parent(header) is None


def test_settings_come_from_the_environment_s_block_or_from_the_variables() -> None:
    assert otlp_settings("", {}) is None
    assert otlp_settings("http://c:4318", {"OTEL_SDK_DISABLED": "true"}) is None
    assert otlp_settings("http://c:4318/", {}).url == "http://c:4318/v1/traces"  # type: ignore[union-attr]
    found = otlp_settings(
        "",
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=x%20y,b=2",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=pool,zone=z",
            "OTEL_TRACES_SAMPLER_ARG": "0.5",
        },
    )
    assert found is not None
    assert found.headers == {"api-key": "x y", "b": "2"}
    assert (found.resource["service.name"], found.resource["zone"], found.ratio) == ("pool", "z", 0.5)
    exact = otlp_settings("", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a/t"})
    assert exact is not None
    assert exact.url == "http://a/t"


def test_what_is_off_is_not_loaded(tmp_path: Path) -> None:
    recorder, observers = watched(tmp_path)
    assert recorder.observers == []
    assert recorder.tracer is None
    assert observers.families("0") == []
    observers.tick(0.0)
    observers.close()
    assert list(tmp_path.iterdir()) == []
