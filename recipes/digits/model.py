"""The network: two convolutions and two dense layers for 8 x 8 grey images."""

from __future__ import annotations

import torch
from torch import nn


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classify = nn.Sequential(nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, 1, 8, 8) in 0 to 1 -> logits (batch, 10)."""
        return self.classify(self.features(image).flatten(1))


def build() -> nn.Module:
    return Digits()
