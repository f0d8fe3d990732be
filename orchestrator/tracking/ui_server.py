"""MLflow's own server, as a process that cannot outlive the one that started it.

python -m orchestrator.tracking.ui_server OPTIONS...   (options of `mlflow server`; standard input is held by the starter)

`mlflow server` starts a second process for the web; when the first is killed the second stays. Standard input tells: when
its other end closes, however the starter ended, the whole group goes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def main(options: list[str]) -> None:
    """Run the server until it ends or the starter does."""
    threading.Thread(target=_end_with_starter, name="end-with-starter", daemon=True).start()
    from mlflow.cli import cli

    cli(args=["server", *options], prog_name="mlflow")


def _end_with_starter() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
