"""The bundle as an OCI image layout: what other rooms use. `build.py` writes it, `unpack.py` reads it."""

from __future__ import annotations

from orchestrator.bundle.build import CARD_FILE, MODEL_ONNX, MODEL_SAFETENSORS, BundleParts, build_layout
from orchestrator.bundle.layout import BundleLimits
from orchestrator.bundle.unpack import BundleInfo, bundle_digest, open_unpacked, read_bundle, read_card, unpack

__all__ = [
    "CARD_FILE",
    "MODEL_ONNX",
    "MODEL_SAFETENSORS",
    "BundleInfo",
    "BundleLimits",
    "BundleParts",
    "build_layout",
    "bundle_digest",
    "open_unpacked",
    "read_bundle",
    "read_card",
    "unpack",
]
