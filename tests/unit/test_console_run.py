"""Who may start the console, and where."""

from __future__ import annotations

import socket
import ssl
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from support.certificates import Authority

from orchestrator.app.wiring import Workplace, open_workplace
from orchestrator.console.run import ConsoleSettings, open_console
from orchestrator.core.errors import InfraError, UsageError
from orchestrator.rollout.identity import add_identity


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    file = tmp_path / "environment.yaml"
    file.write_text(f"environment: 1\nstate: {tmp_path}/state\nsites: {{local: {{kind: local}}}}\n")
    return open_workplace(file)


def test_it_does_not_start_where_strangers_reach_it(workplace: Workplace, tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with (
            pytest.raises(UsageError, match="nobody has a token"),
            open_console(workplace, ConsoleSettings(host=host)),
        ):
            pass
    add_identity(tmp_path / "approvers", "ada", ["observe"])
    with open_console(workplace, ConsoleSettings(host="0.0.0.0", token_file=tmp_path / "approvers")) as opened:
        _, _, url, warnings = opened
        assert url.startswith(f"http://{socket.gethostname()}:")  # nobody can open 0.0.0.0
        assert any("in clear" in warning for warning in warnings)
    with open_console(workplace, ConsoleSettings()) as (_, listener, url, warnings):
        assert any("read only" in warning for warning in warnings)
        taken = ConsoleSettings(port=listener.getsockname()[1])
        with pytest.raises(InfraError, match="cannot listen"), open_console(workplace, taken):
            pass
    with (
        pytest.raises(UsageError, match="the tokens cannot be read"),
        open_console(workplace, ConsoleSettings(token_file=tmp_path / "none")),
    ):
        pass


def test_tokens_cross_the_network_in_tls(workplace: Workplace, tmp_path: Path) -> None:
    token = add_identity(tmp_path / "approvers", "ada", ["observe"])
    authority = Authority(tmp_path, "ca")
    cert, key = authority.issue("console")
    settings = ConsoleSettings(host="0.0.0.0", token_file=tmp_path / "approvers", tls=(cert, key))
    with open_console(workplace, settings) as (server, listener, url, warnings):
        assert (warnings, url.startswith(f"https://{socket.gethostname()}:")) == ([], True)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            place = f"https://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=place, verify=ssl.create_default_context(cafile=authority.path)) as client:
                assert client.get("/").headers["location"] == "/login?next=/"
                cookie = client.post("/login", data={"token": token}).headers["set-cookie"]
                assert cookie.startswith("__Host-orchestrate-")
                assert "Secure" in cookie
                assert "Nothing has been deployed yet" in client.get("/").text
        finally:
            server.should_exit = True
            thread.join(10)
    other = authority.issue("other")[1]
    for tls, says in (((cert, other), "TLS cannot be served"), ((cert, None), "a certificate and its key")):
        with pytest.raises(UsageError, match=says), open_console(workplace, replace(settings, tls=tls)):
            pass
