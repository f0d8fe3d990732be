"""`orchestrate top`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(epilog="Examples:  orchestrate top   |   orchestrate top --once   |   orchestrate top --json --interval 5")
def top(
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, print once, and end.")] = False,
    site: Annotated[str, typer.Option(help="The site; the first one when not given.")] = "",
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Show live what the pools do: requests, errors, queue and compute times, batches, devices. Ctrl-C ends it.

    One row per endpoint and generation; times in ms (median/99th percentile) over the last interval. Off a terminal it prints lines, with
    --json one object a line.
    """
    from orchestrator.app.top import open_admin
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json, say
    from orchestrator.cli.top_table import lines

    # Ctrl-C is how it ends, not an interruption.
    with open_admin(open_workplace(environment), site) as admin, contextlib.suppress(KeyboardInterrupt):
        found = _looks(admin, interval)
        if as_json:
            _each(found, once, print_json)
        elif once or not sys.stdout.isatty():
            _each(found, once, lambda shown: say("\n".join(lines(shown, time.strftime("%H:%M:%S")))))
        else:
            _live(found)


def _looks(admin: Any, interval_s: float) -> Iterator[dict[str, Any]]:
    from orchestrator.app.top import compare, look
    from orchestrator.core.errors import Unreachable

    before = look(admin)
    while True:
        time.sleep(interval_s)
        try:
            after = look(admin)
        except Unreachable as error:  # a router that is restarted comes back in a moment
            yield {"unreachable": error.message}
        else:
            yield compare(before, after)
            before = after


def _each(found: Iterator[dict[str, Any]], once: bool, show: Callable[[dict[str, Any]], None]) -> None:
    for shown in found:
        show(shown)
        if once:
            return


def _live(found: Iterator[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from orchestrator.cli.top_table import lines

    console = Console(highlight=False)
    with Live(Text("looking…"), console=console, screen=True, auto_refresh=False) as live:
        for shown in found:
            text = Text("\n".join(lines(shown, time.strftime("%H:%M:%S"))), no_wrap=True, overflow="ellipsis")
            text.highlight_regex(r"(?m)^ENDPOINT.*$|^POOL.*$", "bold")
            text.highlight_regex(r"\bfailed\b.*|\bunhealthy\b", "bold red")
            live.update(text, refresh=True)
