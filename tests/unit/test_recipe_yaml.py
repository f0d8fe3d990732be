"""The YAML entry point: what words mean, where values stand, and that it never breaks."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.core.errors import RecipeError
from orchestrator.recipe.load import load_recipe
from orchestrator.recipe.scalars import plain_scalar
from orchestrator.recipe.yaml_text import Document, parse_bytes, parse_value

FIXTURES = Path(__file__).parents[1] / "fixtures" / "broken_recipes"


def parse(text: str) -> Document:
    return parse_bytes(text.encode(), "t.yaml", RecipeError)


WORDS = [
    ("true", True), ("True", True), ("FALSE", False), ("null", None), ("~", None), ("", None),
    ("1", 1), ("-7", -7), ("+3", 3), ("0", 0), ("0o17", 15), ("0xfF", 255),
    ("1.10", 1.1), (".5", 0.5), ("1.", 1.0), ("1e3", 1000.0), ("-2.5E-3", -0.0025), ("0.1", 0.1),
    ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("tRUE", "tRUE"),
    ("010", "010"), ("1:30", "1:30"), ("1_000", "1_000"), ("0b101", "0b101"), ("190:20:30", "190:20:30"),
    ("2026-01-02", "2026-01-02"), ("1.2.3", "1.2.3"), ("1e", "1e"), (".", "."), ("-", "-"), ("+", "+"), ("0x", "0x"),
    ("09", "09"), ("00.5", "00.5"), ("NaN", "NaN"), ("inf", "inf"), ("<<", "<<"), ("=", "="), ("１", "１"),
]  # fmt: skip


@pytest.mark.parametrize(("word", "value"), WORDS, ids=[word or "empty" for word, _ in WORDS])
def test_the_core_schema(word: str, value: object) -> None:
    found = plain_scalar(word)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("word", [".inf", "-.INF", ".nan", "1e999", "9223372036854775808", "9" * 5000, "0x" + "f" * 17])
def test_numbers_that_nothing_can_hold_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"finite|fit|long"):
        plain_scalar(word)


def test_quoted_words_are_text() -> None:
    document = parse("""{a: "1", b: 'true', c: "~", d: |-\n  5\n}""".replace("|-\n  5\n", '"5"'))
    assert document.value == {"a": "1", "b": "true", "c": "~", "d": "5"}
    assert parse("a: |\n  12\n").value == {"a": "12\n"}


def test_places_of_values_and_keys() -> None:
    document = parse("a: 1\nb:\n  - x\n  - {c: [7, é, 9]}\nd:\n  e: 2\nf:\n")
    places = {loc: document.place(loc)[2] for loc in document.spans}
    assert places[("a",)] == "t.yaml:1:4"
    assert places[("b",)] == "t.yaml:2:1"  # a block collection: its key
    assert places[("b", 1, "c")] == "t.yaml:4:9"
    assert places[("b", 1, "c", 2)] == "t.yaml:4:16"
    assert places[("d", "e")] == "t.yaml:6:6"
    assert places[("f",)] == "t.yaml:7:1"  # an empty value: its key
    assert document.place(("b", 1, "c"), key=True)[2] == "t.yaml:4:6"
    assert document.place(("b", 1, "zz"))[2] == "t.yaml:4:5"  # absent: the parent
    assert document.place(())[2] == "t.yaml:1:1"


def test_sequences_cannot_be_changed() -> None:
    assert parse("a: [1, [2]]").value == {"a": (1, (2,))}


def test_all_duplicates_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse("a: 1\na: 2\nb: {c: 1, c: 2}\n")
    assert [row["place"] for row in caught.value.details["problems"]] == ["t.yaml:2:1", "t.yaml:3:11"]  # pyright: ignore


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs"))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz_é. 1", max_size=8), inner, max_size=4),
    max_leaves=20,
)


def frozen(value: object) -> object:
    if isinstance(value, list):
        return tuple(frozen(item) for item in value)
    return {key: frozen(item) for key, item in value.items()} if isinstance(value, dict) else value


@given(st.dictionaries(st.text("abcxyz", min_size=1), json_values, max_size=4))
@settings(max_examples=150, deadline=None)
def test_json_means_the_same_here(value: dict[str, object]) -> None:
    document = parse(json.dumps(value, ensure_ascii=False))
    assert document.value == frozen(value)


@given(st.dictionaries(st.text("abcxyz", min_size=1), json_values, max_size=4), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_positions_round_trip(value: dict[str, object], indent: int) -> None:
    """What stands at a value's place, read alone, is the value."""
    text = json.dumps(value, ensure_ascii=False, indent=indent or None)
    document = parse(text)
    # The lines of YAML: NEL, LS and PS end one too, but our JSON text holds them only inside quotes, if at all.
    lines = text.split("\n")

    def walk(node: object, loc: tuple[str | int, ...]) -> None:
        span = document.spans[loc]
        assert lines[span.line - 1][span.column - 1 :].startswith(text[span.start : span.end].split("\n")[0])
        if isinstance(node, dict):
            for key, item in node.items():
                walk(item, (*loc, key))
        elif isinstance(node, tuple):
            for index, item in enumerate(node):
                walk(item, (*loc, index))
        else:
            read = parse_value(document.raw(loc), "alone", RecipeError)
            assert read == node or (isinstance(node, float) and math.isclose(node, read))  # pyright: ignore

    walk(document.value, ())


