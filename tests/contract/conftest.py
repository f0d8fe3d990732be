from __future__ import annotations

from support.postgres import ledger_url, postgres_server

__all__ = ["ledger_url", "postgres_server"]
