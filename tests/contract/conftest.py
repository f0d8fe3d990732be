from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from postgres import ledger_url, postgres_server

__all__ = ["ledger_url", "postgres_server"]
