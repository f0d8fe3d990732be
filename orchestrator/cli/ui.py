"""`orchestrate ui`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(epilog="Examples:  orchestrate ui   |   orchestrate ui xmiav0k3p7q2 --port 5000 --no-browser")
def ui(
    execution: Annotated[str | None, typer.Argument(metavar="[EXECUTION]", help="The latest when not given.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser.")] = True,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Serve the MLflow pages (one worker, loopback) and open them on an execution. Ctrl-C ends it."""
    from orchestrator.app.ui import open_ui
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json

    def announce(url: str, pages: dict[str, str]) -> None:
        if as_json:
            print_json({"url": url, "pages": pages})
            return
        print(f"MLflow: {url}   (Ctrl-C ends it)", flush=True)
        for name in ("execution", "experiment"):
            if name in pages:
                print(f"  {name:<12}{pages[name]}", flush=True)

    open_ui(open_workplace(environment), execution, port, browser=browser, announce=announce)
