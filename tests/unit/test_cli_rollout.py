"""`promote`, `rollback`, `rollout` on a ledger without a site: help, JSON, exit codes, who decides; MLflow is not asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.ledger_samples import execution, request

from orchestrator.app import rollouts
from orchestrator.app.control_steps import reason_of
from orchestrator.app.releases import parse_model
from orchestrator.app.strategies import last_strategy
from orchestrator.app.tokens import make_identity
from orchestrator.app.wiring import open_workplace
from orchestrator.cli.main import main
from orchestrator.core.errors import Conflict, UsageError
from orchestrator.ledger import GenerationState, Ledger, Owner, Rollout
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_steps import Pause, SetWeight

STRATEGY = Strategy(kind="canary", steps=(SetWeight(10), Pause(duration_s=5.0)), approvals=2)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    path = tmp_path / "environment.yaml"
    path.write_text(
        f"environment: 1\nstate: {tmp_path}/state\ntracking: {{uri: none}}\n"
        f"sites: {{local: {{kind: local, allow_cpu: true, approvers: {tmp_path}/approvers}}, "
        "open: {kind: local, allow_cpu: true}}\n"
        "pools:\n  edge: {site: local, soc: Ascend310P3, rehearsal: true}\n"
        "  strict: {site: local, soc: Ascend310P3, rehearsal: true, rollout: {min_steps: 3}}\n"
    )
    return path


def under_way(environment: Path, *, site: str = "local", reason: str = "better", by_token: bool = False) -> None:
    """Generation 1 is live; 2 is a canary that nobody drives."""
    with open_workplace(environment).open_ledger() as ledger, held(ledger) as lease:
        ledger.generations.append(request("1", site=site), lease)
        ledger.generations.set_state("digits", 1, GenerationState.LIVE, lease, actor="ada")
        ledger.generations.append(request("2", expected=1, site=site), lease)
        row = Rollout(
            endpoint="digits", generation=2, site=site, pool="edge", stable=1,
            strategy=replace(STRATEGY, by_token=by_token).to_json(), actor="ada", reason=reason,
        )  # fmt: skip
        ledger.rollouts.begin(row, lease)


def held(ledger: Ledger) -> Any:
    return ledger.leases.held("endpoint/digits", Owner.here("test"))


def call(capsys: pytest.CaptureFixture[str], environment: Path, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "-e", str(environment)])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def answer(capsys: pytest.CaptureFixture[str], environment: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = call(capsys, environment, *arguments, "--json")
    return code, json.loads(out.splitlines()[-1])


@pytest.mark.parametrize(
    "words",
    [["promote"], ["rollback"], ["rollout"]]
    + [["rollout", verb] for verb in ("status", "pause", "resume", "abort", "approve", "reject", "history", "watch")]
    + [["rollout", "explain"], ["rollout", "token"]],
)
def test_help_has_examples(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert (ended.value.code or 0) == 0
    out = capsys.readouterr().out
    assert f"orchestrate {' '.join(words)}" in out.partition("Example")[2]
    assert "--json" in out


def test_status_shows_what_is_under_way(capsys: pytest.CaptureFixture[str], environment: Path) -> None:
    assert answer(capsys, environment, "rollout", "status") == (0, {"endpoints": []})
    under_way(environment)
    code, found = answer(capsys, environment, "rollout", "status", "--endpoint", "digits")
    (row,) = found["endpoints"]
    now = row["rollout"]
    assert (code, row["live"], row["projection"]) == (0, 1, "off")
    assert (now["generation"], now["state"], now["doing"], now["led_by"]) == (2, "progressing", "10 %", None)
    assert now["approvals"]["missing"] == 2
    code, out, _ = call(capsys, environment, "rollout")
    assert code == 0
    assert "rollout   generation 1 -> 2, progressing, asked by ada" in out
    assert "nobody: orchestrate rollout watch" in out


def test_history_tells_every_generation(capsys: pytest.CaptureFixture[str], environment: Path) -> None:
    under_way(environment)
    code, found = answer(capsys, environment, "rollout", "history", "--endpoint", "digits")
    assert code == 0
    shown = [(g["generation"], g["kind"], g["outcome"], g["actor"]) for g in found["generations"]]
    assert shown == [(1, "promote", "succeeded", "ada"), (2, "promote", "progressing", "ada")]
    assert found["generations"][1]["rollout"]["strategy_digest"] == STRATEGY.digest
    code, out, _ = call(capsys, environment, "rollout", "history", "--endpoint", "digits")
    assert code == 0
    assert "canary: 10 % → pause 5s → live; 2 approvals" in out


def test_explain_says_when_it_can_end(capsys: pytest.CaptureFixture[str], environment: Path) -> None:
    under_way(environment)
    code, found = answer(capsys, environment, "rollout", "explain", "--endpoint", "digits")
    assert (code, found["generation"], found["earliest_end_s"]) == (0, 2, 5.0)
    assert [step["text"] for step in found["steps"]] == ["10 %", "pause 5s"]
    code, out, _ = call(capsys, environment, "rollout", "explain", "--endpoint", "digits")
    assert code == 0
    assert "earliest end: after 5s, without waiting for people" in out.replace("5.0s", "5s").replace("5.00s", "5s")


def test_exit_codes(capsys: pytest.CaptureFixture[str], environment: Path) -> None:
    assert call(capsys, environment, "rollout", "pause", "--endpoint", "digits")[0] == 2
    under_way(environment)
    code, found = answer(capsys, environment, "rollout", "abort", "--endpoint", "digits", "--generation", "7")
    assert (code, found["error"]) == (4, "Conflict")
    assert answer(capsys, environment, "rollback", "--endpoint", "digit")[1]["hint"].startswith("Did you mean `digits`")
    code, _, err = call(capsys, environment, "rollout", "abort", "--endpoint", "digits")
    assert code == 3, "the site is down; the wish stays for whoever drives next"
    assert "orchestrate up" in err
    assert answer(capsys, environment, "rollout", "status")[1]["endpoints"][0]["rollout"]["intent"] == "abort"
    code, found = answer(capsys, environment, "promote", "sha256:" + "9" * 64, "--endpoint", "digits", "--pool", "edge")
    assert (code, found["error"]) == (2, "UsageError")
    assert "the ledger does not know it" in found["message"]
    assert call(capsys, environment, "promote", "digits@x", "--endpoint", "digits", "--pool", "none")[0] == 2
    code, found = answer(capsys, environment, "promote", "digits@x", "--endpoint", "digits", "--pool", "edge")
    assert code == 2
    assert "this environment has none" in found["message"]


def test_the_last_strategy_must_still_be_enough(capsys: pytest.CaptureFixture[str], environment: Path) -> None:
    under_way(environment)
    code, found = answer(capsys, environment, "promote", "m", "--endpoint", "digits", "--pool", "strict")
    assert code == 2
    assert "at least 3 are demanded (min_steps)" in found["message"]


def test_a_rollback_changes_no_strategy(environment: Path) -> None:
    with open_workplace(environment).open_ledger() as ledger, held(ledger) as lease:
        assert last_strategy(ledger, "digits") is None
        newer = Strategy(promote_from="ascend")
        for number, strategy in enumerate((STRATEGY, newer)):
            asked = request(str(number + 1), expected=number, evidence={"strategy": strategy.to_json()})
            made = ledger.generations.append(asked, lease)
            ledger.generations.set_state("digits", made.number, GenerationState.LIVE, lease, actor="ada")
        back = request("1", expected=2, kind="rollback", evidence={"strategy": STRATEGY.to_json()}, request_id="back")
        ledger.generations.append(back, lease)
        assert last_strategy(ledger, "digits") == newer


def test_asking_twice_is_asking_once(capsys: pytest.CaptureFixture[str], environment: Path) -> None:
    under_way(environment)
    first = answer(capsys, environment, "rollout", "resume", "--endpoint", "digits", "--no-follow")[1]
    assert (first["state"], first["changed"]) == ("progressing", False), "it was not paused"
    skip = ("rollout", "resume", "--endpoint", "digits", "--skip-rest", "--no-follow")
    assert [answer(capsys, environment, *skip)[1]["changed"] for _ in range(2)] == [True, False]


def test_who_approves_is_shown_by_a_token(
    capsys: pytest.CaptureFixture[str], environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORCHESTRATE_TOKEN", raising=False)
    monkeypatch.delenv("ORCHESTRATE_TOKEN_FILE", raising=False)
    under_way(environment)
    say = ("rollout", "approve", "--endpoint", "digits")
    for name, role in (("eve", "approve"), ("joe", "observe")):
        token, _ = make_identity(open_workplace(environment), name, [role], site="local")
        (tmp_path / name).write_text(token)
        (tmp_path / name).chmod(0o600)
    assert call(capsys, environment, *say)[0] == 2, "no token, no approval"
    assert call(capsys, environment, *say, "--token-file", str(tmp_path / "joe"))[0] == 2
    monkeypatch.setenv("ORCHESTRATE_TOKEN_FILE", str(tmp_path / "eve"))
    code, found = answer(capsys, environment, *say)
    assert (code, found["identity"], found["by_token"]) == (0, "eve", True)
    assert found["approvals"] == {"given": 1, "wanted": 2}
    assert answer(capsys, environment, *say)[1]["changed"] is False
    assert call(capsys, environment, "rollout", "reject", "--endpoint", "digits")[0] == 4


def test_what_tokens_must_approve_no_user_approves_and_nobody_their_own(environment: Path) -> None:
    workplace = open_workplace(environment)
    under_way(environment, by_token=True)
    with pytest.raises(UsageError, match="a token must show who you are"):
        rollouts.decide(workplace, "digits", "approve", identity="eve", by_token=False)
    with pytest.raises(Conflict, match="ada has asked for this rollout"):
        rollouts.decide(workplace, "digits", "approve", identity="ada", by_token=True)
    said = rollouts.decide(workplace, "digits", "approve", identity="eve", by_token=True, reason="fine\x1b[31m\nreally")
    assert said["approvals"] == {"given": 1, "wanted": 2}
    with workplace.open_ledger() as ledger:
        found = ledger.rollouts.active("digits")
    assert found is not None
    assert found.approvals[0]["reason"] == r"fine\x1b[31m\nreally"


def test_who_looked_at_another_generation_decides_nothing(environment: Path) -> None:
    under_way(environment)
    workplace = open_workplace(environment)
    with pytest.raises(Conflict, match="is of generation"):
        rollouts.decide(workplace, "digits", "approve", identity="eve", by_token=True, generation=99)
    with workplace.open_ledger() as ledger:
        found = ledger.rollouts.active("digits")
        assert found is not None
        assert found.approvals == ()


def test_without_approvers_the_user_decides_and_is_told_so(
    capsys: pytest.CaptureFixture[str], environment: Path
) -> None:
    under_way(environment, site="open")
    code, out, _ = call(capsys, environment, "rollout", "reject", "--endpoint", "digits", "--reason", "fog")
    assert code == 0
    assert "no file of approvers is named" in out


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("digits", ("digits", "", "")),
        ("digits@candidate", ("digits", "candidate", "")),
        ("digits.onnx/12", ("digits.onnx", "", "12")),
        ("models:/digits@live", ("digits", "live", "")),
    ],
)
def test_names_of_models(text: str, parts: tuple[str, str, str]) -> None:
    asked = parse_model(text)
    assert (asked.name, asked.alias, asked.version) == parts


@pytest.mark.parametrize("text", ["", "sha256:12", "a b", "digits/x", "digits/0", "digits@", "a/1@b", "../x"])
def test_what_is_no_model(text: str) -> None:
    with pytest.raises(UsageError):
        parse_model(text)


# --- an execution that leads a rollout ---


def test_cancel_says_that_the_rollout_is_still_under_way(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_workplace(environment).open_ledger() as ledger:
        for name in ("one", "two"):
            with ledger.leases.held(f"recipe/{name}", Owner.here("run")) as lease:
                ledger.executions.create(execution(name, recipe=name), lease)
    under_way(environment, reason=reason_of("one"))
    code, said, _ = call(capsys, environment, "cancel", "one")
    assert code == 0
    assert said.splitlines() == [
        "one: cancelled",
        "generation 2 of digits is still being rolled out, at 0 % (progressing)",
        "  go on         orchestrate rollout watch --once",
        "  take it back  orchestrate rollout abort --endpoint digits",
    ]
    _, said, _ = call(capsys, environment, "cancel", "two", "--json")
    assert json.loads(said) == {"execution": "two", "state": "cancelled", "rollouts": []}
