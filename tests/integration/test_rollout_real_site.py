"""Deploy against a real router, agent and replicas on loopback, with clients that call all the time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.forked import fired, run_forked
from support.serving_site import DEVICE, ServingSite, scale_bundle

from orchestrator.core.errors import OrchestratorError, ServingError
from orchestrator.ledger import Ledger, Owner
from orchestrator.rollout.deploy import deploy
from orchestrator.rollout.endpoints import list_endpoints
from orchestrator.rollout.request import Deployed, DeployRequest
from orchestrator.rollout.site import RouterSite

Bundle = tuple[str, Path]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    site = ServingSite(tmp_path_factory.mktemp("serving"))
    try:
        site.start_router()
        site.start_agent()
        yield site
    finally:
        site.stop()


def run(site: Callable[[], RouterSite], ledger_path: Path, endpoint: str, bundle: Bundle) -> Deployed:
    request = DeployRequest(
        endpoint=endpoint,
        pool="edge",
        bundle=bundle[0],
        path=bundle[1],
        runtime="onnx-cpu",
        device=DEVICE,
        actor="ada",
        ready_timeout_s=30,
    )
    with Ledger.open(f"sqlite:///{ledger_path}") as ledger:
        return deploy(ledger, site(), request, Owner.here("test"))


def connection(site: ServingSite) -> Callable[[], RouterSite]:
    """Return what another process needs to connect as well."""
    return partial(RouterSite.connect, "local", site.url, site.short / "admin.sock")


class Traffic:
    """Calls the endpoint until it is told to stop; keeps (generation, factor) of each answer, and every error."""

    def __init__(self, site: ServingSite, endpoint: str) -> None:
        self.answers: list[tuple[int, float]] = []
        self.errors: list[OrchestratorError] = []
        self._site, self._endpoint = site, endpoint
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._call)

    def _call(self) -> None:
        with self._site.client() as client:
            while not self._stop.is_set():
                try:
                    answer = client.infer(self._endpoint, {"x": np.ones((1, 4), np.float32)})
                    self.answers.append((answer.generation, float(answer.outputs["y"][0, 0])))
                except OrchestratorError as error:
                    self.errors.append(error)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_two_deploys_a_failure_and_a_kill_under_traffic(serving: ServingSite, tmp_path: Path) -> None:
    site, ledger_path = connection(serving), tmp_path / "ledger.db"
    two, three = scale_bundle(tmp_path / "two", 2.0), scale_bundle(tmp_path / "three", 3.0)
    wrong = scale_bundle(tmp_path / "wrong", 5.0, wrong_golden=True)
    first = run(site, ledger_path, "scale", two)
    assert (first.generation, first.device) == (1, DEVICE)
    assert first.smoke is not None
    assert first.smoke.samples == 3
    assert httpx.get(first.url).json()["versions"] == ["1"]
    log, again = tmp_path / "faults.log", partial(run, site, ledger_path, "scale", three)
    assert run_forked(again, fault="deploy.live:kill", log=log) == -9
    assert fired(log)
    with Traffic(serving, "scale") as traffic:
        ServingSite.wait(lambda: len(traffic.answers) > 20 or traffic.errors, 20, "traffic before the switch")
        done = again()
        assert (done.generation, done.previous) == (2, 0)  # the killed one had committed; this one finished the switch
        with pytest.raises(ServingError, match=r"generation 3 of 'scale' cannot be served: (.|\n)*self-check"):
            run(site, ledger_path, "scale", wrong)
        before = len(traffic.answers)
        back = run(site, ledger_path, "scale", two)
        assert (back.generation, back.previous) == (4, 2)
        ServingSite.wait(lambda: len(traffic.answers) > before + 20 or traffic.errors, 20, "traffic after the switch")
    assert traffic.errors == []
    seen = [number for number, _ in traffic.answers]
    assert sorted(set(seen)) == [1, 2, 4]
    assert seen == sorted(seen)  # one switch each, never back
    assert set(traffic.answers) == {(1, 2.0), (2, 3.0), (4, 2.0)}
    with Ledger.open(f"sqlite:///{ledger_path}") as ledger:
        states = [(g.number, str(g.state)) for g in ledger.generations.list("scale")]
        (view,) = list_endpoints(ledger, {"local": site()})
    assert states == [(1, "retired"), (2, "warm"), (3, "failed"), (4, "live")]
    assert (view.state, view.generation, view.device) == ("ready", 4, DEVICE)
