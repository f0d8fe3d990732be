"""The user's repository at the time of a run: commit, branch, whether anything is uncommitted."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Final

from orchestrator.core.redact import redact_url

_TIMEOUT_S: Final = 5.0


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return `{commit, branch, dirty, url}`, or None where `folder` is in no repository or git is absent."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    url = _git(folder, "config", "--get", "remote.origin.url")
    return {
        "commit": commit,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": bool(_git(folder, "status", "--porcelain", "--", ".")),
        "url": redact_url(url) if "://" in url else url,
    }


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
