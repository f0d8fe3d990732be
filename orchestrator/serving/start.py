"""How the router's and the agent's process begin: settings from a file, a redacted log, and an end with the parent's."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from orchestrator.core.errors import OrchestratorError
from orchestrator.core.processes import die_with_parent
from orchestrator.core.redact import RedactingFilter
from orchestrator.serving.config import AnySettings, read_settings

_PARENT_GONE = 3


def start(module: str, kind: type[AnySettings], serve: Callable[[AnySettings], None], argv: list[str] | None) -> int:
    """Run `serve` with the settings that `--config` names; returns the exit code.

    Args:
        module: The program's name, as after `python -m`.
        kind: What the settings file holds.
        serve: Returns when the process is to end.
        argv: The arguments; those of the process when None.
    """
    parser = argparse.ArgumentParser(prog=module)
    parser.add_argument("--config", type=Path, required=True)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger().handlers[0].addFilter(RedactingFilter())
    try:
        settings = read_settings(kind, args.config)
        if settings.parent_pid:
            die_with_parent()
            if os.getppid() != settings.parent_pid:
                return _PARENT_GONE
        serve(settings)
    except OrchestratorError as error:
        logging.getLogger(module).error("%s", error)
        return error.exit_code
    return 0
