"""Which file names a bundle may carry: plain, relative, the same on every file system."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

BUNDLE_MANIFEST: Final = "oci-manifest.json"
"""Where an unpacked bundle keeps its manifest; no layer may have this name."""

_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
_DEPTH: Final = 4


def check_file_names(names: Collection[str]) -> str:
    """Return what is wrong with the names as a set, or an empty text."""
    for name in names:
        parts = name.split("/")
        if len(parts) > _DEPTH or not all(_PART.fullmatch(part) for part in parts) or name == BUNDLE_MANIFEST:
            return f"file name {name[:80]!r} is not allowed"
    folded = [name.casefold() for name in names]
    if len(set(folded)) != len(folded):
        return "a file name appears twice"
    folders = {"/".join(name.split("/")[:depth]) for name in folded for depth in range(1, name.count("/") + 1)}
    if folders & set(folded):
        return f"{min(folders & set(folded))[:80]!r} is a file and a folder"
    return ""
