"""The console's pages and doors: what is shown, who may press, and what a stranger's page cannot do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient
from support.console_samples import endpoint, generation, rollout, row

from orchestrator.console.render import make_pages, render
from orchestrator.console.server import Console, Door
from orchestrator.console.sessions import Sessions
from orchestrator.console.view import ApprovalView, EndpointRow, EndpointView
from orchestrator.core.errors import Conflict, LedgerError
from orchestrator.core.redact import remember_secret
from orchestrator.rollout.identity import Identities, Identity, add_identity

HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"


class Gathered:
    """Stands for the ledger and the routers."""

    def __init__(self) -> None:
        self.shown: EndpointView | None = endpoint()
        self.error: Exception | None = None

    def endpoints(self) -> list[EndpointRow]:
        if self.error:
            raise self.error
        return [row()]

    def endpoint(self, name: str) -> EndpointView | None:
        return self.shown if name == "digits" else None


class Pressed:
    """Stands for the buttons."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, str], str]] = []
        self.error: Exception | None = None

    def do(self, action: str, name: str, form: Mapping[str, str], who: Identity) -> str:
        if self.error:
            raise self.error
        self.calls.append((action, name, {k: v for k, v in form.items() if k != "csrf"}, who.id))
        return "It is done."


class World:
    def __init__(self, tmp_path: Path, *, tokens: bool = True, loopback: bool = True) -> None:
        self.path = tmp_path / "approvers"
        self.token = add_identity(self.path, "ada", ["promote", "approve"])
        self.gather, self.actions = Gathered(), Pressed()
        door = Door(port=8088, loopback=loopback)
        sessions = Sessions(Identities(self.path) if tokens else None)
        app = Console(cast("Any", self.gather), cast("Any", self.actions), sessions, door).app()
        self.client = TestClient(app, base_url="http://127.0.0.1:8088", follow_redirects=False)

    def sign_in(self) -> str:
        answer = self.client.post("/login", data={"token": self.token, "next": "/endpoints/digits"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/endpoints/digits")
        cookie = answer.headers["set-cookie"]
        assert all(part in cookie for part in ("orchestrate-8088=", "HttpOnly", "SameSite=strict", "Path=/"))
        return self.csrf()

    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="(\w+)"', self.client.get("/endpoints/digits").text)
        assert found is not None
        return found[1]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_page_says_where_the_rollout_is_and_why_it_waits(world: World) -> None:
    text = world.client.get("/endpoints/digits").text
    for said in (
        "rehearsal on CPU",
        "Generation 3 → 4",
        "needs about 620 more requests",
        'aria-current="step">analysis (error_rate, latency)',
        "x-canary = yes",
        "12 % of the evidence is synthetic",
        "1 of 2",
        "20 failures in a row",
        "444444444444",
        "device memory is full",
        "15,980",
    ):
        assert said in text
    assert text.count('class="curve"') == text.count('class="limit"') == 6
    assert "<button" not in text


def test_who_asked_for_a_rollout_does_not_approve_it(world: World) -> None:
    said = (ApprovalView("ada", "approve", "", 1.0), ApprovalView("bob", "reject", "too slow", 2.0))
    world.gather.shown = endpoint(rollout=rollout(approvals=said, approvals_given=0))
    text = re.sub(r"<.*?>", "", world.client.get("/endpoints/digits").text)
    assert "0 of 2; ada approves, which does not count: the rollout is theirs; bob rejects (too slow)" in text


def test_all_text_is_escaped_and_secrets_are_masked(world: World) -> None:
    remember_secret("hunter2hunter2")
    hostile = generation(4, HOSTILE, "busy", 5, "canary", actor=HOSTILE, reason=HOSTILE, error=HOSTILE, device=HOSTILE)
    shown = rollout(waiting=f"{HOSTILE} hunter2hunter2", reason="https://u:p@host/x?token=abcdefgh", actor=HOSTILE)
    world.gather.shown = endpoint(generations=(hostile,), split=(hostile,), rollout=shown, site_error=HOSTILE)
    text = world.client.get("/endpoints/digits").text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert "49" not in re.findall(r"\{\{.*?\}\}|49&", text)
    assert "hunter2" not in text
    assert "u:p@" not in text
    assert "abcdefgh" not in text


def test_the_markup_is_whole_and_nothing_is_loaded_from_elsewhere(world: World) -> None:
    class Reader(HTMLParser):
        void = frozenset({"meta", "link", "input", "br", "line", "circle", "rect", "polyline"})

        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.addresses: list[str] = []
            self.ids: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in self.void:
                self.open.append(tag)
            for name, value in attrs:
                assert name != "style"
                assert not name.startswith("on")
                if name in {"href", "src", "action", "formaction"}:
                    self.addresses.append(value or "")
                if name == "id":
                    self.ids.append(value or "")

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.handle_starttag(tag, attrs)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    world.sign_in()
    for path in ("/", "/endpoints/digits", "/login", "/nowhere"):
        answer = world.client.get(path)
        reader = Reader()
        reader.feed(answer.text)
        assert reader.open == []
        assert len(set(reader.ids)) == len(reader.ids)
        assert all(address.startswith("/") or address == "data:," for address in reader.addresses)
        policy = answer.headers["content-security-policy"]
        nonce = re.search(r"'nonce-(\w+)'", policy)
        assert nonce is not None
        assert f'<style nonce="{nonce[1]}">' in answer.text
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
    assert nonce[1] not in world.client.get("/").headers["content-security-policy"]


def test_buttons_need_a_session_and_its_form_and_are_recorded_with_the_identity(world: World) -> None:
    assert world.client.post("/endpoints/digits/pause", data={"csrf": "x", "generation": "4"}).status_code == 401
    csrf = world.sign_in()
    for wrong in ({"generation": "4"}, {"csrf": "x"}, {"csrf": csrf[:-1]}):
        assert world.client.post("/endpoints/digits/pause", data=wrong).status_code == 403
    assert world.actions.calls == []
    page = world.client.get("/endpoints/digits").text
    assert all(f'id="{name}"' in page for name in ("pause", "approve", "reject", "abort", "rollback"))
    done = world.client.post("/endpoints/digits/pause", data={"csrf": csrf, "generation": "4", "reason": "looks odd"})
    assert (done.status_code, done.headers["location"]) == (303, "/endpoints/digits")
    assert world.actions.calls == [("pause", "digits", {"generation": "4", "reason": "looks odd"}, "ada")]
    assert "It is done." in world.client.get("/endpoints/digits").text
    assert "It is done." not in world.client.get("/endpoints/digits").text
    assert world.client.get("/endpoints/digits/pause").status_code == 405
    assert world.client.post("/endpoints/digits/explode", data={"csrf": csrf}).status_code == 404


def test_what_a_button_cannot_do_is_said(world: World) -> None:
    csrf = world.sign_in()
    world.actions.error = Conflict("no rollout is under way", hint="look again")
    assert world.client.post("/endpoints/digits/abort", data={"csrf": csrf}).status_code == 303
    assert "No rollout is under way (look again)" in world.client.get("/endpoints/digits").text


def test_strangers_pages_cannot_press(world: World) -> None:
    data = {"csrf": world.sign_in()}
    press = "/endpoints/digits/pause"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "http://["):
        assert world.client.post(press, data=data, headers={"origin": origin}).status_code == 403
    assert world.client.post(press, data=data, headers={"origin": "http://127.0.0.1:8088"}).status_code == 303
    assert world.client.post(press, json=data).status_code == 415
    assert world.client.post(press, data={"csrf": "x" * 20_000}).status_code == 413
    for host in ("evil.example", "evil.example:8088", "127.0.0.1.evil.example", ""):
        assert world.client.get("/", headers={"host": host}).status_code == 421
        assert world.client.post(press, data=data, headers={"host": host}).status_code == 421
    assert world.client.get("/", headers={"host": "localhost:8088"}).status_code == 200
    assert world.client.get("/", headers={"host": "[::1]:8088"}).status_code == 200


def test_signing_in(world: World) -> None:
    wrong = world.client.post("/login", data={"token": "oro_wrong"})
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (403, False)
    assert "The token is not valid." in wrong.text
    for away in ("//evil.example", "https://evil.example", "/endpoints/../x", "/endpoints/a/b", "javascript:alert(1)"):
        assert world.client.post("/login", data={"token": world.token, "next": away}).headers["location"] == "/"
    csrf = world.csrf()
    assert world.client.post("/logout", data={"csrf": csrf}).status_code == 303
    assert "Sign in" in world.client.get("/").text
    for _ in range(10):
        answer = world.client.post("/login", data={"token": "guess"})
    assert answer.status_code == 429


def test_a_token_that_is_taken_back_ends_its_sessions(world: World) -> None:
    csrf = world.sign_in()
    world.path.write_text("# nobody\n")
    assert world.client.post("/endpoints/digits/pause", data={"csrf": csrf}).status_code == 401
    assert world.actions.calls == []


def test_a_role_sees_its_own_buttons(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.token = add_identity(world.path, "bob", ["approve"])
    world.sign_in()
    page = world.client.get("/endpoints/digits").text
    assert 'id="approve"' in page
    assert not any(f'id="{name}"' in page for name in ("pause", "abort", "rollback"))


def test_without_tokens_the_page_is_read_only(tmp_path: Path) -> None:
    world = World(tmp_path, tokens=False)
    page = world.client.get("/endpoints/digits").text
    assert "Read only" in page
    assert "Sign in" not in page
    assert world.client.post("/login", data={"token": world.token}).status_code == 403


def test_where_others_can_reach_it_looking_needs_a_session(tmp_path: Path) -> None:
    world = World(tmp_path, loopback=False)
    for path in ("/", "/endpoints/digits"):
        answer = world.client.get(path)
        assert (answer.status_code, answer.text) == (303, "")
        assert answer.headers["location"].startswith("/login?next=")
    world.sign_in()
    assert world.client.get("/", headers={"host": "console.example"}).status_code == 200


def test_a_ledger_that_is_away_is_said(world: World) -> None:
    world.gather.error = LedgerError("the ledger is busy", hint="wait")
    answer = world.client.get("/")
    assert answer.status_code == 503
    assert "The ledger is busy." in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("name", ["nothing", "%2e%2e", "A", "x" * 100])
def test_no_such_endpoint(world: World, name: str) -> None:
    assert world.client.get(f"/endpoints/{name}").status_code == 404


def test_an_empty_ledger_says_what_to_do() -> None:
    common: dict[str, Any] = {"nonce": "n", "session": None, "flash": None, "can_sign_in": False, "here": "/"}
    assert "Nothing has been deployed yet" in render(make_pages(), "index.html", rows=[], refreshes=True, **common)
