"""Every broken recipe gives one clear message at one place. The first line of each file says which."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import PlanError, RecipeError
from orchestrator.environment import check_against, load_environment
from orchestrator.recipe import load_recipe, render_problems

FOLDER = Path(__file__).parents[1] / "fixtures" / "broken_recipes"
FILES = sorted(FOLDER.glob("*.yaml"))
GOOD = """\
recipe: 1
name: digits
params: {epochs: 8}
steps:
  - {name: prepare, command: echo ready}
rollout: {endpoint: digits, pool: edge}
model: {factory: "model:build", inputs: {x: {dtype: float32, shape: [n, 3]}}, outputs: {y: {dtype: float32, shape: [n]}}}
train: {entrypoint: "train:main"}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text("def build(): ...\n")
    (tmp_path / "train.py").write_text("def main(run): ...\n")
    (tmp_path / "recipe.yaml").write_text(GOOD)
    return tmp_path


def the_error(path: Path, **options: object) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, **options)  # pyright: ignore[reportArgumentType]
    return caught.value


def test_there_are_many() -> None:
    assert len(FILES) >= 90


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_one_clear_message(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    expected = path.read_text().splitlines()[0].removeprefix("# expect: ")
    error = the_error(Path(path.name))
    assert render_problems(error) == f"{path.name}:{expected}"
    assert str(error) == f"{path.name}:{expected}"
    assert error.exit_code == 2
    problems = error.details["problems"]
    assert isinstance(problems, list)
    assert len(problems) == 1
    assert problems[0]["place"] == error.place


BYTES = {
    "empty": (b"", "1:1", "the document is empty"),
    "bad_utf8": (b"recipe: 1\nname: caf\xe9\n", "2:10", "the file is not UTF-8: byte 0xe9"),
    "utf16": ("recipe: 1\n".encode("utf-16"), "1:1", "the file is not UTF-8: byte 0xff"),
    "control": (b"recipe: 1\nname: \x07\n", "2:7", "the character U+0007 is not allowed"),
    "null_byte": (b"recipe: 1\n\0", "2:1", "the character U+0000 is not allowed"),
    "too_large": (b"recipe: 1\n#" + b"x" * (1 << 20), "1:1", "the file is larger than 1 MiB"),
    "too_many_values": (b"recipe: 1\nfiles: [" + b"a," * 30_000 + b"]\n", "2:40003", "more than 20000 values"),
    "deep_flow": (b"[" * 100_000, "1:51", "nested deeper than 50"),
    "deep_block": (b"".join(b" " * i + b"a:\n" for i in range(60)), "51:51", "nested deeper than 50"),
    "impossible_escape": (b'name: "\\UFFFFFFFF"\n', "1:10", "not YAML"),
    "surrogate_escape": (b'name: "\\ud800"\n', "1:7", "half of a surrogate pair"),
    "only_dashes": (b"---\n---\n", "2:1", "a second document"),
}


@pytest.mark.parametrize("case", BYTES)
def test_bytes_that_are_no_recipe(case: str, tmp_path: Path) -> None:
    data, place, message = BYTES[case]
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    error = the_error(path)
    assert error.place == f"{path}:{place}"
    assert error.message.startswith(message)
    assert "\n" not in str(error)


def test_a_path_that_cannot_be_read(tmp_path: Path) -> None:
    error = the_error(tmp_path / "absent.yaml")
    assert "no such file" in error.message
    assert "is a directory" in the_error(tmp_path).message
    assert "null byte" in the_error(Path("a\0b")).message
    assert error.exit_code == 2


def test_all_problems_of_a_file_in_the_order_of_the_file(folder: Path) -> None:
    text = GOOD.replace("command:", "comand:").replace("{epochs: 8}", "{epochs: [8]}").replace("float32", "float23")
    (folder / "recipe.yaml").write_text(text)
    error = the_error(folder / "recipe.yaml")
    lines = render_problems(error).replace(f"{folder}/recipe.yaml:", "").splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["3:18", "params.epochs"],
        ["5:21", "steps.0.comand"],
        [f"7:{text.splitlines()[6].index('float23') + 1}", "model.inputs.x.dtype"],
        [f"7:{text.splitlines()[6].rindex('float23') + 1}", "model.outputs.y.dtype"],
    ]
    assert error.message.endswith("(and 3 more problems)")


def test_unknown_fields_do_not_hide_what_does_not_fit_together(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(
        GOOD.replace("train:main", "train:mian").replace("endpoint: digits", "endpoint: d, pol: e")
    )
    text = render_problems(the_error(folder / "recipe.yaml"))
    assert "rollout.pol: unknown field (did you mean `pool`?)" in text
    assert "train.entrypoint: train.py does not define `mian` (did you mean `main`?)" in text


def test_unknown_pool(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD.replace("pool: edge", "pool: egde"))
    loaded = load_recipe(folder / "recipe.yaml")
    with pytest.raises(PlanError) as caught:
        check_against(loaded, load_environment())
    assert str(caught.value) == (
        f"{folder}/recipe.yaml:6:35: rollout.pool: the environment has no pool `egde` (did you mean `edge`?)"
    )
    assert caught.value.exit_code == 2


def test_targets_for_another_soc_than_the_pool(folder: Path) -> None:
    target = "targets: [{name: npu, format: om, soc: Ascend910B4}]\n"
    (folder / "recipe.yaml").write_text(GOOD + target)
    loaded = load_recipe(folder / "recipe.yaml")
    with pytest.raises(PlanError, match="pool `edge` has Ascend310P3, but the targets are made for Ascend910B4"):
        check_against(loaded, load_environment())
    check_against(load_recipe(folder / "recipe.yaml", set_=["targets.npu.soc=Ascend310P3"]), load_environment())


def test_a_byte_order_mark_is_no_mistake(folder: Path) -> None:
    (folder / "recipe.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("pool: edge", "pool: Edge").encode())
    assert the_error(folder / "recipe.yaml").place.endswith("recipe.yaml:6:35")


def test_windows_line_ends(folder: Path) -> None:
    (folder / "recipe.yaml").write_bytes(GOOD.replace("\n", "\r\n").replace("pool: edge", "pool: Edge").encode())
    assert the_error(folder / "recipe.yaml").place.endswith("recipe.yaml:6:35")


def test_a_secret_in_a_value_is_masked(folder: Path) -> None:
    secret = "https://me:hunter22@example.com/x?sig=abcdef123"
    (folder / "recipe.yaml").write_text(GOOD.replace("{epochs: 8}", f'{{epochs: ["{secret}"]}}'))
    for error in (
        the_error(folder / "recipe.yaml"),
        the_error(folder / "recipe.yaml", set_=["params.epochs=1", f"train.workers={secret}"]),
    ):
        assert "example.com" in str(error)
        assert "hunter22" not in str(error.to_json())
        assert "abcdef123" not in str(error.to_json())


def test_a_misspelt_section_is_not_also_nothing_to_do(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("recipe: 1\nname: digits\ntrian: {}\n")
    error = the_error(folder / "recipe.yaml")
    assert render_problems(error) == f"{folder}/recipe.yaml:3:1: trian: unknown field (did you mean `train`?)"
