"""`${{ params.x }}` and `--set path=value`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import RecipeError
from orchestrator.recipe import load_recipe
from orchestrator.recipe.template import fill
from orchestrator.recipe.yaml_text import Document, parse_bytes

RECIPE = """\
recipe: 1
name: own
params: {epochs: 8, lr: 0.5, tag: "1.10", on_gpu: true, nothing: null}
data: {my.set: {uri: "file:x"}}
steps:
  - name: first
    command: [echo, "v${{ params.tag }}-${{params.epochs}}"]
    params: {epochs: "${{ params.epochs }}", list: [1, "${{ params.lr }}"], raw: "$${{ params.x }} ${{ params.on_gpu }}"}
    timeout: ${{ params.epochs }}m
  - {name: second, command: [echo], needs: [first], params: {x: "${{ params.nothing }}"}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


def message(path: Path, *set_: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, set_=set_)
    return str(caught.value).replace(f"{path}:", "")


def test_types_are_kept_where_a_parameter_is_the_whole_value(path: Path) -> None:
    first, second = load_recipe(path).recipe.steps
    assert first.params == {"epochs": 8, "list": (1, 0.5), "raw": "${{ params.x }} true"}
    assert first.command == ("echo", "v1.10-8")
    assert first.timeout == 480.0
    assert second.params == {"x": None}


def document(value: object, text: str) -> Document:
    return Document("t", "", "", {"params": {"x": value}, "a": text}, {})  # pyright: ignore[reportArgumentType]


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(scalars)
def test_a_whole_value_keeps_its_type(value: object) -> None:
    filled = fill(document(value, "${{ params.x }}"))
    found = filled.document.value["a"]
    assert found == value
    assert type(found) is type(value)
    assert filled.notes == {("a",): "from params.x"}


@given(scalars, st.text(alphabet="ab {}$ "), st.text(alphabet="ab {}$ "))
def test_inside_text_it_is_text(value: object, before: str, after: str) -> None:
    before, after = "<" + before.replace("${{", ""), after.replace("${{", "") + ">"
    if before.endswith("$"):
        before += "."
    found = fill(document(value, before + "${{params.x}}" + after)).document.value["a"]
    assert isinstance(found, str)
    assert found.startswith(before)
    assert found.endswith(after)


def test_inserted_text_is_not_read_again() -> None:
    filled = fill(document("${{ params.y }}", "1 ${{ params.x }}"))
    assert filled.document.value["a"] == "1 ${{ params.y }}"


def test_nothing_is_evaluated() -> None:
    for inside in ("''.__class__", "params.x.__class__", "params['x']", "params.x + 1", "env.HOME", "", "params."):
        filled = fill(document(1, "${{ %s }}" % inside))  # noqa: UP031
        assert len(filled.problems) == 1
        assert filled.document.value["a"] == "${{ %s }}" % inside  # noqa: UP031


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('a: "x ${{ params.y }}"', "1:7"),
        ('b: 1\na: "${{ params.x }} ${{ params.y }} ${{ params.y }}"', "2:21"),
        ("a: |\n  one\n  two ${{ params.y }}\n", "3:7"),
        ("a:\n  - {b: [1, '${{ params.y }}']}", "2:14"),
    ],
)
def test_a_problem_points_at_the_characters(text: str, place: str) -> None:
    problems = fill(parse_bytes(f"{text}\nparams: {{x: 1}}".encode(), "t", RecipeError)).problems
    assert problems[0].place == f"t:{place}"
    assert problems[0].message == "there is no parameter `y` (known: x)"


def test_positions_stay_after_filling_in(path: Path) -> None:
    loaded = load_recipe(path)
    assert loaded.position(("steps", 0, "params", "epochs")) == f"{path}:8:22"
    assert loaded.position(("steps", 1)) == f"{path}:10:5"


