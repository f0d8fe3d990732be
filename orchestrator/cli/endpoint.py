"""`orchestrate endpoint`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.callback(
    invoke_without_command=True, epilog="Examples:  orchestrate endpoint list   |   orchestrate endpoint infer digits"
)
def endpoint(ctx: typer.Context, environment: Environment = None, as_json: Json = False) -> None:
    """List endpoints; send one a request; give one more or fewer slots, or delete it."""
    if ctx.invoked_subcommand is None:
        list_(environment, as_json)


@app.command("list", epilog="Example:  orchestrate endpoint list --json")
def list_(environment: Environment = None, as_json: Json = False) -> None:
    """List endpoints: where they answer, with which generation of which bundle, on what device."""
    from orchestrator.app.endpoints import list_endpoints
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json, print_table, say
    from orchestrator.core.digests import short

    workplace = open_workplace(environment)
    rows = list_endpoints(workplace)
    if as_json:
        print_json({"endpoints": rows})
        return
    columns = ("endpoint", "state", "generation", "bundle", "device", "pool", "url")
    print_table(columns, [[short(r[c]) if c == "bundle" else r[c] for c in columns] for r in rows])
    if not rows:
        say(f"nothing has been deployed yet with the state in {workplace.state}")


@app.command(
    epilog="Examples:  orchestrate endpoint infer digits --input x.npz   |   orchestrate endpoint infer minilm --text 'a b'"
)
def infer(
    name: Annotated[str, typer.Argument(help="The endpoint.")],
    input_: Annotated[
        Path | None,
        typer.Option("--input", help="An .npz keyed by input name; the bundle's first golden sample if not given."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A row of text, for an endpoint that takes text; repeat it for more."),
    ] = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Send an endpoint one request and print the answer."""
    from orchestrator.app.endpoints import infer_once
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json
    from orchestrator.core.errors import UsageError

    if input_ is not None and text:
        raise UsageError("--input and --text are both given", hint="give one of them")
    answer = infer_once(open_workplace(environment), name, input_, text or ())
    if as_json:
        print_json(answer)
        return
    for output, value in answer["outputs"].items():
        print(f"{output}: {value}")
    print(
        f"generation {answer['generation']}, bundle {answer['bundle']}, device {answer['device']}, "
        f"{answer['latency_ms']:.2f} ms"
    )


@app.command(
    "scale",
    epilog="Examples:  orchestrate endpoint scale digits --slots 2   |   orchestrate endpoint scale digits --slots all --json",
)
def scale(
    name: Annotated[str, typer.Argument(help="The endpoint.")],
    slots: Annotated[str, typer.Option("--slots", metavar="N|all", help="Slots of its pool that it shall take.")],
    expect: Annotated[
        int | None,
        typer.Option(
            "--expect", min=0, help="Slots that it takes now, 0 = all; refuse (exit 4) when it is another number."
        ),
    ] = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Give an endpoint more or fewer slots of its pool, and wait until they serve; no request is lost."""
    from orchestrator.app.scale import scale_endpoint
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json, say

    done = scale_endpoint(open_workplace(environment), name, slots, expect, say)
    if as_json:
        print_json(done)
        return
    what = "takes" if done["changed"] else "takes already"
    slots = "all slots" if done["slots"] is None else f"{done['slots']} slot{'s' * (done['slots'] != 1)}"
    print(f"endpoint {name} {what} {slots} of pool {done['pool']}")


@app.command("delete", epilog="Example:  orchestrate endpoint delete digits")
def delete(
    name: Annotated[str, typer.Argument(help="The endpoint.")], environment: Environment = None, as_json: Json = False
) -> None:
    """Take an endpoint out of service once its requests are answered. Its generations stay in the ledger; a run brings it back."""
    from orchestrator.app.scale import delete_endpoint
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json

    done = delete_endpoint(open_workplace(environment), name)
    if as_json:
        print_json(done)
        return
    ended = ", ".join(str(number) for number in done["generations"])
    print(f"endpoint {name} is deleted (generation {ended})" if ended else f"endpoint {name} was deleted already")


@app.command(
    "token",
    epilog="Examples:  orchestrate endpoint token line-a   |   orchestrate endpoint token line-a --rate 50 --out line-a.token",
)
def token(
    name: Annotated[str, typer.Argument(help="Whose token it is; answers and logs name it.")],
    rate: Annotated[
        float | None, typer.Option("--rate", help="Requests a second, per router; no limit if absent.")
    ] = None,
    burst: Annotated[
        float | None, typer.Option("--burst", help="Requests at once; as many as --rate if absent.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the token to this new file; else it is printed.")
    ] = None,
    site: Annotated[str, typer.Option("--site", help="The site; the first one if absent.")] = "",
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Make a bearer token for a client. It is shown this once: the site keeps its hash alone."""
    from orchestrator.app.tokens import check_out, keep_token, make_token
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json

    check_out(out, as_json=as_json)
    made, path = make_token(open_workplace(environment), name, site=site, rate_per_s=rate, burst=burst)
    if out is not None:
        keep_token(made, out)
    if as_json:
        print_json({"name": name, "tokens_file": str(path), "out": str(out)})
        return
    if out is None:
        print(made)
    told = f"token {name} is valid within a second; {path} holds its hash. To take it back, remove its line"
    print(told, file=sys.stderr)
