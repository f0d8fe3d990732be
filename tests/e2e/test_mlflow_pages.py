"""MLflow's own pages in a real browser: from the training run to what serves, link by link."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import chromium, click, find, needs_browser, see
from support.mlflow_server import mlflow_url  # noqa: F401  # a fixture
from support.tracking_samples import DictMapping, digits

from orchestrator.tracking.projector import project
from orchestrator.tracking.snapshot import ProjectionReport
from orchestrator.tracking.ui import page_urls, serve_ui

pytestmark = needs_browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    with chromium(tmp_path / "profile") as driver:
        yield driver


@pytest.fixture
def report(mlflow_url: str, tmp_path: Path) -> ProjectionReport:  # noqa: F811
    snapshot = dataclasses.replace(digits(tmp_path / "store"), recipe="pages", id="xpages")
    done = project(snapshot, DictMapping(), uri=mlflow_url, budget_s=120)
    assert done.done, done.pending
    return done


def test_from_the_training_run_to_the_deployment(browser: Any, report: ProjectionReport) -> None:
    models = {
        url.rpartition("/")[2].partition("?")[0]: name for name, url in report.urls.items() if "/models/m-" in url
    }
    assert len(models) == 2
    runs = report.run_ids

    browser.get(report.urls["step:train"])
    see(browser, "Model training", "train", "epochs", "0.002", "digits")
    checkpoint = find(browser, "a[href*='/models/m-']").get_attribute("href").rpartition("/")[2].partition("?")[0]
    (onnx,) = set(models) - {checkpoint}
    click(browser, f"a[href$='/models/{checkpoint}']")

    see(browser, "pages-checkpoint", "export", "evaluate", "made by")
    assert f"/models/{checkpoint}" in browser.current_url
    click(browser, f"a[href$='#/runs/{runs['export']}']")

    see(browser, "export", "pages-checkpoint", "pages-onnx")
    click(browser, f"a[href$='/models/{onnx}']")

    see(browser, "pages-onnx", "deploy", "opset", "17", "made from")
    click(browser, f"a[href$='#/runs/{runs['deploy']}']")

    see(browser, "p99_ms", "pages-onnx", "cpu (rehearsal)", "orch.generation")
    assert runs["deploy"] in browser.current_url


def test_the_execution_page_leads_to_its_steps_and_the_registry_to_its_model(
    browser: Any, report: ProjectionReport
) -> None:
    browser.get(report.urls["execution"])
    see(browser, "exec xpages", "Child runs", "evaluate/accuracy", "made")
    click(browser, f"a[href$='/runs/{report.run_ids['parity']}']")
    see(browser, "sqnr_db", "118.2", "Parent run")

    browser.get(report.urls["registered:pages.onnx"])
    see(browser, "@ live", "@ candidate", "orch.bundle", "pages-onnx")
    click(browser, "a[href*='/models/m-']")
    see(browser, "pages-onnx", "Model ID")


def test_a_local_database_gets_its_pages(browser: Any, tmp_path: Path) -> None:
    """What `orchestrate ui` does: SQLite without a server, then a server for the pages; the files show too."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    snapshot = digits(tmp_path / "store")
    done = project(snapshot, DictMapping(), uri=uri, budget_s=120)
    assert done.done, done.pending
    with serve_ui(uri) as ui:
        urls = page_urls(ui.url, done)
        onnx = next(ref.digest for step in snapshot.steps for ref in step.outputs if ref.kind == "onnx")
        browser.get(urls[f"model:{onnx}"])
        see(browser, "digits-onnx", "Ready")
        click(browser, "a[href$='/artifacts']")
        see(browser, "MLmodel", "manifest.json", "model.onnx")
    assert ui.process is not None
    assert ui.process.poll() is not None
