from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_site import DEVICE, FakeAnswer, FakeSite, make_bundle
from support.ledger_samples import digest, request

from orchestrator.core.errors import Conflict, GateError, LedgerError, ServingError, Unreachable, UsageError
from orchestrator.ledger import Ledger, Owner
from orchestrator.rollout.deploy import deploy
from orchestrator.rollout.endpoints import list_endpoints
from orchestrator.rollout.reconcile import build_table, publish
from orchestrator.rollout.request import Deployed, DeployRequest
from orchestrator.serving.table import RoutingTable

Run = Callable[..., Deployed]


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with Ledger.open(ledger_url) as opened:
        yield opened


@pytest.fixture
def site(tmp_path: Path) -> FakeSite:
    for letter in "123":
        make_bundle(tmp_path, letter)
    return FakeSite(tmp_path)


@pytest.fixture
def run(ledger: Ledger, site: FakeSite) -> Run:
    def call(letter: str, **changes: Any) -> Deployed:
        return deploy(ledger, site, wanted(site, letter, **changes), Owner.here("test"))

    return call


def wanted(site: FakeSite, letter: str, **changes: Any) -> DeployRequest:
    values: dict[str, Any] = {
        "endpoint": "digits",
        "pool": "edge",
        "bundle": digest(letter),
        "path": site.folder / "bundles" / letter,
        "runtime": "onnx-cpu",
        "device": DEVICE,
        "actor": "ada",
        "ready_timeout_s": 2.0,
    }
    return DeployRequest(**{**values, **changes})


def states(ledger: Ledger) -> dict[int, str]:
    return {g.number: str(g.state) for g in ledger.generations.list("digits")}


def weights(table: RoutingTable) -> dict[int, tuple[str, int]]:
    return {g.generation: (g.state, g.weight) for e in table.endpoints.values() for g in e.generations}


def test_the_first_deploy_goes_through_every_stage(ledger: Ledger, site: FakeSite, run: Run) -> None:
    done = run("1", artifact=digest("a"), evidence={"accuracy": 0.97})
    assert (done.generation, done.previous, done.device) == (1, 0, DEVICE)
    assert done.url == "http://127.0.0.1:1/v2/models/digits"
    assert done.smoke is not None
    assert (done.smoke.samples, done.smoke.device, site.asked) == (3, DEVICE, 3)
    assert [weights(table) for table in site.tables()] == [{1: ("staged", 0)}, {1: ("live", 100)}]
    live = ledger.generations.live("digits")
    assert live is not None
    assert (live.artifact, live.evidence["accuracy"], live.actor) == (digest("a"), 0.97, "ada")
    actions = [row.action for row in ledger.audit.rows()]
    assert actions == ["generation.promote", "rollout.smoke", "generation.live"]
    assert ledger.leases.holder("endpoint/digits") is None


def test_the_second_deploy_keeps_the_old_until_the_switch_and_warm_after_it(
    ledger: Ledger, site: FakeSite, run: Run
) -> None:
    run("1")
    done = run("2")
    assert (done.generation, done.previous) == (2, 1)
    assert [weights(table) for table in site.tables()[2:]] == [
        {1: ("live", 100), 2: ("staged", 0)},
        {1: ("warm", 0), 2: ("live", 100)},
    ]
    run("3")
    assert [weights(table) for table in site.tables()[5:]] == [
        {1: ("draining", 0), 2: ("warm", 0), 3: ("live", 100)},
        {2: ("warm", 0), 3: ("live", 100)},
    ]
    assert states(ledger) == {1: "retired", 2: "warm", 3: "live"}
    assert (site.folder / "bundles" / "1" / "golden.safetensors").exists()


def test_the_old_generation_is_retired_when_its_requests_are_done_or_the_time_is_over(
    ledger: Ledger, site: FakeSite, run: Run
) -> None:
    for letter in "45":
        make_bundle(site.folder, letter)
    for letter in "12":
        run(letter)
    site.in_flight[1] = [2] * 6
    run("3")
    assert site.in_flight[1] == []
    site.in_flight[2] = [1] * 10_000
    run("4", drain_timeout_s=0.2)
    assert states(ledger) == {1: "retired", 2: "retired", 3: "warm", 4: "live"}


def test_the_same_command_again_changes_no_generation(ledger: Ledger, site: FakeSite, run: Run) -> None:
    run("1")
    again = run("1")
    assert (again.generation, again.previous, again.smoke) == (1, 0, None)
    assert states(ledger) == {1: "live"}
    assert weights(site.table()) == {1: ("live", 100)}


def test_going_back_to_an_old_bundle_makes_a_new_generation(ledger: Ledger, run: Run) -> None:
    run("1")
    run("2")
    assert run("1").generation == 3
    assert states(ledger) == {1: "retired", 2: "warm", 3: "live"}


