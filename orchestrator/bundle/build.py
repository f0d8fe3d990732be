"""The bundle: an OCI image layout with a ModelPack manifest, one raw layer per file. Same content, same bytes, same digest.

    oci-layout  index.json  blobs/sha256/<hex>
    manifest: artifactType application/vnd.cncf.model.manifest.v1+json, layers named by org.cncf.model.filepath

Nothing in it tells when or where it was built, so that building again gives the same bundle. `unpack.py` reads it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from orchestrator.bundle.golden import GOLDEN_FILE
from orchestrator.bundle.layout import (
    CODE,
    DATASET,
    DOC,
    FILEPATH,
    LAYOUT_FILE,
    MODEL_CONFIG,
    MODEL_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    WEIGHT,
    WEIGHT_CONFIG,
)  # fmt: skip
from orchestrator.bundle.names import check_file_names
from orchestrator.core.digests import canonical_json, hex_of, sha256_bytes, sha256_file
from orchestrator.core.errors import GateError
from orchestrator.core.files import regular_files
from orchestrator.core.manifest import MANIFEST_NAME

MODEL_ONNX: Final = "model.onnx"
MODEL_SAFETENSORS: Final = "model.safetensors"
CARD_FILE: Final = "bundle.json"
REQUIRED_FILES: Final = frozenset({MODEL_ONNX, CARD_FILE, GOLDEN_FILE})

_BY_SUFFIX: Final = {".json": WEIGHT_CONFIG, ".md": DOC, ".txt": DOC, ".py": CODE}


@dataclass(frozen=True, slots=True)
class BundleParts:
    """What goes into a bundle.

    Attributes:
        name: The model's name.
        onnx: Folder of an `onnx` artifact: `model.onnx`, external data, `onnx.json`.
        golden: File written by `write_golden`.
        card: JSON for `bundle.json`: what the model is, its inputs and outputs, where it comes from. No times, no paths.
        model: safetensors of the weights, for sites that run torch.
        extra: File name in the bundle -> file.
    """

    name: str
    onnx: Path
    golden: Path
    card: Mapping[str, Any]
    model: Path | None = None
    extra: Mapping[str, Path] = field(default_factory=dict[str, Path])


def build_layout(parts: BundleParts, out: Path) -> str:
    """Write the image layout into the folder `out` and return the bundle's digest.

    Raises:
        GateError: A file is absent, or a name cannot be carried.
    """
    files = _files(parts)
    blobs = out / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    layers = [_layer(name, files[name], parts.card, blobs) for name in sorted(files)]
    config = {
        "descriptor": {"name": parts.name},
        "config": {"format": "onnx"},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": MODEL_MANIFEST,
        "config": _blob(canonical_json(config), MODEL_CONFIG, blobs),
        "layers": layers,
    }
    described = _blob(canonical_json(manifest), OCI_MANIFEST, blobs)
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{**described, "artifactType": MODEL_MANIFEST}]}
    (out / "index.json").write_bytes(canonical_json(index))
    (out / "oci-layout").write_bytes(canonical_json(LAYOUT_FILE))
    return described["digest"]


def _files(parts: BundleParts) -> dict[str, Path | None]:
    """Return name in the bundle -> file; None is the card, which is made here."""
    inside = parts.onnx
    try:
        found = {path.relative_to(inside).as_posix(): path for path in regular_files(inside)}
    except (OSError, ValueError) as error:
        raise GateError(f"cannot bundle {inside.name}: {error}", hint="make the onnx artifact again") from error
    files: dict[str, Path | None] = {name: path for name, path in found.items() if name != MANIFEST_NAME}
    added: dict[str, Path | None] = {GOLDEN_FILE: parts.golden, CARD_FILE: None, **parts.extra}
    if parts.model is not None:
        added[MODEL_SAFETENSORS] = parts.model
    twice = sorted(set(files) & set(added))
    if twice:
        raise GateError(f"{twice} would be in the bundle twice", hint="rename them")
    files.update(added)
    absent = [name for name, path in files.items() if path is not None and not path.is_file()]
    absent += sorted(REQUIRED_FILES - set(files))
    problem = f"{absent} are not there" if absent else check_file_names(files)
    if problem:
        raise GateError(f"cannot build the bundle: {problem}", hint="make the artifacts again")
    return files


def _layer(name: str, path: Path | None, card: Mapping[str, Any], blobs: Path) -> dict[str, Any]:
    media_type = DATASET if name == GOLDEN_FILE else _BY_SUFFIX.get(Path(name).suffix, WEIGHT)
    described = (
        _blob(canonical_json(dict(card)), media_type, blobs) if path is None else _file_blob(path, media_type, blobs)
    )
    return {**described, "annotations": {FILEPATH: name}}


def _blob(data: bytes, media_type: str, blobs: Path) -> dict[str, Any]:
    digest = sha256_bytes(data)
    (blobs / hex_of(digest)).write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _file_blob(path: Path, media_type: str, blobs: Path) -> dict[str, Any]:
    digest = sha256_file(path)
    target = blobs / hex_of(digest)
    if not target.exists():
        shutil.copyfile(path, target)
    return {"mediaType": media_type, "digest": digest, "size": path.stat().st_size}
