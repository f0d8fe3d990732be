"""all-MiniLM-L6-v2 in plain torch: a BERT of 6 layers and 384 units, then mean pooling and unit length.

The attributes bear the names of the published safetensors, so that its weights load as they are.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

LAYERS, UNITS, HEADS, WIDE = 6, 384, 12, 1536
VOCABULARY, POSITIONS = 30_522, 512
MASKED = -10_000.0  # exp(-10,000) is 0 in any format, and fp16 can hold the number itself


def norm() -> nn.LayerNorm:
    return nn.LayerNorm(UNITS, eps=1e-12)


class Embeddings(nn.Module):
    position_ids: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, UNITS)
        self.position_embeddings = nn.Embedding(POSITIONS, UNITS)
        self.token_type_embeddings = nn.Embedding(2, UNITS)
        self.LayerNorm = norm()
        self.register_buffer("position_ids", torch.arange(POSITIONS)[None])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        places = self.position_ids[:, : input_ids.shape[1]]
        words = self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0]  # one sentence: all of type 0
        return self.LayerNorm(words + self.position_embeddings(places))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(UNITS, UNITS) for _ in range(3))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = (_heads(part(x)) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / (UNITS // HEADS) ** 0.5
        return (torch.softmax(scores + mask, -1) @ value).transpose(1, 2).flatten(2)


def _heads(x: torch.Tensor) -> torch.Tensor:
    """(batch, seq, 384) -> (batch, 12, seq, 32)."""
    return x.unflatten(2, (HEADS, UNITS // HEADS)).transpose(1, 2)


class Joined(nn.Module):
    """A dense layer, then the sum with the short cut, normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, UNITS)
        self.LayerNorm = norm()

    def forward(self, x: torch.Tensor, short: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(x) + short)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": Attention(), "output": Joined(UNITS)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(UNITS, WIDE)})
        self.output = Joined(WIDE)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(functional.gelu(self.intermediate["dense"](x)), x)


class MiniLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(UNITS, UNITS)})  # in the file; sentence embeddings do without

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and 1 for a token, 0 for padding, int64 (batch, seq) -> embeddings (batch, 384) of length 1."""
        real = attention_mask.to(torch.float32)
        x, mask = self.embeddings(input_ids), (1 - real)[:, None, None] * MASKED
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        weights = real[:, :, None]
        mean = (x * weights).sum(1) / weights.sum(1).clamp(min=1)
        return mean / (mean * mean).sum(1, keepdim=True).sqrt().clamp(min=1e-6)


def build() -> nn.Module:
    return MiniLM()
