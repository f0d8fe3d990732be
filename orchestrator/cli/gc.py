"""`orchestrate gc`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(epilog="Examples:  orchestrate gc   |   orchestrate gc --keep-executions 3 --older-than 7d --remove")
def gc(
    keep_executions: Annotated[
        int, typer.Option(min=1, help="Per recipe, the newest executions whose results stay.")
    ] = 5,
    older_than: Annotated[str, typer.Option(help="Touch nothing younger than this: 90s, 1h, 7d.")] = "1h",
    remove: Annotated[bool, typer.Option("--remove", help="Really remove; without it only say what would go.")] = False,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Remove artifacts, results and work folders that no recent execution and no generation needs."""
    from orchestrator.app.gc import collect
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json
    from orchestrator.core.errors import UsageError
    from orchestrator.core.units import format_bytes, parse_duration_s

    try:
        older_than_s = parse_duration_s(older_than)
    except ValueError as error:
        raise UsageError(f"--older-than: {error}") from error
    report = collect(open_workplace(environment), keep_executions, older_than_s, remove=remove)
    if as_json:
        print_json(report)
        return
    for item in report["items"]:
        print(
            f"{'removed' if remove else 'would remove'} {item['kind']} {item['name']} ({format_bytes(item['size_bytes'])})"
        )
    print(
        f"{len(report['items'])} things, {format_bytes(report['size_bytes'])}"
        + ("" if remove or not report["items"] else "; add --remove to do it")
    )
