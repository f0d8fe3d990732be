"""Two real routers that try a generation: both deal alike by REST and gRPC, and whatever the canary does, no client notices."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Generator

import pytest
import tritonclient.grpc as triton_grpc
from support.serving_site import ServingSite, generation, scale_bundle
from support.split_site import JSON, POISON, Bundles, Crowd, ask, ask_grpc, picky_bundle, routers_of, split


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("bundles")
    return {1: scale_bundle(folder / "one", 1.0), 2: picky_bundle(folder / "two", 2.0)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, bundles: Bundles) -> Generator[ServingSite]:
    site = ServingSite(tmp_path_factory.mktemp("split") / "site", routers=2)
    try:
        site.start_router()
        site.start_agent()
        site.serve("scale", generation(1, bundles[1]), generation(2, bundles[2], weight=0, state="staged"))
        yield site
    finally:
        site.stop()


def test_both_routers_and_both_protocols_deal_alike(site: ServingSite, bundles: Bundles) -> None:
    routes = [
        {"name": "x-team", "how": "exact", "value": "qa"},
        {"name": "x-build", "how": "prefix", "value": "next-"},
        {"name": "x-id", "how": "regex", "value": "[0-9]{3}"},
    ]
    one, two = routers_of(site)
    before = set[str]()
    with one, two, triton_grpc.InferenceServerClient(site.grpc) as grpc:
        for weight in (0, 30, 60):
            split(site, bundles, weight, sticky="x-user", headers=routes)
            found = {name: ask(one, {"x-user": name}) for name in (f"u{i}" for i in range(40))}
            assert found == {name: ask(two, {"x-user": name}) for name in found}
            assert found == {name: ask_grpc(grpc, {"x-user": name}) for name in found}
            users = {name for name, number in found.items() if number == 2}
            assert before <= users
            before = users
        assert 0 < len(before) < 40
        split(site, bundles, 0, headers=routes)
        for headers in ({"x-team": "qa"}, {"x-build": "next-7"}, {"x-id": "123"}):
            assert [ask(one, headers), ask(two, headers), ask_grpc(grpc, headers)] == [2, 2, 2]
        for headers in ({"x-team": "qa2"}, {"x-build": "nex"}, {"x-id": "1234"}, {"team": "qa"}):
            assert [ask(one, headers), ask(two, headers), ask_grpc(grpc, headers)] == [1, 1, 1]
        assert ask(one, {"x-team": "qa"}, version=1) == 1
        split(site, bundles, 10)
        for client in (one, two):
            assert Counter(ask(client) for _ in range(200)) == {1: 180, 2: 20}


def test_weights_go_up_and_down_under_load(site: ServingSite, bundles: Bundles) -> None:
    with Crowd(site) as crowd:
        for weight in (0, 10, 50, 100):
            split(site, bundles, weight, mirror=20)
            crowd.more()
        last = crowd.seen[1]
        crowd.more()
        assert crowd.seen[1] - last <= 4, "at 100 percent only what was on its way"
        split(site, bundles, 0, mirror=20)
        crowd.more()
    assert crowd.wrong == []
    assert crowd.seen[1] > 100 < crowd.seen[2]


def test_what_the_canary_alone_cannot_do_costs_nobody_an_answer(site: ServingSite, bundles: Bundles) -> None:
    split(site, bundles, 50)
    one, two = routers_of(site)
    with one, two:
        for client in (one, two):
            for body in (POISON, JSON):
                answers = [client.post("/v2/models/scale/infer", json=body) for _ in range(20)]
                assert {answer.status_code for answer in answers} == {200}
            assert client.post("/v2/models/scale/versions/2/infer", json=POISON).status_code == 400
            assert client.post("/v2/models/scale/infer", json={"inputs": []}).status_code == 400


def test_a_canary_that_is_killed_under_load(site: ServingSite, bundles: Bundles) -> None:
    split(site, bundles, 50, sticky="x-user")
    rows = site.admin.status()["replicas"]
    (pid,) = [row["pid"] for row in rows if row["generations"] == [2]]
    with Crowd(site) as crowd:
        crowd.more()
        os.kill(pid, signal.SIGKILL)
        crowd.more()
        site.admin.wait_ready("scale", 2, 20)
        before = crowd.seen[2]
        ServingSite.wait(lambda: crowd.seen[2] > before + 20 or crowd.wrong, 20, "the canary answers again")
        split(site, bundles, 0)
        crowd.more()
    assert crowd.wrong == []
