"""What the leading router says for all of them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from orchestrator.serving.router.peers import Peers, merge_events, merge_evidence, merge_metrics, merge_status


def _status(number: int, ready: int, in_flight: int, endpoint: str = "a") -> dict[str, Any]:
    row = {"endpoint": endpoint, "generation": 1, "ready": ready, "queued": 1, "in_flight": in_flight}
    replica = {"replica": "edge-0.a", "in_flight": in_flight}
    own = {"pid": number + 100, "boot": f"b{number}", "version": 3, "agents": [f"of {number}"]}
    return {**own, "generations": [row], "replicas": [replica] if ready else []}


def test_a_generation_is_as_ready_as_where_it_is_least_so() -> None:
    found = merge_status(_status(0, 2, 5), {1: orjson.dumps(_status(1, 1, 7))})
    assert found["generations"] == [{"endpoint": "a", "generation": 1, "ready": 1, "queued": 2, "in_flight": 12}]
    assert found["replicas"] == [{"replica": "edge-0.a", "in_flight": 12, "routers": [0, 1]}]
    assert [(row["router"], row["pid"]) for row in found["routers"]] == [(0, 100), (1, 101)]
    assert found["agents"] == ["of 0"]


def test_a_router_that_lacks_the_generation_is_not_ready() -> None:
    found = merge_status(_status(0, 2, 0), {2: orjson.dumps(_status(2, 0, 0, "other"))})
    assert found["generations"][0]["ready"] == 0
    assert [row["router"] for row in found["routers"]] == [0, 2]


def test_events_go_on_where_each_router_stood() -> None:
    peers = Peers(["one", "two"])
    assert peers.cursors("0") == [0, 0, 0]
    assert peers.cursors("5.6.7") == [5, 6, 7]
    with pytest.raises(ValueError, match="invalid literal"):
        peers.cursors("5.x.7")
    own = {"boot": "a", "events": [{"t": 2.0}], "last": 9, "lost": 1}
    other = {"boot": "c", "events": [{"t": 1.0}, {"t": 3.0}], "last": 4, "lost": 0}
    found = merge_events(own, {2: orjson.dumps(other)}, [5, 6, 7])
    assert [(event["t"], event["router"]) for event in found["events"]] == [(1.0, 2), (2.0, 0), (3.0, 2)]
    assert (found["last"], found["lost"]) == ("9.6.4", 1), "a router that is away keeps its place"


def test_evidence_is_never_summed() -> None:
    rows: list[dict[str, Any]] = [{"router": number, "boot": f"b{number}", "arms": []} for number in range(3)]
    others = {number: orjson.dumps({"routers": [rows[number]]}) for number in (1, 2)}
    told = merge_evidence(rows[0], others, {})
    assert list(told.values()) == rows
    assert list(merge_evidence(rows[0], {2: others[2]}, {}).values()) == [rows[0], rows[2]]
    late = merge_evidence(rows[0], {2: others[2]}, told)
    assert list(late.values()) == [rows[0], {**rows[1], "stale": True}, rows[2]], "it has not begun anew"
    assert list(merge_evidence(rows[0], others, late).values()) == rows


def test_a_family_of_metrics_comes_once() -> None:
    own = b'# HELP a A.\n# TYPE a counter\na{router="0"} 1\n# TYPE b gauge\nb{router="0"} 2\n'
    other = b'# HELP a A.\n# TYPE a counter\na{router="1"} 3\n# TYPE c gauge\nc{router="1"} 4\n'
    assert merge_metrics(own, {1: other}).decode().splitlines() == [
        "# HELP a A.",
        "# TYPE a counter",
        'a{router="0"} 1',
        'a{router="1"} 3',
        "# TYPE b gauge",
        'b{router="0"} 2',
        "# TYPE c gauge",
        'c{router="1"} 4',
    ]
