"""A machine with NPUs, as far as tests can have one: a CANN folder with a fake ATC and the fake pyACL, and a recipe to serve.

Only CANN's set_env.sh leads to pyACL, so that nothing works by accident.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from support.fake_acl import install
from support.fake_atc import FakeAtc

SOC = "Ascend310P3"
RECIPE = f"""\
recipe: 1
name: scale
source: {{onnx: model.onnx}}
samples: data:samples
targets: [{{name: npu, format: om, soc: {SOC}, precision: fp16, shapes: {{batch: [1, 4]}}}}]
rollout: {{endpoint: scale, pool: npu}}
"""
DATA = """\
import numpy as np


def samples(count):
    for seed in range(count):
        yield {"x": np.random.default_rng(seed).standard_normal((1, 4)).astype(np.float32)}
"""


def install_cann(folder: Path) -> dict[str, str]:
    """Make the folder and return the `tools` of an environment that uses it."""
    atc = FakeAtc.install(folder, "loadable")
    fake = install(folder / "python", soc=SOC)
    script = folder / "set_env.sh"
    script.write_text(f"{script.read_text()}export PYTHONPATH={fake}${{PYTHONPATH:+:$PYTHONPATH}}\n")
    return {"atc": str(atc.program), "cann_env": str(script)}


def write_recipe(folder: Path) -> Path:
    """Write a recipe whose model is y = 2x, x: [batch, 4] float32, and return its path."""
    folder.mkdir(parents=True)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "k"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value("y", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor("k", TensorProto.FLOAT, [], [2.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    (folder / "data.py").write_text(DATA)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"
