"""The routing table: what is refused, how it is fenced, and how exactly it splits."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import Conflict, ServingError
from orchestrator.serving.placing import chosen
from orchestrator.serving.split import is_in, user_of
from orchestrator.serving.table import EMPTY, HeaderRoute, RoutingTable, Split, Splitter

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
THIRD = "sha256:" + "c" * 64


def row(**changes: Any) -> dict[str, Any]:
    return {
        "generation": 1,
        "bundle": DIGEST,
        "path": "/bundles/a",
        "runtime": "onnx-cpu",
        "weight": 100,
        "state": "live",
        "device": "cpu (rehearsal)",
        "variant": "",
        "variant_path": "",
        **changes,
    }


def table(version: int = 1, *rows: dict[str, Any]) -> dict[str, Any]:
    return {"version": version, "endpoints": {"digits": {"pool": "edge", "generations": list(rows) or [row()]}}}


def test_round_trip() -> None:
    data = table(7, row(weight=90), row(generation=2, bundle=OTHER, path="/b", weight=10, state="staged"))
    parsed = RoutingTable.from_json(data)
    assert parsed.to_json() == data
    assert RoutingTable.from_json(parsed.to_json()) == parsed
    assert RoutingTable.from_json(EMPTY.to_json()) == EMPTY


def test_a_table_written_before_variants_is_read() -> None:
    old = {key: value for key, value in row().items() if not key.startswith("variant")}
    assert RoutingTable.from_json(table(7, old)) == RoutingTable.from_json(table(7, row()))


def test_two_variants_of_one_bundle_are_two_placements() -> None:
    variants = [("", ""), (OTHER, "/variants/b")]
    rows = [
        row(generation=n, weight=0, state="staged", variant=digest, variant_path=path)
        for n, (digest, path) in enumerate(variants, 1)
    ]
    placed = list(RoutingTable.from_json(table(1, *rows)).placements("edge"))
    assert [g.build for _, g in placed] == [(DIGEST, ""), (DIGEST, OTHER)]


def broken() -> list[tuple[str, Any]]:
    base = table()
    cases: list[tuple[str, Any]] = [("no object", []), ("none", None), ("missing", {"version": 1})]
    cases.append(("extra key", {**base, "x": 1}))
    cases.extend((f"version {v!r}", {**base, "version": v}) for v in (-1, 1.5, "1", True, None, 2**63))
    names = ("Digits", "", "a/b", "a\r\nb", "x" * 65)
    cases.extend((f"name {n!r}", {"version": 1, "endpoints": {n: base["endpoints"]["digits"]}}) for n in names)
    changes = [
        {"generation": 0},
        {"generation": "1"},
        {"bundle": "sha256:zz"},
        {"bundle": 1},
        {"path": "rel"},
        {"path": ""},
        {"variant": OTHER},
        {"variant": OTHER, "variant_path": "rel"},
        {"variant": "sha256:zz", "variant_path": "/v"},
        {"variant": 1, "variant_path": "/v"},
        {"variant_path": "/v"},
        {"runtime": ""},
        {"weight": 101},
        {"weight": -1},
        {"weight": 50},
        {"weight": 99.5},
        {"state": "dead"},
        {"state": "draining"},
        {"device": "a\nb"},
        {"surplus": 1},
    ]
    cases.extend((str(change), table(1, row(**change))) for change in changes)
    cases.append(("twice", table(1, row(weight=50), row(weight=50))))
    cases.append(("bundle with two paths", table(1, row(weight=50), row(generation=2, weight=50, path="/other"))))
    return cases


@pytest.mark.parametrize("data", [case[1] for case in broken()], ids=[case[0] for case in broken()])
def test_bad_tables_are_refused(data: Any) -> None:
    with pytest.raises(ServingError):
        RoutingTable.from_json(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(st.sampled_from(["version", "endpoints", "digits", "pool", "generations", "weight"]), x)
        ),
        max_leaves=15,
    )
)
def test_anything_is_a_table_or_a_typed_error(data: Any) -> None:
    before = copy.deepcopy(data)
    with contextlib.suppress(ServingError):
        RoutingTable.from_json(data)
    assert data == before


def test_fencing() -> None:
    five = RoutingTable.from_json(table(5))
    assert five.replace(RoutingTable.from_json(table(5))) == five
    assert five.replace(RoutingTable.from_json(table(9))).version == 9
    with pytest.raises(Conflict, match="older than 5"):
        five.replace(RoutingTable.from_json(table(4)))
    with pytest.raises(Conflict, match="another content"):
        five.replace(RoutingTable.from_json(table(5, row(state="staged"))))


def test_placements_are_one_per_bundle_of_the_pool() -> None:
    again = table(1, row(weight=0), row(generation=2, bundle=OTHER, path="/b", weight=0), row(generation=3))
    parsed = RoutingTable.from_json(again)
    assert [(e.name, g.bundle) for e, g in parsed.placements("edge")] == [("digits", DIGEST), ("digits", OTHER)]
    assert list(parsed.placements("core")) == []


@given(st.integers(0, 100), st.text(max_size=8), st.integers(1, 5))
def test_the_split_is_exact_in_every_block(weight: int, seed: str, blocks: int) -> None:
    splitter = Splitter({1: 100 - weight, 2: weight}, seed)
    for _ in range(blocks):
        found = Counter(splitter.next() for _ in range(100))
        assert found[2] == weight
        assert found[1] == 100 - weight


def test_the_split_is_mixed_repeatable_and_may_be_empty() -> None:
    one, two = Splitter({1: 50, 2: 50}, "s"), Splitter({1: 50, 2: 50}, "s")
    order = [one.next() for _ in range(200)]
    assert order == [two.next() for _ in range(200)]
    assert order[:100] != order[100:]
    assert len({tuple(order[i : i + 10]) for i in range(0, 100, 10)}) > 1
    assert Splitter({}, "s").next() is None


def _mixed() -> dict[str, Any]:
    builds = [
        {"soc": "Ascend310P3", "runtime": "om", "device": "Ascend310P3", "variant": OTHER, "variant_path": "/v/b"},
        {"soc": "Ascend910B4", "runtime": "om", "device": "Ascend910B4", "variant": THIRD, "variant_path": "/v/c"},
    ]
    first = {name: builds[0][name] for name in ("runtime", "device", "variant", "variant_path")}
    return {
        "version": 1,
        "endpoints": {"digits": {"pool": "edge", "generations": [row(**first, builds=builds)], "slots": 2}},
    }


def test_a_generation_with_a_build_for_each_soc() -> None:
    table = RoutingTable.from_json(_mixed())
    assert RoutingTable.from_json(table.to_json()) == table
    (found,) = table.endpoints["digits"].generations
    assert table.endpoints["digits"].slots == 2
    assert [(face.device, face.variant) for face in found.faces] == [
        ("Ascend310P3", OTHER),
        ("Ascend910B4", THIRD),
    ]
    assert found.face((found.bundle, THIRD), "Ascend310P3") is None, "a variant runs only on its SoC"
    assert [g.variant for _, g in table.placements("edge", "Ascend910B4")] == [THIRD]
    assert list(table.placements("edge", "Ascend310B4")) == []


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda e: e.update(slots=0), "must be an integer from 1 to 1024"),
        (lambda e: e["generations"][0]["builds"][1].update(soc="Ascend310P3"), "a SoC has two builds"),
        (lambda e: e["generations"][0]["builds"].reverse(), "the first of the builds must be the generation's own"),
        (lambda e: e["generations"][0]["builds"][1].pop("device"), "has keys"),
        (lambda e: e["generations"][0].update(builds={}), "builds must be a list"),
    ],
)
def test_builds_and_slots_against_the_rules(spoil: Any, says: str) -> None:
    table = _mixed()
    spoil(table["endpoints"]["digits"])
    with pytest.raises(ServingError, match=says):
        RoutingTable.from_json(table)


@given(st.sets(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 20))
def test_fewer_slots_are_a_part_of_more_and_a_lost_slot_moves_only_its_own(slots: set[int], count: int) -> None:
    names = [f"host/{slot}" for slot in slots]
    some = set(chosen("digits", count, names))
    assert len(some) == min(count, len(names))
    assert some <= set(chosen("digits", count + 1, names))
    assert set(chosen("digits", None, names)) == set(names)
    lost = names[0]
    rest = set(chosen("digits", count, names[1:]))
    assert some - {lost} <= rest


def _split(**changes: Any) -> dict[str, Any]:
    rows = [row(weight=90), row(generation=2, bundle=OTHER, path="/b", weight=10, state="staged")]
    body = table(7, *rows, row(generation=3, bundle=THIRD, path="/c", weight=0, state="warm"))
    headers = [{"name": "x-team", "how": "prefix", "value": "qa-"}, {"name": "x-id", "how": "regex", "value": "[0-9]+"}]
    full = {"stable": 1, "canary": 2, "mirror": 5, "headers": headers, "sticky": "x-user", "rtol": 0.01, "atol": 0.0}
    body["endpoints"]["digits"]["split"] = full | changes
    return body


def test_a_split_is_read_written_and_optional() -> None:
    parsed = RoutingTable.from_json(_split())
    assert parsed.to_json() == _split()
    routes = (HeaderRoute("x-team", "prefix", "qa-"), HeaderRoute("x-id", "regex", "[0-9]+"))
    assert parsed.endpoints["digits"].split == Split(1, 2, 5, routes, "x-user", 0.01, 0.0)
    short = _split()
    short["endpoints"]["digits"]["split"] = {"stable": 1, "canary": 2}
    assert RoutingTable.from_json(short).endpoints["digits"].split == Split(1, 2)
    assert RoutingTable.from_json(table()).endpoints["digits"].split is None
    assert "split" not in RoutingTable.from_json(table()).endpoints["digits"].to_json()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"canary": 1}, "both generation 1"),
        ({"canary": 4}, "generation 4 is not in the table"),
        ({"canary": 3}, "generation 2 has weight 10 and is neither"),
        ({"mirror": 101}, "from 0 to 100"),
        ({"sticky": "X-User"}, "no name of a header"),
        ({"rtol": float("nan")}, "must be a number"),
        ({"atol": -1}, "must be from 0"),
        ({"headers": {}}, "must be a list"),
        ({"headers": [{"name": "a", "how": "suffix", "value": "b"}]}, "must be one of exact, prefix, regex"),
        ({"headers": [{"name": "a", "how": "regex", "value": "(a+)+"}]}, "repeats a group"),
        ({"headers": [{"name": "a b", "how": "exact", "value": "b"}]}, "no name of a header"),
        ({"more": 1}, "has keys"),
    ],
)
def test_a_split_against_the_rules(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ServingError, match=says) as caught:
        RoutingTable.from_json(_split(**changes))
    assert (caught.value.place or "").startswith("endpoints.digits.split")


def test_a_warm_generation_has_no_weight() -> None:
    with pytest.raises(ServingError, match="have weight 0"):
        RoutingTable.from_json(table(1, row(state="warm")))


@pytest.mark.parametrize(
    ("route", "yes", "no"),
    [
        (HeaderRoute("n", "exact", "v1"), "v1", "v10"),
        (HeaderRoute("n", "prefix", "v1"), "v10", "xv1"),
        (HeaderRoute("n", "regex", "v[0-9]"), "v7", "v77"),
        (HeaderRoute("n", "regex", "v.*"), "v" * 256, "v" * 257),
    ],
)
def test_what_a_header_route_matches(route: HeaderRoute, yes: str, no: str) -> None:
    assert route.matcher()(yes)
    assert not route.matcher()(no)


@given(st.text(max_size=20), st.text(max_size=40), st.integers(0, 100), st.integers(0, 100))
def test_a_client_of_the_canary_stays_one_while_its_weight_grows(endpoint: str, key: str, one: int, two: int) -> None:
    user = user_of(endpoint, 7, key)
    assert 0 <= user < 1 << 64
    assert is_in(user, min(one, two)) <= is_in(user, max(one, two))
    assert not is_in(user, 0)
    assert is_in(user, 100)


@given(st.text(alphabet="abc", max_size=5), st.integers(1, 99))
def test_the_canary_gets_its_share_of_clients(prefix: str, weight: int) -> None:
    found = sum(is_in(user_of("digits", 7, f"{prefix}{i}"), weight) for i in range(2000))
    spread = 5 * (2000 * weight * (100 - weight)) ** 0.5 / 100
    assert abs(found - 20 * weight) <= spread + 1


def test_the_next_canary_gets_other_clients() -> None:
    first, second = ({i for i in range(1000) if is_in(user_of("digits", canary, str(i)), 10)} for canary in (7, 8))
    assert 50 < len(first) < 150
    assert len(first & second) < 30, "one in ten of them, as of all others"
