"""The console in a real browser, over a real ledger and a real router with a replica."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import chromium, find, needs_browser, see
from support.ledger_samples import request
from support.serving_site import ServingSite, scale_bundle

from orchestrator.app import serve_site
from orchestrator.app.wiring import Workplace, open_workplace
from orchestrator.console import traffic
from orchestrator.console.run import ConsoleSettings, open_console
from orchestrator.ledger import GenerationState, Owner, Rollout
from orchestrator.rollout.evidence.rows import Counts, Delta
from orchestrator.rollout.evidence.spec import AnalysisSpec, MetricSpec
from orchestrator.rollout.identity import add_identity
from orchestrator.rollout.site import RouterSite
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_steps import Analysis, SetMirror, SetWeight

pytestmark = needs_browser


@dataclass
class World:
    workplace: Workplace
    url: str
    token: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("console")
    token = add_identity(folder / "approvers", "ada", ["promote", "approve"])
    file = folder / "environment.yaml"
    file.write_text(
        f"environment: 1\nstate: {folder}/state\nsites: {{local: {{kind: local, approvers: {folder}/approvers}}}}\n"
        "tracking: {uri: none}\npools: {edge: {site: local, soc: Ascend310P3, rehearsal: true, slots: 1}}\n"
    )
    workplace = open_workplace(file)
    with contextlib.ExitStack() as stack:
        site = ServingSite(folder / "site")
        stack.callback(site.stop)
        bundle, path = scale_bundle(folder / "twice", 2.0)
        _fill(workplace, str(bundle), str(path))
        _serve(site, str(bundle), str(path))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        admin = site.short / "admin.sock"
        for module in (traffic, serve_site):
            patch.setattr(module, "connect", lambda _place, name: RouterSite.connect(name, site.url, admin))
        server, listener, url, warnings = stack.enter_context(open_console(workplace, ConsoleSettings()))
        assert warnings == []
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        stack.callback(thread.join, 10)
        stack.callback(setattr, server, "should_exit", True)
        yield World(workplace, url, token)


def _fill(workplace: Workplace, bundle: str, path: str) -> None:
    """Generation 1 is live, generation 2 at 25 % with some hundred requests of evidence."""
    spec = AnalysisSpec(metrics=(MetricSpec(name="error_rate", margin=0.05),), min_samples=50)
    steps = (SetMirror(100), SetWeight(25), Analysis(spec), SetWeight(50))
    strategy = Strategy(kind="canary", steps=steps, approvals=2)
    with workplace.open_ledger() as ledger:
        lease = ledger.leases.acquire("endpoint/digits", Owner.here("test"))
        for number in (1, 2):
            asked = replace(request(str(number), expected=number - 1, path=path, reason="run x1"), bundle=bundle)
            ledger.generations.append(asked, lease)
            if number == 1:
                ledger.generations.set_state("digits", 1, GenerationState.LIVE, lease, actor="ada")
        places = {"endpoint": "digits", "generation": 2, "site": "local", "pool": "edge", "stable": 1}
        begun = Rollout(**places, strategy=strategy.to_json(), actor="bea", reason="<b>run</b> x1")  # type: ignore[arg-type]
        ledger.rollouts.begin(begun, lease)
        moved = {"step": 2, "weight": 25, "mirror": 100, "notes": {"step_seq": 0, "entered": 2}}
        waiting = {"kind": "evidence", "text": "needs more requests", "since": time.time() - 5}
        ledger.rollouts.save(Rollout(**{**_values(begun), **moved, "waiting": waiting}), lease)
        rows = [
            Delta(
                t=1e9 + k,
                boot="b",
                traffic="weighted",
                weight=25,
                canary=Counts(requests=25, errors=int(k % 5 == 0)),
                stable=Counts(requests=75, errors=int(k % 3 == 0)),
            ).to_json()
            for k in range(40)
        ]
        ledger.rollouts.add_evidence("digits", 2, rows, lease)


def _values(rollout: Rollout) -> dict[str, Any]:
    return {name: getattr(rollout, name) for name in rollout.__dataclass_fields__}


def _serve(site: ServingSite, bundle: str, path: str) -> None:
    site.start_router()
    site.start_agent()
    generations = [
        {
            "generation": number,
            "bundle": bundle,
            "path": path,
            "runtime": "onnx-cpu",
            "device": "cpu (rehearsal)",
            "weight": weight,
            "state": state,
        }
        for number, weight, state in ((1, 75, "live"), (2, 25, "staged"))
    ]
    site.put({"digits": {"pool": "edge", "generations": generations, "split": {"stable": 1, "canary": 2}}})
    for number in (1, 2):
        site.admin.wait_ready("digits", number, 30)
    for _ in range(40):
        site.client().infer("digits", {"x": np.ones((1, 4), np.float32)})


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    with chromium(tmp_path / "profile", {"performance": "ALL", "browser": "ALL"}) as driver:
        yield driver
        assert driver.get_log("browser") == []
        assert _strangers(driver) == []


def _strangers(driver: Any) -> list[str]:
    """Return the addresses of requests that pages made to anything but this machine."""
    messages = [json.loads(row["message"])["message"] for row in driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked
    return [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "chrome:", "about:"))]


def _wide(driver: Any, width: int) -> int:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    return int(driver.execute_script("return document.documentElement.scrollWidth"))


def test_watching_and_pausing(world: World, browser: Any) -> None:
    browser.get(world.url)
    see(browser, "Endpoints", "digits", "progressing", "1 → 2 at 25 %")
    find(browser, "a[href='/endpoints/digits']").click()

    see(
        browser, "rehearsal on CPU", "Generation 1 → 2", "analysis (error_rate)", "needs more requests", "<b>run</b> x1"
    )
    see(browser, "generation 2 (canary): 25 %", "by weight", "0 of 2", "Upper bound of canary − stable")
    assert find(browser, "svg.chart polyline.curve").get_attribute("points").count(",") > 10
    assert find(browser, "svg.chart line.limit")
    assert browser.find_elements("css selector", "button") == []
    for width in (360, 1200):
        assert _wide(browser, width) <= width

    find(browser, "#sign-in").click()
    find(browser, "#token").send_keys(world.token)
    find(browser, "button.main").click()
    find(browser, "#why").send_keys("looks odd")
    assert _wide(browser, 360) <= 360
    find(browser, "#pause").click()
    see(browser, "Asked to pause", "Asked: pause")
    with world.workplace.open_ledger() as ledger:
        active = ledger.rollouts.active("digits")
        assert active is not None
        assert active.intent == "pause"
        row = ledger.audit.rows()[-1]
        assert (row.actor, row.action, row.detail["reason"]) == ("ada", "rollout.ask", "looks odd")

    find(browser, "#approve").click()
    see(browser, "ada approves generation 2", "1 of 2")
    browser.delete_all_cookies()
    find(browser, "#abort").click()
    see(browser, "You are not signed in")
    with world.workplace.open_ledger() as ledger:
        assert ledger.rollouts.active("digits") is not None
    said = [row["message"] for row in browser.get_log("browser")]
    assert len(said) == 1, said
    assert "401" in said[0]


def test_the_page_follows_what_happens_and_works_without_scripts(world: World, browser: Any) -> None:
    browser.get(f"{world.url}endpoints/digits")
    see(browser, "needs more requests")
    browser.execute_script("window.before = document.getElementById('live')")
    with world.workplace.open_ledger() as ledger:
        lease = ledger.leases.acquire("endpoint/digits", Owner.here("test"), seize=True)
        active = ledger.rollouts.active("digits")
        assert active is not None
        waiting = {"kind": "operator", "text": "for a word of yours", "since": time.time() - 5}
        ledger.rollouts.save(Rollout(**{**_values(active), "waiting": waiting}), lease)
    see(browser, "for a word of yours")
    assert browser.execute_script("return window.before !== document.getElementById('live')")

    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(f"{world.url}endpoints/digits")
    assert "for a word of yours" in browser.page_source
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_an_abort_is_carried_out_though_nobody_leads(world: World, browser: Any) -> None:
    with world.workplace.open_ledger() as ledger:
        ledger.leases.release(ledger.leases.acquire("endpoint/digits", Owner.here("test"), seize=True))
    browser.get(f"{world.url}login?next=/endpoints/digits")
    find(browser, "#token").send_keys(world.token)
    find(browser, "button.main").click()
    see(browser, "Nobody leads it")
    find(browser, "#abort").click()
    see(browser, "Last rollout", "aborted", "generation 1: 100 %", "aborted by ")
    with world.workplace.open_ledger() as ledger:
        assert ledger.rollouts.active("digits") is None
        assert [g.state.value for g in ledger.generations.list("digits")] == ["live", "failed"]
