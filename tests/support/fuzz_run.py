"""Runs a target of `fuzz_targets` under atheris, with the data plane instrumented as it is imported."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def run(target: str, seeds: Callable[[], list[bytes]]) -> None:
    """Fuzz: `--seconds N` (60), and what libFuzzer understands. Ends with 0 where atheris is not installed, and says so.

    Args:
        target: Name of a function of `fuzz_targets`.
        seeds: Inputs to begin with; called after the data plane has been imported.
    """
    try:
        import atheris  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("atheris is not installed: pip install atheris")
        return
    argv, seconds, rest = sys.argv[:1], "60", sys.argv[1:]
    if rest[:1] == ["--seconds"]:
        seconds, rest = rest[1], rest[2:]
    with atheris.instrument_imports(include=["orchestrator.serving"]):
        targets = importlib.import_module("support.fuzz_targets")
    corpus = Path(tempfile.mkdtemp(prefix="orc-corpus-"))
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([*argv, f"-max_total_time={seconds}", "-max_len=2000", *rest, str(corpus)], getattr(targets, target))
    atheris.Fuzz()
