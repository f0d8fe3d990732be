"""`orchestrate console`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(
    epilog="Examples:  orchestrate console   |   orchestrate console --port 8090 --token-file keys/approvers   |   "
    "orchestrate console --host 0.0.0.0 --tls-cert c.pem --tls-key k.pem"
)
def console(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any free one.")] = 8088,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others can reach needs tokens, for looking as well.")
    ] = "127.0.0.1",
    token_file: Annotated[
        Path | None,
        typer.Option(help="Who may press buttons (`rollout token` writes it); the site's `approvers` if absent."),
    ] = None,
    site: Annotated[str, typer.Option("--site", help="Whose `approvers`; the first site if absent.")] = "",
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM: serve HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Serve the page to watch rollouts on, and to approve, pause, abort and roll back. Ctrl-C ends it."""
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json
    from orchestrator.console.run import ConsoleSettings, run_console

    def announce(url: str, warnings: list[str]) -> None:
        if as_json:
            print_json({"url": url, "warnings": warnings})
            return
        print(f"console: {url}   (Ctrl-C ends it)", flush=True)
        for warning in warnings:
            print(f"  {warning}", flush=True)

    settings = ConsoleSettings(host=host, port=port, token_file=token_file, site=site, tls=(tls_cert, tls_key))
    run_console(open_workplace(environment), settings, announce)
