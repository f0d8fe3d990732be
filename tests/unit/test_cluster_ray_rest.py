import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestrator.cluster.ray_rest import RayRest, TokenRefused
from orchestrator.core.errors import InfraError, RetryClass, Unreachable

TOKEN = "abcdef-0123456789-token"
VERSION = {"version": "4", "ray_version": "2.60.0", "session_name": "session_1"}


class Dashboard:
    """A tiny dashboard: answers what the test sets, remembers what it was asked."""

    def __init__(self):
        self.status, self.body, self.hang_s, self.drip_s = 200, json.dumps(VERSION).encode(), 0.0, 0.0
        self.asked = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self):
                size = int(self.headers.get("Content-Length") or 0)
                outer.asked.append((self.command, self.path, self.headers.get("Authorization"), self.rfile.read(size)))
                time.sleep(outer.hang_s)
                try:
                    self.send_response(outer.status)
                    self.send_header("Content-Length", str(len(outer.body)))
                    if outer.status == 302:
                        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                    self.end_headers()
                    for byte in (
                        (outer.body[i : i + 1] for i in range(len(outer.body))) if outer.drip_s else [outer.body]
                    ):
                        self.wfile.write(byte)
                        time.sleep(outer.drip_s)
                except OSError:
                    pass

            do_GET = do_PUT = do_DELETE = _answer

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def dashboard():
    found = Dashboard()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture
def rest(dashboard, token):
    with RayRest(dashboard.url, token, timeout_s=2) as client:
        yield client


def test_the_handshake_tells_version_and_session(rest, dashboard):
    assert (rest.version().ray, rest.version().session) == ("2.60.0", "session_1")
    assert dashboard.asked[0][:3] == ("GET", "/api/version", f"Bearer {TOKEN}")


def test_without_a_token_file_no_header_is_sent(dashboard):
    with RayRest(dashboard.url, None) as client:
        client.version()
    assert dashboard.asked[0][2] is None


def test_a_replaced_token_is_used_at_once(rest, dashboard, token):
    rest.version()
    token.write_text("another-token-value")
    rest.version()
    assert dashboard.asked[1][2] == "Bearer another-token-value"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_names_its_file_and_never_its_value(rest, dashboard, token, status):
    dashboard.status = status
    with pytest.raises(TokenRefused) as caught:
        rest.version()
    assert str(token) in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert caught.value.retry is RetryClass.NEVER
    assert not isinstance(caught.value, Unreachable)


def test_a_missing_token_file_is_an_error_before_any_call(dashboard, tmp_path):
    with (
        RayRest(dashboard.url, tmp_path / "none") as client,
        pytest.raises(TokenRefused, match="cannot read the token"),
    ):
        client.version()
    assert dashboard.asked == []


def test_nobody_there_is_unreachable(token):
    with RayRest("http://127.0.0.1:1", token, timeout_s=1) as client, pytest.raises(Unreachable):
        client.version()


def test_a_server_that_hangs_is_unreachable_in_time(rest, dashboard):
    dashboard.hang_s = 3
    start = time.monotonic()
    with pytest.raises(Unreachable, match=r"in 0.3 s"):
        rest.version(timeout_s=0.3)
    assert time.monotonic() - start < 2.5


def test_a_server_that_drips_is_unreachable_in_time(rest, dashboard):
    dashboard.drip_s = 0.1
    start = time.monotonic()
    with pytest.raises(Unreachable):
        rest.version(timeout_s=0.4)
    assert time.monotonic() - start < 2.5


@pytest.mark.parametrize(
    "body",
    [b"<html>hi</html>", b"[]", b"null", b'"x"', b"{}", b'{"ray_version": "x", "session_name": "s"}', b"\xff\xfe"],
)
def test_what_is_no_dashboard_is_told_apart(rest, dashboard, body):
    dashboard.body = body
    with pytest.raises(InfraError, match="does not answer as a Ray dashboard"):
        rest.version()


def test_a_ray_that_is_too_old_is_refused(rest, dashboard):
    dashboard.body = json.dumps({**VERSION, "ray_version": "2.9.3"}).encode()
    with pytest.raises(InfraError, match=r"Ray 2\.9\.3"):
        rest.version()


@pytest.mark.parametrize("status", [302, 404, 500, 503])
def test_other_answers_are_errors_with_their_status(rest, dashboard, status):
    dashboard.status, dashboard.body = status, b"Traceback: boom"
    with pytest.raises(InfraError, match=f"answers {status} to GET /api/version: Traceback: boom"):
        rest.version()
    assert len(dashboard.asked) == 1


def test_an_endless_answer_is_cut(rest, dashboard, monkeypatch):
    monkeypatch.setattr("orchestrator.cluster.ray_rest._MAX_ANSWER_BYTES", 1000)
    dashboard.body = b"x" * 5000
    with pytest.raises(InfraError, match="more than 1000 bytes"):
        rest.version()


def test_no_variable_sends_our_token_elsewhere(rest, dashboard, token, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with RayRest(dashboard.url, token, timeout_s=2) as client:
        assert client.version().ray == "2.60.0"


def test_only_live_nodes_count(rest, dashboard):
    rows = [
        {"node_name": "a", "state": "ALIVE", "resources_total": {"CPU": 2.0, "GPU": 1.0}},
        {"node_name": "b", "state": "DEAD", "resources_total": {"CPU": 64.0}},
    ]
    dashboard.body = json.dumps({"result": True, "data": {"result": {"result": rows}}}).encode()
    nodes = rest.nodes()
    assert [(node.name, dict(node.total)) for node in nodes] == [("a", {"CPU": 2.0, "GPU": 1.0})]
    dashboard.body = b'{"data": {}}'
    with pytest.raises(InfraError, match="does not answer as"):
        rest.nodes()


def test_serve_state_is_put_whole_read_and_deleted(rest, dashboard):
    dashboard.body = b'{"applications": {"edge": {"status": "RUNNING"}}}'
    rest.put_serve_applications({"applications": []})
    assert rest.serve_applications()["edge"]["status"] == "RUNNING"
    rest.delete_serve_applications()
    assert [row[0] for row in dashboard.asked] == ["PUT", "GET", "DELETE"]
    assert json.loads(dashboard.asked[0][3]) == {"applications": []}
    dashboard.body = b"{}"
    with pytest.raises(InfraError):
        rest.serve_applications()
