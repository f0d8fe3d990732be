"""`orchestrate rollout token`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Environment, Json


def add_token_command(app: typer.Typer) -> None:
    """Give the verb `rollout` its `token`."""
    epilog = (
        "Examples:  orchestrate rollout token ada --role approve   |   "
        "orchestrate rollout token ci --role promote --lasts 30d --out ci.token"
    )
    app.command("token", epilog=epilog)(_token)


def _token(
    name: Annotated[str, typer.Argument(metavar="ID", help="Whose token it is; the ledger records it.")],
    role: Annotated[
        list[str],
        typer.Option(
            "--role",
            help="observe (look), promote (pause, resume, abort, roll back), approve, or admin (all); repeat it for more.",
        ),
    ],
    lasts: Annotated[str, typer.Option("--lasts", help="Until it expires, e.g. 30d; never if absent.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the token to this new file; else it is printed.")
    ] = None,
    site: Annotated[str, typer.Option("--site", help="The site; the first one if absent.")] = "",
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Make a token for one who approves or operates rollouts. It is shown this once: the site keeps its hash alone."""
    from orchestrator.app.tokens import check_out, keep_token, make_identity
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json

    check_out(out, as_json=as_json)
    made, path = make_identity(open_workplace(environment), name, role, site=site, lasts_s=_seconds(lasts))
    if out is not None:
        keep_token(made, out)
    if as_json:
        print_json({"id": name, "roles": sorted(set(role)), "approvers": str(path), "out": str(out)})
        return
    if out is None:
        print(made)
    print(f"token of {name} is valid at once; {path} holds its hash. To take it back, remove its line", file=sys.stderr)


def _seconds(text: str) -> float | None:
    from orchestrator.core.errors import UsageError
    from orchestrator.core.units import parse_duration_s

    if not text:
        return None
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise UsageError(f"--lasts {text!r}: {error}", hint="write 12h or 30d") from error
