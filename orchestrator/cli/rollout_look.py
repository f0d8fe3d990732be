"""`orchestrate rollout status|history|explain|watch`."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.options import Environment, Json

_Endpoint = Annotated[str, typer.Option("--endpoint", help="Name that clients call.")]


def add_looking_commands(app: typer.Typer) -> None:
    """Give the verb `rollout` what only looks, and `watch`."""
    app.command(
        "status",
        epilog="Examples:  orchestrate rollout status   |   orchestrate rollout status --endpoint digits --json",
    )(_status)
    app.command("history", epilog="Example:  orchestrate rollout history --endpoint digits")(_history)
    app.command("explain", epilog="Example:  orchestrate rollout explain --endpoint digits --rps 20")(_explain)
    app.command("watch", epilog="Examples:  orchestrate rollout watch   |   orchestrate rollout watch --once --json")(
        _watch
    )


def _status(
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Only this one; all if absent.")] = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Show what every endpoint serves, and the rollout that is under way."""
    show_status(endpoint, environment, as_json=as_json)


def show_status(endpoint: str | None, environment: Path | None, *, as_json: bool) -> None:
    """Print the status of one endpoint or of all."""
    from orchestrator.app.rollout_view import status
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json, say

    workplace = open_workplace(environment)
    found = status(workplace, endpoint)
    if as_json:
        print_json(found)
        return
    for row in found["endpoints"]:
        _print_endpoint(row)
    if not found["endpoints"]:
        say(f"nothing has been deployed yet with the state in {workplace.state}")


def _print_endpoint(row: Mapping[str, Any]) -> None:
    serves = f"generation {row['live']} is live" if row["live"] else "nothing is live"
    behind = "; MLflow: projection pending" if row["projection"] == "pending" else ""
    print(f"{row['endpoint']}: {serves} in pool {row['pool']}{behind}")
    now = row["rollout"]
    if now is None:
        return
    print(f"  rollout   generation {now['stable']} -> {now['generation']}, {now['state']}, asked by {now['actor']}")
    print(f"  step      {min(now['step'] + 1, now['steps'])} of {now['steps']}: {now['doing']}")
    mirror = f", copies of {now['mirror']} %" if now["mirror"] else ""
    print(f"  traffic   {now['weight']} %{mirror}")
    if now["waiting"]:
        print(f"  waits     {now['waiting'].get('text', '')}")
    if now["approvals"]["missing"]:
        print(f"  approvals {now['approvals']['missing']} missing")
    led = now["led_by"]
    print(
        f"  driven by {led['user'] + '@' + led['host'] + ', pid ' + str(led['pid']) if led else 'nobody: orchestrate rollout watch'}"
    )
    verdict: Mapping[str, Any] = now["verdict"] or {}
    metrics: Sequence[Mapping[str, Any]] = verdict.get("metrics", ())
    for metric in metrics:
        print(f"  {metric['state']:<13} {metric['text']}")


def _history(endpoint: _Endpoint, environment: Environment = None, as_json: Json = False) -> None:
    """List an endpoint's generations: who moved what, why, and on what evidence."""
    from orchestrator.app.rollout_view import history
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json, print_table
    from orchestrator.core.digests import short

    found = history(open_workplace(environment), endpoint)
    if as_json:
        print_json(found)
        return
    rows: list[Sequence[object]] = []
    for row in found["generations"]:
        verdict = row["rollout"]["verdict"] if row["rollout"] else ""
        shown = {"pending": "pending", "done": "yes", "off": ""}[row["projection"]]
        began, bundle = _when(row["created_at"]), short(row["bundle"])
        rows.append(
            [row["generation"], began, row["kind"], row["state"], verdict, bundle, row["actor"], shown, row["reason"]]
        )
    print_table(["generation", "began", "kind", "state", "verdict", "bundle", "actor", "in MLflow", "reason"], rows)
    for row in found["generations"]:
        _print_past(row)


def _print_past(row: Mapping[str, Any]) -> None:
    walked = row["rollout"]
    if not walked and not row["error"]:
        return
    print(f"\ngeneration {row['generation']}: {row['outcome']}")
    if row["error"]:
        print(f"  {row['error']}")
    if walked:
        print(f"  {walked['strategy']}")
        for approval in walked["approvals"]:
            print(f"  {approval['identity']}: {approval['decision']}  {approval.get('reason', '')}".rstrip())
        for metric in walked["metrics"]:
            print(f"  {metric['state']:<13} {metric['text']}")


def _explain(
    endpoint: _Endpoint,
    rps: Annotated[
        float | None, typer.Option("--rps", min=0.001, help="Requests of users per second, for the earliest end.")
    ] = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Say what each step asks: requests to see a doubled error rate and to clear its margin, and the earliest end."""
    from orchestrator.app.rollout_view import explain
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.explain_text import print_explanation
    from orchestrator.cli.output import print_json

    found = explain(open_workplace(environment), endpoint, rps)
    if as_json:
        print_json(found)
    else:
        print_explanation(found)


def _watch(
    interval: Annotated[str, typer.Option("--interval", help="How often it looks, e.g. 5s.")] = "5s",
    once: Annotated[bool, typer.Option("--once", help="Look once, finish what that starts, and end.")] = False,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Drive rollouts that nobody drives, follow aliases of MLflow where a recipe says `promote_from`, and report drift."""
    from orchestrator.app.watch import watch
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json, say
    from orchestrator.core.errors import UsageError
    from orchestrator.core.redact import redact_text
    from orchestrator.core.units import parse_duration_s

    try:
        interval_s = max(0.1, parse_duration_s(interval))
    except ValueError as error:
        raise UsageError(f"--interval {interval!r}: {error}", hint="write 5s or 1m") from error

    def tell(event: Mapping[str, Any]) -> None:
        if as_json:
            print_json(event)
        else:
            say(redact_text(f"{_when(float(event['t']))}  {event.get('endpoint') or '-'}: {event['text']}"))

    watch(open_workplace(environment), tell, interval_s=interval_s, once=once)


def _when(t: float) -> str:
    return datetime.datetime.fromtimestamp(t).astimezone().strftime("%Y-%m-%d %H:%M:%S")