def test_a_replica_that_fails_leaves_the_old_untouched_and_says_why(ledger: Ledger, site: FakeSite, run: Run) -> None:
    run("1")
    site.broken[digest("2")] = "MODEL_LOAD: not an ONNX file"
    with pytest.raises(ServingError, match=r"generation 2 of 'digits' cannot be served: MODEL_LOAD(.|\n)*last line"):
        run("2")
    assert states(ledger) == {1: "live", 2: "failed"}
    assert weights(site.table()) == {1: ("live", 100)}
    failed = ledger.generations.get("digits", 2)
    assert failed is not None
    assert failed.error is not None
    assert failed.error["error"] == "ServingError"
    site.broken.clear()
    assert run("2").generation == 3  # a failed number is never used again
    assert states(ledger) == {1: "warm", 2: "failed", 3: "live"}


def answering(**changes: Any) -> Callable[[FakeAnswer], FakeAnswer]:
    return lambda answer: replace(answer, **changes)


def outputs(change: Callable[[Any], Any]) -> Callable[[FakeAnswer], FakeAnswer]:
    return lambda answer: replace(answer, outputs={"logits": change(np.array(answer.outputs["logits"]))})


def nan_in_the_last(logits: Any) -> Any:
    return np.where(logits == 24, np.nan, logits).astype(np.float32)  # 24 is the last value of the last sample


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (outputs(lambda x: x * np.float32(1.01)), "SQNR 40.0 dB"),
        (outputs(nan_in_the_last), "1 of 12 values are non-finite"),
        (outputs(lambda x: x.astype(np.float64)), "dtype float64, expected float32"),
        (outputs(lambda x: x[:, :3]), r"shape \[3, 3\], expected \[3, 4\]"),
        (answering(outputs={}), "the candidate lacks it"),
        (answering(device="cpu"), r"on cpu\) answered"),
        (answering(generation=1), r"generation 1 .* answered"),
        (answering(bundle=digest("9")), "answered"),
    ],
)
def test_the_smoke_test_says_no(ledger: Ledger, site: FakeSite, run: Run, spoil: Any, message: str) -> None:
    run("1")
    site.spoil[digest("2")] = spoil
    with pytest.raises(GateError, match=message) as caught:
        run("2")
    assert caught.value.exit_code == 1
    assert states(ledger) == {1: "live", 2: "failed"}
    assert weights(site.table()) == {1: ("live", 100)}


def test_a_damaged_bundle_fails_the_generation(ledger: Ledger, site: FakeSite, run: Run) -> None:
    (site.folder / "bundles" / "1" / "golden.safetensors").write_bytes(b"x")
    with pytest.raises(Exception, match="golden samples"):
        run("1")
    assert states(ledger) == {1: "failed"}
    assert weights(site.table()) == {}


def test_no_agent_is_a_bounded_wait_with_a_reason(ledger: Ledger, site: FakeSite, run: Run) -> None:
    site.agents = 0
    with pytest.raises(ServingError, match=r"not ready after 0\.2 s: pool 'edge' has no agent"):
        run("1", ready_timeout_s=0.2)
    assert states(ledger) == {1: "failed"}


def test_what_an_agent_says_of_an_older_table_does_not_count(ledger: Ledger, site: FakeSite, run: Run) -> None:
    site.broken[digest("1")] = "from before"
    site.agent_lag = 1

    def heal(text: str) -> None:
        site.broken.clear()

    done = deploy(ledger, site, wanted(site, "1"), Owner.here(), tell=heal)
    assert done.generation == 1


def test_an_unreachable_router_decides_nothing(ledger: Ledger, site: FakeSite, run: Run) -> None:
    run("1")
    site.down = True
    with pytest.raises(Unreachable):
        run("2")
    assert states(ledger) == {1: "live", 2: "staged"}
    site.down = False
    assert run("2").generation == 2


def test_a_staged_generation_that_was_left_behind_gives_way(ledger: Ledger, site: FakeSite, run: Run) -> None:
    site.down = True
    with pytest.raises(Unreachable):
        run("1")
    site.down = False
    assert run("2").generation == 2
    assert states(ledger) == {1: "failed", 2: "live"}


def test_expectations_are_compared(ledger: Ledger, run: Run) -> None:
    run("1", expected=0)
    with pytest.raises(Conflict, match="is at generation 1, not 0"):
        run("2", expected=0)
    run("2", expected=1)
    assert run("2", expected=1).generation == 2  # the same command again
    with pytest.raises(Conflict, match="is at generation 2, not 77"):
        run("2", expected=77)
    with pytest.raises(Conflict, match="is at generation 2, not 1"):
        run("1", expected=1)
    assert states(ledger) == {1: "warm", 2: "live"}


