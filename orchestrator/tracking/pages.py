"""Links to MLflow's pages. `workflowType` picks the training view; without it the first visit opens the GenAI view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from orchestrator.tracking.snapshot import ProjectionReport

_VIEW: Final = "?workflowType=machine_learning"


def experiment_page(experiment_id: str) -> str:
    """Return the path of an experiment's page."""
    return f"/#/experiments/{experiment_id}{_VIEW}"


def run_page(experiment_id: str, run_id: str) -> str:
    """Return the path of a run's page."""
    return f"/#/experiments/{experiment_id}/runs/{run_id}{_VIEW}"


def model_page(experiment_id: str, model_id: str) -> str:
    """Return the path of a LoggedModel's page."""
    return f"/#/experiments/{experiment_id}/models/{model_id}{_VIEW}"


def registered_page(name: str, version: str = "") -> str:
    """Return the path of a registered model's page, or of one version's."""
    tail = f"/versions/{version}" if version else ""
    return f"/#/models/{quote(name, safe='')}{tail}{_VIEW}"


def page_urls(base_url: str, report: ProjectionReport | Mapping[str, str]) -> dict[str, str]:
    """Return a report's links below `base_url` (e.g. of `serve_ui`); links that are absolute already stay."""
    urls = report.urls if isinstance(report, ProjectionReport) else report
    base = base_url.rstrip("/")
    return {name: base + url if url.startswith("/") else url for name, url in urls.items()}
