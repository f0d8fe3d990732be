"""`orchestrate doctor`."""

from __future__ import annotations

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(epilog="Example:  orchestrate doctor --json")
def doctor(environment: Environment = None, as_json: Json = False) -> None:
    """Check Python, packages, Ray, MLflow, disk and devices; exit 1 when something must be mended first."""
    from orchestrator.app.doctor import examine
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json, print_table

    findings = examine(open_workplace(environment))
    bad = [f for f in findings if f.state == "bad"]
    if as_json:
        print_json({"healthy": not bad, "checks": [f.to_json() for f in findings]})
    else:
        print_table(("check", "state", "found"), [(f.name, f.state, f.found) for f in findings])
        for finding in findings:
            if finding.fix:
                print(f"{finding.name}: {finding.fix}")
    if bad:
        raise typer.Exit(1)
