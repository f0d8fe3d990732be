"""`orchestrate lineage`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import Environment, Json, new_app

if TYPE_CHECKING:
    from orchestrator.app.lineage import Lineage

app = new_app()


@app.command(
    epilog="Examples:  orchestrate lineage digits/1   |   orchestrate lineage sha256:4f…   |   "
    "orchestrate lineage 'x-orchestrate-bundle: sha256:4f…'"
)
def lineage(
    subject: Annotated[
        str, typer.Argument(help="An execution, a digest or its beginning, endpoint/generation, or an answer's header.")
    ],
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Trace anything back to its dataset and commit, and forward to the endpoints that serve it."""
    from orchestrator.app.lineage import lineage as trace
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json

    with open_workplace(environment).look_into_ledger() as ledger:
        found = trace(ledger, subject)
    if as_json:
        print_json(found.to_json())
        return
    _show(found)


def _show(found: Lineage) -> None:
    from orchestrator.cli.output import print_table
    from orchestrator.core.digests import short

    rows = [*found.artifacts, *found.used_by]
    print_table(
        ("", "kind", "digest", "step", "execution"),
        [
            [
                "from" if row in found.artifacts else "used by",
                row["kind"],
                short(row["digest"]),
                row["step"] or "",
                row["execution"] or "",
            ]
            for row in rows
        ],
    )
    for generation in found.generations:
        print(
            f"endpoint {generation['endpoint']} generation {generation['generation']}: {generation['state']}, "
            f"{generation['device']}, bundle {short(generation['bundle'])}"
        )
    for execution in found.executions:
        commit = execution["commit"] or "no commit"
        dirty = " (with uncommitted changes)" if execution["dirty"] else ""
        print(f"execution {execution['execution']} of {execution['recipe']}: {commit}{dirty}")
        for name, uri in execution["data"].items():
            print(f"  data {name}: {uri}")
