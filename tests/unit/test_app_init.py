"""The first recipe, and what makes a `source:` count as changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.app.init import write_recipe
from orchestrator.app.sources import source_identity
from orchestrator.core.errors import UsageError
from orchestrator.recipe import load_recipe


def test_the_first_recipe_is_valid_and_named_after_its_folder(tmp_path: Path) -> None:
    written = write_recipe(tmp_path / "my-model")
    assert [path.name for path in written] == ["recipe.yaml", "model.py", "train.py"]
    loaded = load_recipe(tmp_path / "my-model" / "recipe.yaml").recipe
    assert (loaded.name, loaded.rollout.endpoint if loaded.rollout else "") == ("my-model", "my-model")
    with pytest.raises(UsageError, match=r"already has recipe\.yaml, model\.py, train\.py"):
        write_recipe(tmp_path / "my-model")
    with pytest.raises(UsageError, match="'My Model' is not a valid name"):
        write_recipe(tmp_path / "My Model")


def test_the_first_recipe_trains_and_meets_its_gate(tmp_path: Path) -> None:
    import torch

    from orchestrator import user
    from orchestrator.graph.torch_model import predictor
    from orchestrator.steps.user_code import load_entrypoint

    folder = tmp_path / "first"
    write_recipe(folder)
    params = load_recipe(folder / "recipe.yaml").recipe.train
    assert params is not None
    run = user.Run(
        dict(params.params),
        rank=0,
        world_size=1,
        local_rank=0,
        device=torch.device("cpu"),
        checkpoint_dir=tmp_path / "checkpoints",
        metrics_file=tmp_path / "metrics.ndjson",
    )
    load_entrypoint("train:main", folder)(run)
    run.close()
    module = load_entrypoint("model:build", folder)()
    assert run.restore(module) == 5
    assert load_entrypoint("train:evaluate", folder)(predictor(module, ["logits"]))["accuracy"] >= 0.9


def test_a_source_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = "recipe: 1\nname: a\nsource: {%s}\ntargets: [{name: t, format: onnx}]\n"
    text += "model: {factory: m:build, inputs: {x: {dtype: float32, shape: [1]}}, outputs: {y: {dtype: float32, shape: [1]}}}\n"
    (tmp_path / "m.py").write_text("def build(): ...\n")
    (tmp_path / "graph.onnx").write_bytes(b"one")

    def identity(source: str) -> str:
        path.write_text(text % source)
        return source_identity(load_recipe(path).recipe, tmp_path).get("source", "")

    first = identity("onnx: graph.onnx")
    assert identity("onnx: graph.onnx") == first
    (tmp_path / "graph.onnx").write_bytes(b"two")
    assert identity("onnx: graph.onnx") != first
    digest = "sha256:" + "0" * 64
    assert identity(f"checkpoint: {digest}") == digest
    assert identity("mlflow: models:/digits/3") == "models:/digits/3"
    assert identity("mlflow: models:/digits@live") != identity("mlflow: models:/digits@live"), "an alias may move"
