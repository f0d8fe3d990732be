"""`endpoint token`."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.serving.router.auth import Guard

SITE = "environment: 1\nsites: {local: {kind: local, serving: {tokens_file: tokens}}}\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e.yaml").write_text(SITE)


def _run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["endpoint", "token", *words, "--environment", "e.yaml"])
    return int(str(caught.value.code))


def test_a_token_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("line-a", "--rate", "5") == 0
    shown = capsys.readouterr()
    assert Guard(Path("tokens")).find(f"Bearer {shown.out.strip()}".encode()).rate_per_s == 5
    assert "valid within a second" in shown.err
    assert _run("line-a") == 2
    assert "there is a token 'line-a'" in capsys.readouterr().err


def test_json_never_holds_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("b", "--json") == 2
    assert _run("b", "--json", "--out", "b.token") == 0
    shown = capsys.readouterr()
    token = Path("b.token").read_text().strip()
    assert stat.S_IMODE(os.stat("b.token").st_mode) == 0o600
    assert json.loads(shown.out.splitlines()[-1])["name"] == "b"
    assert token.startswith("orc_")
    assert token not in shown.out + shown.err
    assert _run("c", "--out", "b.token") == 2
    assert len(Path("tokens").read_text().splitlines()) == 1


def test_a_site_without_tokens_says_how_to_have_them(capsys: pytest.CaptureFixture[str]) -> None:
    Path("e.yaml").write_text(SITE.replace(", serving: {tokens_file: tokens}", ""))
    assert _run("a") == 2
    assert "set sites.local.serving.tokens_file" in capsys.readouterr().err
