"""`serve.json`: what the bundle step writes of a recipe's `serve:` block, and what the reader takes and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.stage_bundles import RECIPE, TEXT, stage_bundle

from orchestrator.bundle.golden import read_golden
from orchestrator.bundle.serve_golden import SERVE_GOLDEN, read_serve_golden
from orchestrator.bundle.unpack import open_unpacked
from orchestrator.core.errors import GateError, IntegrityError, UserCodeError
from orchestrator.serving.protocol.oip import LAST
from orchestrator.serving.protocol.tensors import TensorSpec
from orchestrator.serving.serve_settings import DEFAULTS, SERVE_JSON, read_serve_settings


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage_bundle(tmp_path_factory.mktemp("bundle"))[1]


def test_a_bundle_carries_its_settings_and_its_stages(bundle: Path) -> None:
    settings = read_serve_settings(bundle)
    assert (settings.preprocess, settings.postprocess) == ("text:numbers", "text:sums")
    assert settings.inputs == (TensorSpec("text", "BYTES", ("batch",)),)
    assert settings.outputs == (TensorSpec("total", "FP32", ("batch",)), TensorSpec("words", "BYTES", ("batch",)))
    assert (settings.max_queue_delay_ms, settings.share, settings.pinned) == (2.0, 2.5, False)
    assert (settings.max_batch, settings.priority) == (None, LAST)
    assert settings.stages == ("preprocess", "model", "postprocess")
    carried = {
        layer.path: layer.blob.digest for layer in open_unpacked(bundle).layers if layer.path.startswith("serve/")
    }
    assert set(carried) == {"serve/text.py", "serve/parts/words.py", "serve/names/english.txt"}, (
        "text_samples stays at home"
    )
    assert json.loads((bundle / SERVE_JSON).read_bytes())["files"] == carried


def test_the_stages_were_proved_on_what_clients_send(bundle: Path) -> None:
    golden = read_serve_golden(bundle / SERVE_GOLDEN)
    assert golden.count == 4
    assert golden.asked["text"].tolist()[1] == b"1 two 3 4"
    np.testing.assert_array_equal(golden.inputs["x"][1], [1, 2, 3, 4])
    np.testing.assert_array_equal(golden.outputs["y"][1], [2, 4, 6, 8])
    assert (golden.answers["total"][1], golden.answers["words"][1]) == (20, b"it is 20")
    assert read_golden(bundle / "golden.safetensors").inputs["x"].shape == (4, 4), "the model's own stay"


def test_the_settings_and_the_code_are_part_of_the_bundles_name(tmp_path: Path, bundle: Path) -> None:
    same = stage_bundle(tmp_path / "same")[0]
    assert same == f"sha256:{bundle.name}"
    other = stage_bundle(tmp_path / "other", recipe=RECIPE.replace("share: 2.5", "pinned: true"))
    assert other[0] != same
    assert read_serve_settings(other[1]).pinned
    assert stage_bundle(tmp_path / "code", files={"text.py": TEXT + "\n"})[0] != same


def test_without_the_block_nothing_is_written(tmp_path: Path) -> None:
    plain = RECIPE.partition("serve:")[0]
    folder = stage_bundle(tmp_path, recipe=plain)[1]
    assert not (folder / SERVE_JSON).exists()
    assert read_serve_settings(folder) == DEFAULTS
    assert DEFAULTS.stages == ("model",)


def test_postprocessing_alone_is_proved_on_the_models_own_samples(tmp_path: Path) -> None:
    head, tail = (
        RECIPE.split("serve:\n")[0],
        "serve: {postprocess: 'label:of', outputs: {label: {dtype: string, shape: [batch]}}}\n",
    )
    code = "import numpy as np\ndef of(given):\n    return {'label': np.array([str(row.argmax()) for row in given['y']], object)}\n"
    folder = stage_bundle(tmp_path, recipe=head + tail, files={"label.py": code})[1]
    settings, golden = read_serve_settings(folder), read_serve_golden(folder / SERVE_GOLDEN)
    assert (settings.stages, settings.inputs) == (("model", "postprocess"), None)
    own = read_golden(folder / "golden.safetensors")
    np.testing.assert_array_equal(golden.asked["x"], own.inputs["x"])
    assert golden.answers["label"].tolist() == [str(row.argmax()).encode() for row in own.outputs["y"]]


@pytest.mark.parametrize("change", ["absent", "cut", "other"])
def test_damaged_samples_of_stages_are_a_typed_error(tmp_path: Path, bundle: Path, change: str) -> None:
    data, path = (bundle / SERVE_GOLDEN).read_bytes(), tmp_path / SERVE_GOLDEN
    if change != "absent":
        path.write_bytes(data[:-3] if change == "cut" else data.replace(b"asked/", b"taken/"))
    with pytest.raises(IntegrityError, match="golden samples cannot be read"):
        read_serve_golden(path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("names/*.txt", "evil.pkl", "is a pickle"),
        ("names/*.txt", "hidden.txt", "is a pickle"),
        ("names/*.txt", "linked.txt", "outside the recipe's folder"),
        ("names/*.txt", "a/b/c/d.txt", "is not allowed"),
    ],
)
def test_what_must_not_travel_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    (tmp_path / "secret").write_text("s")
    home = tmp_path / "recipe"
    (home / "a/b/c").mkdir(parents=True)
    (home / "linked.txt").symlink_to(tmp_path / "secret")
    (home / "hidden.txt").write_bytes(b"\x80\x04\x95rest")
    recipe = RECIPE.replace(old, new)
    with pytest.raises(GateError, match=says):
        stage_bundle(tmp_path, recipe=recipe, files={"evil.pkl": "x", "a/b/c/d.txt": ""})


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('{"x": np.array(rows, np.float32)', '{"x": np.array(rows, np.float64)', "'x' as FP64.*give it as FP32"),
        ('return {"total": total, "words"', 'return {"sum": total, "words"', "gave ['sum', 'words'], expected ['total', 'words']"),
        ('raise ValueError("a sum', 'raise ValueError("the sum', ""),
        ("total = given", "total = given[0]", "KeyError"),
    ],
)  # fmt: skip
def test_a_stage_that_gives_something_else_stops_the_release(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in TEXT
    if not says:
        stage_bundle(tmp_path, files={"text.py": TEXT.replace(old, new)})
        return
    with pytest.raises(UserCodeError, match=says if ".*" in says else re.escape(says)) as refused:
        stage_bundle(tmp_path, files={"text.py": TEXT.replace(old, new)})
    assert refused.value.place.startswith("serve.")


def good() -> dict[str, Any]:
    keys = ("preprocess", "postprocess", "inputs", "outputs", "max_batch", "priority")
    return {
        **dict.fromkeys(keys),
        "schema": 1,
        "isolation": "process",
        "max_queue_delay_ms": 0.0,
        "pinned": False,
        "share": 1.0,
        "files": {},
    }


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"share": 0},
        {"share": None},
        {"pinned": 1},
        {"isolation": "thread"},
        {"max_batch": 0},
        {"max_batch": 1.5},
        {"priority": True},
        {"max_queue_delay_ms": None},
        {"preprocess": "../x:y"},
        {"inputs": []},
        {"inputs": [{"name": "x", "dtype": "text", "shape": []}]},
        {"inputs": [{"name": "x", "dtype": "string", "shape": [-1]}]},
        {"outputs": [{"name": "x", "dtype": "bool", "shape": []}] * 2},
        {"more": 1},
    ],
    ids=str,
)
def test_damaged_settings_are_a_typed_error(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / SERVE_JSON).write_text(json.dumps(good()))
    assert read_serve_settings(tmp_path) == DEFAULTS
    (tmp_path / SERVE_JSON).write_text(json.dumps(good() | change))
    with pytest.raises(IntegrityError, match=r"serve\.json"):
        read_serve_settings(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "\0", '{"schema": NaN}'])
def test_what_is_no_json_is_a_typed_error(tmp_path: Path, text: str) -> None:
    (tmp_path / SERVE_JSON).write_text(text)
    with pytest.raises(IntegrityError, match=r"serve\.json"):
        read_serve_settings(tmp_path)
