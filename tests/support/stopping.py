"""SIGSTOP where it hurts nobody else."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path


def stop_outside_a_write(pid: int, ledger: Path) -> None:
    """Stop a process between two writes: inside one it holds SQLite's one write lock, and everybody waits; no fence can help."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        with closing(sqlite3.connect(ledger, timeout=0.5)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.05)
                continue
            database.rollback()
            return
