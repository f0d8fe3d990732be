"""What a moved alias means: asked once, asked again only when it moves again, and drift otherwise."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.app.alias_moves import Seen, drift, look


def test_a_moved_alias_is_one_request_until_it_moves_again() -> None:
    first = look(Seen(), {"digits": {"ascend": "3"}}, "ascend")
    assert (first.moves, first.settled, first.moved) == (1, False, {"digits": "3"})
    assert look(first, {"digits": {"ascend": "3"}}, "ascend") == first
    settled = replace(first, settled=True)
    assert look(settled, {"digits": {"ascend": "3", "live": "1"}}, "ascend").settled
    back = look(look(settled, {"digits": {"ascend": "4"}}, "ascend"), {"digits": {"ascend": "3"}}, "ascend")
    assert not back.settled
    assert back.request("e", "ascend") != first.request("e", "ascend"), "the same version, but another move"
    assert first.request("e", "ascend") == look(Seen(), {"digits": {"ascend": "3"}}, "ascend").request("e", "ascend")


def test_only_the_models_whose_alias_moved_are_asked_for() -> None:
    seen = replace(look(Seen(), {"d": {"a": "1"}, "d.onnx": {"a": "7"}}, "a"), settled=True)
    assert look(seen, {"d": {"a": "2"}, "d.onnx": {"a": "7"}}, "a").moved == {"d": "2"}


def test_an_alias_that_is_taken_away_asks_for_nothing() -> None:
    seen = replace(look(Seen(), {"d": {"a": "1"}}, "a"), settled=True)
    gone = look(seen, {"d": {}}, "a")
    assert (gone.settled, gone.at) == (True, {})
    assert not look(gone, {"d": {"a": "1"}}, "a").settled


def test_a_refusal_is_forgotten_when_it_moves() -> None:
    refused = replace(look(Seen(), {"d": {"a": "1"}}, "a"), settled=True, refused="no")
    assert look(refused, {"d": {"a": "1"}}, "a").refused == "no"
    assert look(refused, {"d": {"a": "2"}}, "a").refused == ""


def test_what_is_kept_is_what_was_seen() -> None:
    seen = look(Seen(others={"d@x": "1"}), {"d": {"a": "1"}}, "a")
    assert Seen.from_text(seen.to_text()) == seen
    assert Seen.from_text(None) == Seen()


def test_our_alias_moved_by_hand_is_drift() -> None:
    placed = {"d@live": "1", "d@previous": "2"}
    _, found = drift(Seen(), {"d": {"live": "9"}}, placed, "")
    assert found == [
        "d@live is at version 9, the ledger says version 1; nothing follows it",
        "d@previous is gone, the ledger says version 2; nothing follows it",
    ]


def test_another_alias_that_moves_is_drift_and_the_followed_one_is_not() -> None:
    first, found = drift(Seen(), {"d": {"ascend": "1", "candidate": "1"}}, {}, "")
    assert found == [], "nobody knows where it was before"
    _, found = drift(first, {"d": {"ascend": "2", "candidate": "2"}}, {}, "")
    assert found == ["d@ascend moved from version 1 to 2; the strategy has no promote_from for it"]
    assert drift(Seen(), {"d": {"ascend": "2"}}, {}, "ascend") == (Seen(), [])
