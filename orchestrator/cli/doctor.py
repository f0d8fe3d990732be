"""`orchestrate doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()

Site = Annotated[
    bool,
    typer.Option(
        "--site", help="Look at what serving on Ascend needs instead: driver, CANN, devices, how versions fit."
    ),
]


@app.command(epilog="Examples:  orchestrate doctor --json    orchestrate doctor --site")
def doctor(environment: Environment = None, site: Site = False, as_json: Json = False) -> None:
    """Check Python, packages, Ray, MLflow, disk and devices; exit 1 when something must be mended first."""
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json, print_table

    workplace = open_workplace(environment)
    if site:
        from orchestrator.app.doctor_site import examine_site

        findings = examine_site(workplace.environment)
    else:
        from orchestrator.app.doctor import examine

        findings = examine(workplace)
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
