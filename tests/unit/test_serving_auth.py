"""Tokens: the file, the check, the rate."""

from __future__ import annotations

import hashlib
import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from orchestrator.core.errors import UsageError
from orchestrator.serving.errors import RequestError
from orchestrator.serving.router.auth import Guard, Token, add_token, read_tokens


def _header(token: str) -> bytes:
    return f"Bearer {token}".encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def test_a_token_is_made_and_only_its_hash_is_kept(path: Path) -> None:
    first, second = add_token(path, "line-a"), add_token(path, "line-b", 5, 10)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first not in path.read_text()
    assert f"line-a:{hashlib.sha256(first.encode()).hexdigest()}\n" in path.read_text()
    guard = Guard(path)
    assert guard.admit(_header(first), 1.0).name == "line-a"
    assert guard.admit(b"bearer   " + second.encode() + b" ", 1.0).rate_per_s == 5
    with pytest.raises(UsageError, match="there is a token 'line-a'"):
        add_token(path, "line-a")
    assert len(read_tokens(path)) == 2


@pytest.mark.parametrize(
    "header", [None, b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Basic {}", b"{}", b"Bearer {} x", b"Bearer {}\0"]
)
def test_without_a_valid_token_nobody_gets_in(path: Path, header: bytes | None) -> None:
    token = add_token(path, "a").encode()
    with pytest.raises(RequestError) as caught:
        Guard(path).admit(header and header.replace(b"{}", token), 1.0)
    assert (caught.value.status, caught.value.kind) == (401, "unauthorized")
    assert token.decode() not in caught.value.message


def test_the_bucket_empties_and_fills() -> None:
    token = Token("a", rate_per_s=2, burst=3)
    assert [token.take(10.0) for _ in range(3)] == [0, 0, 0]
    assert token.take(10.0) == pytest.approx(0.5)
    assert token.take(10.5) == 0
    assert token.take(10.5) > 0
    assert [token.take(100.0) for _ in range(3)] == [0, 0, 0]
    assert token.take(100.0) > 0


def test_a_token_over_its_rate_is_told_when_to_come_back(path: Path) -> None:
    header = _header(add_token(path, "a", 0.25, 1))
    guard = Guard(path)
    guard.admit(header, 5.0)
    with pytest.raises(RequestError, match=r"token a may send 0\.25 requests a second") as caught:
        guard.admit(header, 5.0)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 4)


def test_a_change_of_the_file_counts_at_once_and_a_broken_one_never(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = _header(add_token(path, "a", 1, 1))
    guard = Guard(path)
    guard.admit(first, 1.0)
    second = _header(add_token(path, "b"))
    guard.refresh()
    assert guard.admit(second, 1.0).name == "b"
    with pytest.raises(RequestError, match="may send 1"):
        guard.admit(first, 1.0)  # the change has not filled its bucket
    path.write_text("what is this\n")
    guard.refresh()
    assert guard.admit(second, 1.0).name == "b"
    path.unlink()
    for _ in range(3):
        guard.refresh(force=True)
        with pytest.raises(RequestError, match="not valid"):
            guard.admit(second, 1.0)
    assert (guard.gone, len(guard), bool(guard)) == (True, 0, True)  # who is not asked is not let in
    assert caplog.text.count("every token is refused") == 1
    third = _header(add_token(path, "c"))
    guard.refresh()
    assert guard.admit(third, 1.0).name == "c"
    assert (guard.gone, len(guard)) == (False, 1)
    with pytest.raises(RequestError, match="not valid"):
        guard.admit(second, 1.0)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("secret-token", "not name:sha256"),
        ("A!:" + "0" * 64, "not name:sha256"),
        ("a:" + "0" * 63, "not name:sha256"),
        ("a:" + "0" * 64 + ":1:2:3", "not name:sha256"),
        ("a:" + "0" * 64 + ":fast", "rate must be"),
        ("a:" + "0" * 64 + ":-1", "rate must be"),
        ("a:" + "0" * 64 + ":nan", "rate must be"),
        ("a:" + "0" * 64 + ":5:0.5", "burst at least 1"),
    ],
)
def test_a_line_that_is_none(path: Path, line: str, text: str) -> None:
    path.write_text(f"# mine\n\n{line}\n")
    with pytest.raises(UsageError, match=text) as caught:
        Guard(path)
    assert caught.value.place == f"{path}:3"
    assert "secret" not in str(caught.value)


def test_a_file_that_others_may_write_is_refused(path: Path) -> None:
    add_token(path, "a")
    path.chmod(0o622)
    with pytest.raises(UsageError, match="others could write tokens: mode 622"):
        Guard(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="no regular file"):
        Guard(path)  # and does not wait for somebody to write into it
    path.unlink()
    with pytest.raises(UsageError, match="cannot read the tokens"):
        Guard(path)


def test_blanks_around_a_token_fill_no_memory(path: Path) -> None:
    token = add_token(path, "line")
    guard = Guard(path)
    tracemalloc.start()
    try:
        for size in range(100):
            assert guard.admit(b"Bearer " + b" " * (10_000 + size) + token.encode(), 1.0).name == "line"
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()
