"""`capacity --measure` on a real router and replica, and the refusal to size what was not measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.serving_site import DEVICE, ServingSite, scale_bundle

from orchestrator.app import capacity as app
from orchestrator.app.capacity import Ask, measure, size_pool
from orchestrator.app.wiring import Workplace, open_workplace
from orchestrator.cli.main import main
from orchestrator.core.errors import GateError, UsageError
from orchestrator.ledger import GenerationRequest, GenerationState, Owner
from orchestrator.rollout.site import RouterSite

ENVIRONMENT = """
environment: 1
state: {state}
sites: {{local: {{kind: local, allow_cpu: true}}}}
pools:
  edge: {{site: local, soc: Ascend310P3, rehearsal: true, slots: 1}}
  line: {{site: local, soc: Ascend310P3, slots: 4}}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """A site that serves one small model, and a ledger that says so."""
    folder = tmp_path_factory.mktemp("capacity")
    path = folder / "environment.yaml"
    path.write_text(ENVIRONMENT.format(state=folder / "state"))
    found = open_workplace(path)
    bundle = scale_bundle(folder / "model", 2.0)
    site = ServingSite(folder / "site")
    patch = pytest.MonkeyPatch()
    try:
        site.start_router()
        site.start_agent()
        _go_live(found, bundle)
        site.serve("scale", {**_row(bundle)})
        admin = site.short / "admin.sock"
        patch.setattr(app, "connect", lambda *_: RouterSite.connect("local", site.url, admin))
        yield found
    finally:
        patch.undo()
        site.stop()


def _row(bundle: tuple[str, Path]) -> dict[str, object]:
    from support.serving_site import generation

    return generation(1, bundle)  # type: ignore[arg-type]


def _go_live(workplace: Workplace, bundle: tuple[str, Path]) -> None:
    request = GenerationRequest(
        endpoint="scale",
        site="local",
        pool="edge",
        bundle=bundle[0],
        artifact="",
        path=str(bundle[1]),
        runtime="onnx-cpu",
        device=DEVICE,
        kind="promote",
        request_id="one",
        actor="ada",
        expected=0,
    )
    with (
        workplace.open_ledger() as ledger,
        ledger.leases.held("endpoint/scale", Owner.here("test"), ttl_s=60, wait_s=0) as lease,
    ):
        ledger.generations.append(request, lease)
        ledger.generations.set_state("scale", 1, GenerationState.LIVE, lease, actor="ada")


def test_nothing_is_sized_before_it_was_measured(workplace: Workplace) -> None:
    with pytest.raises(UsageError) as caught:
        size_pool(workplace, Ask("scale", 100, 50, pool="line"))
    assert "no curve of 'scale' (generation 1) was measured on Ascend310P3" in caught.value.message
    assert "--measure" in caught.value.hint


def test_a_measured_curve_sizes_its_own_kind_of_device_and_no_other(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "_LEAST_BATCHES", 10)
    monkeypatch.setattr(app, "_LEAST_S", 0.0)
    (curve,) = measure(workplace, "scale", lambda _: None)
    assert curve.device == DEVICE
    assert curve.rehearsal
    assert [point.batch for point in curve.points] == [1, 2, 4, 8, 16, 32]
    assert all(point.batches >= 5 and 0 < point.p50_us <= point.p99_us for point in curve.points)

    answer: dict[str, Any] = size_pool(workplace, Ask("scale", 10, 500))
    assert answer["slots"] >= 1
    assert answer["rehearsal"] is True
    assert any("rehearsal pools only" in text for text in answer["assumptions"])

    with pytest.raises(GateError, match="no number of slots of cpu"):
        size_pool(workplace, Ask("scale", 10, 0.001))
    with pytest.raises(UsageError, match=r"measured on cpu \(rehearsal\) only, which says nothing about Ascend310P3"):
        size_pool(workplace, Ask("scale", 10, 500, pool="line"))

    with pytest.raises(SystemExit) as ended:
        main(["capacity", "--endpoint", "scale", "--rps", "10", "--p99-ms", "500", "-e", str(workplace.path)])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "of cpu (rehearsal) for 10 requests/s with a p99 of 500 ms; pool edge has 1" in shown
    assert "assumed:" in shown


def test_an_unknown_endpoint_and_pool_are_named(workplace: Workplace) -> None:
    with pytest.raises(UsageError, match="no generation of endpoint 'scal' is live"):
        size_pool(workplace, Ask("scal", 1, 1))
    with pytest.raises(UsageError, match="no pool 'edg'"):
        size_pool(workplace, Ask("scale", 1, 1, pool="edg"))
