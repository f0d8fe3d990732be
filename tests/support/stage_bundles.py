"""Bundles with stages, made by the real bundle step: clients send text, the model scales four numbers, clients get text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper

from orchestrator.bundle.oci import unpack
from orchestrator.core.digests import Digest
from orchestrator.plan.serving import serve_spec
from orchestrator.recipe import load_recipe
from orchestrator.steps import bundle
from orchestrator.steps.api import SiteInfo, StepContext

RECIPE = """\
recipe: 1
name: numbers
source: {onnx: model.onnx}
serve:
  preprocess: text:numbers
  postprocess: text:sums
  samples: text_samples:asked
  inputs: {text: {dtype: string, shape: [batch]}}
  outputs: {total: {dtype: float32, shape: [batch]}, words: {dtype: string, shape: [batch]}}
  files: [names/*.txt]
  max_queue_delay_ms: 2
  share: 2.5
"""
TEXT = '''\
import os, time
from pathlib import Path
import numpy as np
from parts.words import WORDS

def numbers(given):
    """Four numbers from a text such as `1 2 three 4`."""
    rows = []
    for text in given["text"]:
        if text == "crash":
            os._exit(9)
        if text.startswith("slow "):
            time.sleep(1.0)
            text = text[5:]
        if text == "key":
            {}["absent"]
        rows.append([WORDS.get(word) if word in WORDS else float(word) for word in text.split()[:4]])
    if any(row and row[0] == 666 for row in rows):
        return {"x": np.zeros((len(rows), 5), np.float32)}
    return {"x": np.array(rows, np.float32).reshape(len(rows), 4)}

def sums(given):
    total = given["y"].sum(1)
    if (total < 0).any():
        raise ValueError("a sum is negative")
    return {"total": total, "words": np.array([f"it is {value:g}" for value in total], object)}
'''
WORDS = """\
from pathlib import Path
NAMES = Path(__file__).parents[1] / "names" / "english.txt"
WORDS = {word: float(number) for number, word in enumerate(NAMES.read_text().split(), 1)}
"""
SAMPLES = """\
import numpy as np
def asked(n):
    for number in range(n):
        yield {"text": np.array([f"{number} two 3 4"], object)}
"""


class Quiet:
    def progress(self, done: float, total: float, text: str = "") -> None: ...

    def metric(self, name: str, value: float, step: int = 0) -> None: ...

    def message(self, text: str) -> None: ...


def stage_recipe(folder: Path, *, factor: float = 2.0, recipe: str = RECIPE, files: Mapping[str, str] = {}) -> Path:
    """Write the recipe's folder and return it."""
    texts = {
        "text.py": TEXT,
        "parts/words.py": WORDS,
        "text_samples.py": SAMPLES,
        "names/english.txt": "one two three",
        **files,
    }
    for name, text in {**texts, "recipe.yaml": recipe}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "k"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor("k", TensorProto.FLOAT, [], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def bundle_of(folder: Path, into: Path) -> tuple[Digest, Path]:
    """Run the bundle step on the recipe in `folder`; return the bundle's digest and the unpacked folder."""
    recipe = load_recipe(folder / "recipe.yaml").recipe
    spec: dict[str, Any] = {"model": None, "targets": [], "name": recipe.name, "description": "", "samples": None}
    spec |= {"samples_count": 4, **serve_spec(recipe)}
    source = into / "onnx"
    source.mkdir(parents=True)
    (source / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    (source / "onnx.json").write_text("{}")
    for name in ("work", "out"):
        (into / name).mkdir()
    site = SiteInfo("local", True, into)
    context = StepContext(
        "bundle", "bundle", spec, folder, {"onnx": source}, into / "work", into / "out", site, 1, Quiet()
    )
    done = bundle.run(context)
    digest = Digest(str(done.facts["bundle"]))
    return digest, unpack(done.outputs["bundle"].folder, into / "bundles", expected=digest)


def stage_bundle(folder: Path, **changes: Any) -> tuple[Digest, Path]:
    """Return the digest and the unpacked folder of a bundle whose clients send and get text."""
    return bundle_of(stage_recipe(folder / "recipe", **changes), folder)
