"""Train on NVIDIA, serve on Huawei Ascend: one recipe, one command, and the truth about what the move cost."""

from __future__ import annotations

import os

__version__ = "0.1.0"

# From 1.31 on ONNX Runtime reports to its maker and leaves a device id in HOME, unless this is set before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
