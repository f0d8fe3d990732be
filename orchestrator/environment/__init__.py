"""YAML text -> Environment: sites, pools, tracking, ledger, store, tools. Names load on first use, as in `recipe`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.environment.fit import check_against
    from orchestrator.environment.load import load_environment
    from orchestrator.environment.model import Environment

__all__ = ["Environment", "check_against", "load_environment"]

_HOMES = {"Environment": "model", "load_environment": "load", "check_against": "fit"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
