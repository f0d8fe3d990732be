"""Identities: the file, the roles, expiry, and a file that changes."""

from __future__ import annotations

import hashlib
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.app.tokens import make_identity, open_identities
from orchestrator.app.wiring import open_workplace
from orchestrator.core.errors import UsageError
from orchestrator.core.redact import redact_text
from orchestrator.rollout.identity import Identities, add_identity, digest_of, given_token


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "approvers"


def _line(name: str, token: str, rest: str) -> str:
    return f"{name}:{hashlib.sha256(token.encode()).hexdigest()}:{rest}\n"


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def test_only_the_hash_is_kept_and_the_token_names_its_identity(path: Path) -> None:
    ada, bob = add_identity(path, "ada", ["approve"]), add_identity(path, "bob", ["promote", "approve"], 3600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ada not in path.read_text()
    assert redact_text(f"the token {ada}") == "the token ***"
    known = Identities(path)
    assert (known.identify(ada).id, known.identify(f" {bob}\n").id) == ("ada", "bob")
    assert known.identify(ada).may("approve")
    assert known.identify(ada).may("observe")
    with pytest.raises(UsageError, match=r"ada may not promote \(roles: approve\)"):
        known.identify(ada).require("promote")
    assert known.identify(bob).require("promote").id == "bob"


@pytest.mark.parametrize("token", ["", "wrong", "oro_" + "0" * 64, "ä" * 2000, "\udc80"])
def test_who_has_no_token_is_nobody(path: Path, token: str) -> None:
    add_identity(path, "ada", ["admin"])
    with pytest.raises(UsageError, match="the token is not valid") as caught:
        Identities(path).identify(token)
    assert not token or token not in str(caught.value)


def test_admin_may_all() -> None:
    from orchestrator.rollout.identity import ROLES, Identity

    assert all(Identity("root", frozenset({"admin"})).may(role) for role in ROLES)


def test_a_token_expires(path: Path) -> None:
    _write(path, _line("old", "t1", "approve:2020-01-31") + _line("new", "t2", "approve:2999-01-01T00:00:00Z"))
    known = Identities(path)
    assert known.identify("t2").id == "new"
    with pytest.raises(UsageError, match="the token of old has expired"):
        known.identify("t1")


@pytest.mark.parametrize("gap", ["T", " "])
def test_a_day_lasts_to_its_end_and_a_time_to_the_second(path: Path, gap: str) -> None:
    now = datetime.now(UTC)
    passed = (now - timedelta(minutes=5)).strftime(f"%Y-%m-%d{gap}%H:%M:%S+00:00")
    _write(path, _line("old", "t1", f"approve:{passed}") + _line("today", "t2", f"approve:{now:%Y-%m-%d}"))
    known = Identities(path)
    assert known.identify("t2").id == "today"
    with pytest.raises(UsageError, match="the token of old has expired"):
        known.identify("t1")


def test_two_tokens_of_an_id_are_one_identity_and_a_third_is_refused(path: Path) -> None:
    first, second = add_identity(path, "ada", ["approve"]), add_identity(path, "ada", ["approve"])
    known = Identities(path)
    assert known.identify(first) == known.identify(second)
    with pytest.raises(UsageError, match="ada has two tokens"):
        add_identity(path, "ada", ["approve"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ada", "not id:sha256:role"),
        ("ada:" + "g" * 64 + ":approve", "not id:sha256:role"),
        ("Ada:" + "a" * 64 + ":approve", "not id:sha256:role"),
        ("ada:" + "a" * 64, "no role is given"),
        ("ada:" + "a" * 64 + ":king", "'king' is no role"),
        ("ada:" + "a" * 64 + ":approve:soon", "'soon' is no time"),
        ("ada:" + "a" * 64 + ":approve\nbob:" + "a" * 64 + ":approve", "stands for two identities"),
    ],
)
def test_a_wrong_line_is_named_but_not_shown(path: Path, text: str, says: str) -> None:
    _write(path, f"# who\n\n{text}\n")
    with pytest.raises(UsageError, match=says) as caught:
        Identities(path)
    assert f"{path}:" in str(caught.value)
    assert "a" * 64 not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_file_that_others_can_use_is_refused(path: Path, mode: int) -> None:
    token = add_identity(path, "ada", ["approve"])
    known = Identities(path)
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"mode {mode:o}"):
        known.identify(token)
    with pytest.raises(UsageError, match="chmod 600"):
        add_identity(path, "bob", ["approve"])
    path.chmod(0o600)
    assert known.identify(token).id == "ada"


def test_the_file_is_read_again_when_it_changes_and_fails_closed(path: Path) -> None:
    ada = add_identity(path, "ada", ["approve"])
    known = Identities(path)
    bob = add_identity(path, "bob", ["approve"])
    assert known.identify(bob).id == "bob"
    assert known.still(known.identify(ada), digest_of(ada))
    shown = known.identify(ada)
    _write(path, "\n".join(x for x in path.read_text().splitlines() if x.startswith("bob")))
    with pytest.raises(UsageError, match="not valid"):
        known.identify(ada)
    assert not known.still(shown, digest_of(ada))
    path.unlink()
    with pytest.raises(UsageError, match="the tokens cannot be read"):
        known.identify(bob)
    os.mkfifo(path)
    with pytest.raises(UsageError, match="no regular file"):
        known.identify(bob)


def test_a_token_comes_from_a_private_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    _write(file, "of-the-file\n")
    monkeypatch.setenv("ORCHESTRATE_TOKEN", "of-the-variable")
    assert given_token(file) == "of-the-file"
    assert given_token(None) == "of-the-variable"
    file.chmod(0o644)
    with pytest.raises(UsageError, match="can be used by others"):
        given_token(file)
    monkeypatch.delenv("ORCHESTRATE_TOKEN")
    with pytest.raises(UsageError, match="--token-file"):
        given_token(None)


def test_a_site_names_its_approvers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bare, named = tmp_path / "bare.yaml", tmp_path / "named.yaml"
    bare.write_text("environment: 1\nsites: {here: {kind: local}}\n")
    named.write_text("environment: 1\nsites: {here: {kind: local, approvers: keys/approvers}}\n")
    assert open_identities(open_workplace(bare)) is None
    with pytest.raises(UsageError, match=r"sites\.here\.approvers"):
        make_identity(open_workplace(bare), "ada", ["approve"])
    token, path = make_identity(open_workplace(named), "ada", ["approve"])
    assert path == tmp_path / "keys" / "approvers"
    known = open_identities(open_workplace(named))
    assert known is not None
    assert known.identify(token).id == "ada"
