"""A user's project in a temp folder, and the command line run in it as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All NDJSON objects on stdout."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]

    @property
    def result(self) -> dict[str, Any]:
        """The last object on stdout."""
        return self.lines[-1]


@dataclass(frozen=True)
class Project:
    """A folder with recipes; commands run in it with a state folder of its own."""

    folder: Path

    def write(self, name: str, text: str) -> Path:
        """Write a file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def environment(self, **extra: str) -> dict[str, str]:
        """Return the environment of a command."""
        return {**os.environ, "PYTHONPATH": str(ROOT), **extra}

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        """Start a command and return it."""
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *arguments],
            cwd=self.folder,
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, timeout_s: float = 120, **extra: str) -> Done:
        """Run a command to its end."""
        process = self.start(*arguments, **extra)
        out, err = process.communicate(timeout=timeout_s)
        return Done(process.returncode, out, err)
