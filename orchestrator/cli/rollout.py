"""`orchestrate rollout`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.options import Environment, Json, new_app
from orchestrator.cli.rollout_look import add_looking_commands
from orchestrator.cli.rollout_token import add_token_command

app = new_app()

Endpoint = Annotated[str, typer.Option("--endpoint", help="Name that clients call.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; history and audit keep it.")]
Generation = Annotated[
    int | None, typer.Option("--generation", min=1, help="The canary that is meant; refuse (exit 4) any other.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="ORCHESTRATE_TOKEN_FILE",
        help="File of your token; else $ORCHESTRATE_TOKEN. Not needed where the site names no approvers.",
    ),
]


@app.callback(
    invoke_without_command=True,
    epilog="Examples:  orchestrate rollout status   |   orchestrate rollout pause --endpoint digits",
)
def rollout(ctx: typer.Context, environment: Environment = None, as_json: Json = False) -> None:
    """See how rollouts go, and steer them: pause, resume, abort, approve, reject."""
    if ctx.invoked_subcommand is None:
        from orchestrator.cli.rollout_look import show_status

        show_status(None, environment, as_json=as_json)


@app.command(
    "pause", epilog="Example:  orchestrate rollout pause --endpoint digits --reason 'big customer on the line'"
)
def pause(
    endpoint: Endpoint,
    reason: Reason = "",
    generation: Generation = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Keep the weights as they are until `rollout resume`."""
    _steer("pause", endpoint, reason, generation, environment, as_json=as_json)


@app.command(
    "resume",
    epilog="Examples:  orchestrate rollout resume --endpoint digits   |   orchestrate rollout resume --endpoint digits --no-follow",
)
def resume(
    endpoint: Endpoint,
    reason: Reason = "",
    generation: Generation = None,
    skip_rest: Annotated[
        bool, typer.Option("--skip-rest", help="Skip the steps that are left; approvals stay.")
    ] = False,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="Only ask; a `rollout watch` or the repeated promotion goes on.")
    ] = False,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Let a paused rollout go on, and drive it to its end: exit 0 live, 1 taken back, 5 paused again."""
    from orchestrator.app import rollouts
    from orchestrator.app.rollout_lead import carry_on
    from orchestrator.app.rollout_projection import start
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json
    from orchestrator.cli.progress import teller, waiting
    from orchestrator.ledger.rows import user_name

    workplace, tell = open_workplace(environment), teller(as_json=as_json)
    intent = "promote" if skip_rest else "resume"
    done = rollouts.ask(workplace, endpoint, intent, actor=user_name(), reason=reason, generation=generation)
    start(workplace)
    if not no_follow:
        number = int(done["generation"])
        done = {**done, **carry_on(workplace, endpoint, number, tell, waiting(tell))}
    if as_json:
        print_json({"event": "result", **done})
    elif no_follow:
        print(f"asked that generation {done['generation']} of {endpoint} go on; to follow: orchestrate rollout watch")
    else:
        print(f"generation {done['generation']} of {endpoint} is live")


@app.command("abort", epilog="Example:  orchestrate rollout abort --endpoint digits --reason 'wrong labels'")
def abort(
    endpoint: Endpoint,
    reason: Reason = "",
    generation: Generation = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Take all traffic from the canary at once and end the rollout."""
    _steer("abort", endpoint, reason, generation, environment, as_json=as_json)


@app.command("approve", epilog="Example:  orchestrate rollout approve --endpoint digits --token-file ~/.ada.token")
def approve(
    endpoint: Endpoint,
    reason: Reason = "",
    token_file: TokenFile = None,
    generation: Generation = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Approve the canary that is under way; recorded with your name."""
    _decide("approve", endpoint, reason, token_file, generation, environment, as_json=as_json)


@app.command("reject", epilog="Example:  orchestrate rollout reject --endpoint digits --reason 'no test on fog'")
def reject(
    endpoint: Endpoint,
    reason: Reason = "",
    token_file: TokenFile = None,
    generation: Generation = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Reject the canary that is under way: it is taken back; recorded with your name."""
    _decide("reject", endpoint, reason, token_file, generation, environment, as_json=as_json)


def _steer(
    verb: str, endpoint: str, reason: str, generation: int | None, environment: Path | None, *, as_json: bool
) -> None:
    from orchestrator.app import rollouts
    from orchestrator.app.rollout_lead import heard
    from orchestrator.app.rollout_projection import start
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.progress import teller
    from orchestrator.core.errors import GateError
    from orchestrator.ledger.rows import user_name

    workplace = open_workplace(environment)
    ask = rollouts.pause if verb == "pause" else rollouts.abort
    done = ask(workplace, endpoint, actor=user_name(), reason=reason, generation=generation)
    start(workplace)
    if done["intent"]:
        try:
            done["state"] = heard(workplace, endpoint, int(done["generation"]), teller(as_json=as_json))
        except GateError:
            done["state"] = "aborted"  # what was asked for, or what the evidence said a moment earlier
    _say_done(verb, done, as_json=as_json)


def _say_done(verb: str, done: dict[str, Any], *, as_json: bool) -> None:
    from orchestrator.cli.output import print_json

    if as_json:
        print_json({"event": "result", **done})
        return
    what = f"generation {done['generation']} of {done['endpoint']}"
    texts = {
        "paused": f"the rollout of {what} is paused; go on: orchestrate rollout resume --endpoint {done['endpoint']}",
        "aborted": f"the rollout of {what} is aborted; the generation before has all requests",
    }
    print(texts.get(str(done["state"]), f"asked to {verb} the rollout of {what} ({done['state']})"))


def _decide(
    verb: str,
    endpoint: str,
    reason: str,
    token_file: Path | None,
    generation: int | None,
    environment: Path | None,
    *,
    as_json: bool,
) -> None:
    from orchestrator.app import rollouts
    from orchestrator.app.rollout_projection import start
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json

    workplace = open_workplace(environment)
    identity, shown = rollouts.who_decides(workplace, endpoint, token_file)
    decision = "approve" if verb == "approve" else "reject"
    done = rollouts.decide(
        workplace, endpoint, decision, identity=identity, by_token=shown, reason=reason, generation=generation
    )
    start(workplace)
    if as_json:
        print_json({"event": "result", **done, "by_token": shown})
        return
    if not shown:
        print(
            f"no file of approvers is named (sites.<site>.approvers): the user {identity} of this machine is taken for who decides"
        )
    given = done["approvals"]
    print(
        f"{identity} {verb}s generation {done['generation']} of {endpoint} (bundle {done['bundle']}); "
        f"{given['given']} of {given['wanted']} approvals"
    )
    print("  a rollout that nobody drives goes on with: orchestrate rollout watch --once, or the repeated promotion")


add_looking_commands(app)
add_token_command(app)
