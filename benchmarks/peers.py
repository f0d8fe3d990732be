"""Peers in environments of their own: made once below `.bench/`, so that no peer's pins touch ours or each other's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".bench"


class NotInstalled(Exception):
    """A peer that cannot be had here; the text is the installer's last word."""


def peer_environment(name: str, *packages: str) -> Path | None:
    """Return the `bin` folder of a peer's environment, made if need be; None where it cannot be installed."""
    try:
        return installed(name, *packages)
    except NotInstalled as error:
        print(f"{name}: cannot be installed: {error}", file=sys.stderr)
        return None


def installed(name: str, *packages: str) -> Path:
    """Return the `bin` folder of a peer's environment, made if need be.

    Raises:
        NotInstalled: It cannot be.
    """
    folder = HOME / name
    stamp = folder / "stamp"
    python = folder / "bin" / "python"
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
        pip = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
        done = subprocess.run([*pip, "-q", *packages], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotInstalled(" ".join(done.stderr.split()[-40:]))
        stamp.write_text(" ".join(packages))
    return folder / "bin"