def test_another_rollout_of_the_endpoint_is_a_conflict(ledger: Ledger, run: Run) -> None:
    far = replace(Owner.here("rollout"), machine="elsewhere")
    with ledger.leases.held("endpoint/digits", far), pytest.raises(Conflict, match="for rollout"):
        run("1")
    assert states(ledger) == {}


@pytest.mark.parametrize("stage", ["appended", "staged", "ready", "smoked", "live", "switched", "drained", "retired"])
def test_a_deploy_that_is_fenced_on_its_way_changes_nothing_more(
    ledger: Ledger, site: FakeSite, run: Run, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    run("1")
    run("2")
    found: list[tuple[dict[int, str], int]] = []

    def taken_over(name: str) -> None:
        if name == f"deploy.{stage}":
            with monkeypatch.context() as patch:
                patch.setattr("orchestrator.ledger.leases._free", lambda row, now: True)
                ledger.leases.acquire("endpoint/digits", Owner.here("other"))
            found.append((states(ledger), len(site.tables())))

    for module in ("deploy", "stage"):
        monkeypatch.setattr(f"orchestrator.rollout.{module}.point", taken_over)
    with pytest.raises(Conflict, match="no longer ours"):
        run("3")
    assert [(states(ledger), len(site.tables()))] == found


def test_an_endpoint_stays_in_its_pool(ledger: Ledger, run: Run) -> None:
    run("1")
    with pytest.raises(UsageError, match="lives in pool 'edge' of site 'local', not in 'other'"):
        run("2", pool="other")
    with pytest.raises(UsageError, match="endpoint 'No Name' is not a valid name"):
        run("2", endpoint="No Name")
    assert states(ledger) == {1: "live"}


def test_publishing_follows_a_faster_publisher_and_notices_a_foreign_ledger(ledger: Ledger, site: FakeSite) -> None:
    lease = ledger.leases.acquire("endpoint/digits", Owner.here())
    ledger.generations.append(request("1"), lease)
    site.put_table(RoutingTable(2))
    assert publish(ledger, site).version == 3  # 1 is older, 2 is taken
    assert weights(site.table()) == {1: ("staged", 0)}
    site.put_table(RoutingTable(1000))
    with pytest.raises(LedgerError, match="refused table version") as caught:
        publish(ledger, site)
    assert "another ledger" in caught.value.hint


def test_the_table_is_a_pure_function_of_the_ledger(ledger: Ledger, site: FakeSite, run: Run) -> None:
    run("1")
    run("2")
    run("3", endpoint="other")
    stamp = ledger.generations.stamp("local")
    assert build_table(stamp) == build_table(stamp)
    assert replace(build_table(stamp), version=site.table().version) == site.table()
    assert sorted(build_table(stamp).endpoints) == ["digits", "other"]


def test_endpoints_show_what_should_be_and_what_is(ledger: Ledger, site: FakeSite, run: Run) -> None:
    assert list_endpoints(ledger, {"local": site}) == ()
    run("1")
    (view,) = list_endpoints(ledger, {"local": site})
    assert (view.endpoint, view.generation, view.bundle, view.device) == ("digits", 1, digest("1"), DEVICE)
    assert (view.state, view.staged, view.pool, view.url) == ("ready", 0, "edge", "http://127.0.0.1:1/v2/models/digits")
    site.broken[digest("1")] = "crashed"
    assert list_endpoints(ledger, {"local": site})[0].state == "not ready"
    site.down = True
    assert list_endpoints(ledger, {"local": site})[0].state == "down"
    assert list_endpoints(ledger, {})[0].state == "down"
    with pytest.raises(Unreachable):
        run("2")
    assert list_endpoints(ledger, {})[0].staged == 2
    with pytest.raises(Unreachable):
        run("1", endpoint="fresh")
    fresh = next(row for row in list_endpoints(ledger, {}) if row.endpoint == "fresh")
    assert (fresh.state, fresh.generation, fresh.bundle) == ("none", 0, "")


class _OneDeviceBreaks(FakeSite):
    """Two slots; once a generation is live, its replica on the second fails."""

    def status(self) -> dict[str, Any]:
        found = super().status()
        if any(g.state == "live" for e in self.table().endpoints.values() for g in e.generations):
            agent = found["agents"][1]
            rows = [
                row | {"state": "failed", "failures": 3, "error": "the device is lost"} for row in agent["replicas"]
            ]
            found["agents"] = [found["agents"][0], agent | {"replicas": rows}]
        return found


def test_a_device_that_breaks_after_the_switch_fails_no_rollout_while_others_serve(
    ledger: Ledger, tmp_path: Path
) -> None:
    make_bundle(tmp_path, "1")
    site, said = _OneDeviceBreaks(tmp_path, agents=2), list[str]()
    deploy(ledger, site, wanted(site, "1"), Owner.here("test"), tell=said.append)
    assert states(ledger) == {1: "live"}
    assert "generation 1: the device is lost; its other replicas serve" in said
