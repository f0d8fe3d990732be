"""Train on NVIDIA, serve on Huawei Ascend: one recipe, one command, and the truth about what the move cost."""

from __future__ import annotations

__version__ = "0.1.0"