yaml_like = st.text(
    st.sampled_from("abn0129.:-?[]{},&*!|>'\"%@`#~<= \t\n\r\\$/é\ufeff\u2028\x85\x00\x07\U0001f600") | st.characters(),
    max_size=80,
)


def error_of(call: Callable[[], object]) -> RecipeError | None:
    """Return the RecipeError that a call raises, or None; every other exception fails the test."""
    try:
        call()
    except RecipeError as error:
        return error
    return None


@given(yaml_like)
@settings(max_examples=400, deadline=None)
def test_any_text_is_a_document_or_a_recipe_error(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    error = error_of(lambda: parse_bytes(data, "t.yaml", RecipeError))
    if error is None:
        json.dumps(parse_bytes(data, "t.yaml", RecipeError).value, ensure_ascii=False).encode()
    else:
        assert error.exit_code == 2
        assert error.place.startswith("t.yaml:")


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_document_or_a_recipe_error(data: bytes) -> None:
    error = error_of(lambda: parse_bytes(data, "t.yaml", RecipeError))
    assert error is None or error.place.startswith("t.yaml:")


GOOD = (FIXTURES / "zero_dim.yaml").read_text().replace("batch, 0", "batch, 1")


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_recipe_loads_or_is_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(GOOD)))
    stop = data.draw(st.integers(start, min(len(GOOD), start + 12)))
    piece = data.draw(
        yaml_like | st.sampled_from(["null", "[]", "{}", "${{ params.epochs }}", "${{", "-1", "1e9", "..", "/"])
    )
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    for module in ("model.py", "train.py"):
        shutil.copy(FIXTURES / module, path.parent)
    path.write_bytes((GOOD[:start] + piece + GOOD[stop:]).encode("utf-8", "surrogatepass"))
    error = error_of(lambda: load_recipe(path))
    if error is not None:
        assert error.exit_code == 2
        json.dumps(error.to_json()).encode()
        str(error).encode()


@example("[key]", "")
@example("params.[key]", "1")
@given(st.text() | st.sampled_from(["params", "train.params", "targets.npu"]), yaml_like)
@settings(max_examples=200, deadline=None)
def test_any_override_loads_or_is_a_recipe_error(path: str, value: str) -> None:
    recipe = FIXTURES / "zero_dim.yaml"
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, set_=[f"{path}={value}"])
    str(caught.value).encode()
