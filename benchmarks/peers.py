"""Peers in environments of their own: made once below `.bench/`, so that no peer's pins touch ours or each other's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".bench"


def peer_environment(name: str, *packages: str) -> Path | None:
    """Return the `bin` folder of a peer's environment, made if need be; None where it cannot be installed."""
    folder = HOME / name
    stamp = folder / "stamp"
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *packages]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"{name}: cannot be installed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return None
        stamp.write_text(" ".join(packages))
    return folder / "bin"
