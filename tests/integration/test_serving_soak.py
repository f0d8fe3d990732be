"""The short soak; `make bench` runs the one of 30 minutes, `benchmarks/serving_soak.py --quick` the one of 2.

Those have 64 replicas and 2,000 connections, and their memory may grow by 2 %. Here it is about half a minute with 4 and 80, and
5 % of some 45 MiB: a leak of a few hundred bytes a request is found, a smaller one is not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_mixed_load_loses_doubles_and_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from serving_soak import problems, soak

    found = soak(15.0, replicas=4, connections=80, think_s=0.1, filled=True)
    assert problems(found, most=0.05) == []
    assert found["tables"] > 5, "the table was to change while requests came"
    assert found["sent"] > 1_000
    assert set(found["memory"]) == {"router", "agent", "replicas"}