def test_a_wrong_parameter_is_named_where_it_is_used(path: Path) -> None:
    path.write_text(RECIPE.replace("${{ params.epochs }}m", "${{ params.tag }}"))
    assert message(path) == ("9:14: steps.0.timeout: not a duration: '1.10' (write 90s, 5m or 1h30m) (from params.tag)")


def test_set_changes_parameters_and_fields(path: Path) -> None:
    loaded = load_recipe(
        path, set_=["params.epochs=3", "params.lr=1", "name=other", "steps.second.needs=[]", "steps.0.timeout=5s"]
    )
    recipe = loaded.recipe
    assert (recipe.name, recipe.params["epochs"], recipe.params["lr"]) == ("other", 3, 1)
    assert recipe.steps[0].params["epochs"] == 3
    assert recipe.steps[0].timeout == 5.0
    assert recipe.steps[1].needs == ()
    assert loaded.position(("params", "epochs")) == "--set params.epochs=3"
    assert loaded.position(("params", "lr")) == "--set params.lr=1"
    assert loaded.position(("params", "tag")) == f"{path}:3:35"
    assert loaded.text == RECIPE


def test_a_text_parameter_stays_text(path: Path) -> None:
    for given_text in ("1.20", "no", "true", "null", "007"):
        assert load_recipe(path, set_=[f"params.tag={given_text}"]).recipe.params["tag"] == given_text
    assert load_recipe(path, set_=['params.tag="a b"']).recipe.params["tag"] == "a b"


def test_the_last_override_wins_and_names_may_hold_dots(path: Path) -> None:
    loaded = load_recipe(
        path, set_=["params.epochs=3", "params.epochs=4", "data.my.set.uri=file:y", "data.my.set.uri=file:z"]
    )
    assert loaded.recipe.params["epochs"] == 4
    assert loaded.recipe.data["my.set"].uri == "file:z"


def test_set_makes_sections_that_the_schema_knows(path: Path) -> None:
    (path.parent / "t.py").write_text("def main(run): ...\n")
    path.write_text(
        "recipe: 1\nname: t\ntrain: {entrypoint: t:main}\n"
        "model: {factory: t:main, inputs: {x: {dtype: int8, shape: [2]}}, outputs: {y: {dtype: int8, shape: [2]}}}\n"
    )
    assert load_recipe(path, set_=["train.resources.gpu=2"]).recipe.train.resources.gpu == 2  # pyright: ignore
    assert message(path, "train.resources.gpus=2") == (
        "--set train.resources.gpus=2: train.resources.gpus: unknown field (did you mean `gpu`?)"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "params.epoch=3",
            "the recipe declares no parameter `epoch` (did you mean `epochs`?); give it a value in the file first",
        ),
        (
            "steps.first.params.epoch=3",
            "the recipe declares no parameter `epoch` (did you mean `epochs`?); give it a value in the file first",
        ),
        ("params.epochs=many", "`params.epochs` is a number in the recipe (8), not text"),
        ("params.on_gpu=1", "`params.on_gpu` is true or false in the recipe (true), not a number"),
        ("steps.frist.timeout=3", "`steps` has no item `frist` (did you mean `first`?)"),
        ("steps.7.timeout=3", "`steps` has no item `7` (known: first, second)"),
        ("name.x=3", "`name` is a single value, so it has no `x`"),
        ("nmae=x", "nmae: unknown field (did you mean `name`?)"),
        ("name", "write it as path=value, e.g. params.epochs=3"),
        ("a..b=1", "write it as path=value, e.g. params.epochs=3"),
        ("name=*x", "aliases (*x) are not allowed; write the value out"),
        ("name=\udcff", "the text is not UTF-8"),
        ("name=1.10", "name: must be text, not 1.1"),
    ],
)
def test_an_override_that_cannot_be(path: Path, text: str, expected: str) -> None:
    shown = text.encode("utf-8", "backslashreplace").decode()
    assert message(path, text) == f"--set {shown}: {expected}"
