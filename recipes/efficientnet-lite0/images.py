"""Real images, 224 x 224: crops of the two photographs that scikit-learn ships; nothing is downloaded.

Nobody has certified ImageNet labels for these crops, so the metric is no accuracy. It is `agreement`: how often the first
class is that of the publisher's own network (efficientnet-lite-pytorch, fp32), which `reference.py` wrote down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

Arrays = dict[str, np.ndarray]
REFERENCE = Path(__file__).with_name("reference.json")
COUNT, BATCH = 32, 8
SIDE = 224


@cache
def crops() -> np.ndarray:
    """Return uint8 (32, 224, 224, 3), always the same: the two pictures by turns, other places, sizes and mirrorings."""
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    return np.stack([_crop(pictures[index % 2], random) for index in range(COUNT)])


def _crop(picture: Image.Image, random: np.random.Generator) -> np.ndarray:
    side = int(min(picture.size) * random.uniform(0.5, 1.0))
    left, top = (int(random.integers(0, size - side + 1)) for size in picture.size)
    made = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(made)[:, :: 1 if random.random() < 0.5 else -1]


def normalised(images: np.ndarray) -> np.ndarray:
    """uint8 (n, 224, 224, 3) -> what the network takes: float32 (n, 3, 224, 224), (value - 127) / 128."""
    return np.ascontiguousarray(((images.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2))


def samples(n: int) -> Iterator[Arrays]:
    """Real inputs, one at a time; the first axis is the batch."""
    for image in normalised(crops()[:n]):
        yield {"image": image[None]}


def evaluate(predict: Callable[[Arrays], Arrays]) -> dict[str, float]:
    """The same function judges the torch model, the ONNX model and the device."""
    published = json.loads(REFERENCE.read_text())["first"]
    batches = [normalised(crops()[first : first + BATCH]) for first in range(0, COUNT, BATCH)]
    found = np.concatenate([predict({"image": batch})["logits"] for batch in batches]).argmax(1)
    return {"agreement": float((found == published).mean())}
