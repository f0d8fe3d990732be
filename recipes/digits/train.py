"""Training, evaluation and samples. `torchrun --nproc-per-node 2 train.py` works too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from model import build
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from orchestrator import user

Arrays = dict[str, np.ndarray]
HELD_OUT = 360  # of 1,797: never trained on


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 1, 8, 8) in 0 to 1 and labels (n,), in an order that is always the same; the last 360 are held out."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return (digits.images[order, None] / 16).astype(np.float32), digits.target[order].astype(np.int64)


def main(run: user.Run) -> None:
    images, labels = load()
    data = TensorDataset(torch.from_numpy(images[:-HELD_OUT]), torch.from_numpy(labels[:-HELD_OUT]))
    loader = DataLoader(data, batch_size=run.params.batch, sampler=run.sampler(data))

    model = run.prepare(build())
    optimizer = torch.optim.Adam(model.parameters(), lr=run.params.lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.params.epochs)
    for _ in run.epochs(run.params.epochs, model=model, optimizer=optimizer, scheduler=decay):
        total = 0.0
        for image, label in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(image.to(run.device)), label.to(run.device))
            loss.backward()
            optimizer.step()
            total += loss.item()
        decay.step()
        run.log(loss=run.mean(total / len(loader)), lr=decay.get_last_lr()[0])


def evaluate(predict: Callable[[Arrays], Arrays]) -> dict[str, float]:
    """The same function judges the torch model, the ONNX model and the device."""
    images, labels = load()
    logits = predict({"image": images[-HELD_OUT:]})["logits"]
    return {"accuracy": float((logits.argmax(1) == labels[-HELD_OUT:]).mean())}


def samples(n: int) -> Iterator[Arrays]:
    """Real inputs, one at a time; the first axis is the batch."""
    images, _ = load()
    for image in images[-HELD_OUT:][:n]:
        yield {"image": image[None]}


if __name__ == "__main__":
    user.launch(main, params={"epochs": 10, "batch": 32, "lr": 0.005, "seed": 7})
