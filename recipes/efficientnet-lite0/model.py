"""EfficientNet-Lite0 in plain torch: 16 inverted bottlenecks, ReLU6 throughout, no squeeze-and-excitation.

The attributes bear the names of the published checkpoint, so that its weights load as they are.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

STAGES = (  # repeats, kernel, stride of the first block, expansion, channels in, channels out
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class SamePadded(nn.Conv2d):
    """A convolution padded as TensorFlow pads "SAME": at stride 2 and an even size, one row and column more at the end."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(channels, out, kernel, stride, padding, groups=groups, bias=False)
        before = (kernel - stride) // 2
        self.margins = (before, kernel - stride - before) * 2

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.stride != (1, 1):
            image = functional.pad(image, self.margins)
        return super().forward(image)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Expand, filter each channel by itself, project; with a short cut where input and output have one shape."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expands, self.skips = expansion > 1, stride == 1 and channels == out
        if self.expands:
            self._expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
            self._bn0 = norm(wide)
        self._depthwise_conv = SamePadded(wide, wide, kernel, stride, groups=wide)
        self._bn1 = norm(wide)
        self._project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self._bn2 = norm(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skips else y


class EfficientNetLite0(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SamePadded(3, 32, 3, 2)
        self._bn0 = norm(32)
        self._blocks = nn.Sequential(
            *(
                Block(out if index else channels, out, kernel, 1 if index else stride, expansion)
                for repeats, kernel, stride, expansion, channels, out in STAGES
                for index in range(repeats)
            )
        )
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 224, 224), RGB, (value - 127) / 128 -> logits of the 1,000 ImageNet classes."""
        x = functional.relu6(self._bn0(self._conv_stem(image)))
        x = functional.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return self._fc(x.mean((2, 3)))


def build() -> nn.Module:
    return EfficientNetLite0()
