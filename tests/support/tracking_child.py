"""A projecting process that can be killed: forked from a server that has MLflow imported, so that each costs 0.1 s."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from multiprocessing.context import ForkServerContext
from pathlib import Path

from support.tracking_samples import FileMapping, digits, small


def context() -> ForkServerContext:
    """A fork server with MLflow imported (but nothing of ours: the fault points are read at import)."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["mlflow", "mlflow.pyfunc"])
    return forks


def project_once(folder: str, recipe: str, uri: str, fault: str, log: str) -> None:
    """Mirror the small sample with the mapping in `folder`; dies where `fault` says, and says so in `log`."""
    os.environ["ORCHESTRATE_FAULT"] = fault
    os.environ["ORCHESTRATE_FAULT_LOG"] = log
    from orchestrator.tracking.projector import project

    snapshot = small(dataclasses.replace(digits(Path(folder, "store")), recipe=recipe, id=f"x{recipe}"))
    report = project(snapshot, FileMapping(Path(folder, "mapping")), uri=uri, budget_s=60)
    assert report.done, report
    assert not report.refused, report
