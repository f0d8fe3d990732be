"""`ui`: the MLflow pages of an environment, served lean, opened on an execution."""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Callable

from orchestrator.app.history import find_execution
from orchestrator.app.projection import project_now
from orchestrator.app.rollout_projection import catch_up_rollouts
from orchestrator.app.wiring import Workplace
from orchestrator.tracking.ui import page_urls, serve_ui


def open_ui(
    workplace: Workplace,
    execution: str | None,
    port: int,
    *,
    browser: bool,
    announce: Callable[[str, dict[str, str]], None],
) -> None:
    """Serve the pages until Ctrl-C.

    Args:
        workplace: Whose tracking.
        execution: Open the pages on this one; None = the latest.
        port: 0 = any free one.
        browser: Whether to open a browser.
        announce: Told the address and the pages once they answer.
    """
    with workplace.open_ledger() as ledger:
        found = find_execution(ledger, execution).id
        report = project_now(workplace, ledger, found)
        catch_up_rollouts(workplace, ledger)
    with serve_ui(workplace.tracking_uri, workplace.artifact_root, port=port) as ui:
        pages = page_urls(ui.url, report)
        announce(ui.url, pages)
        if browser and "execution" in pages:
            webbrowser.open(pages["execution"])
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return
