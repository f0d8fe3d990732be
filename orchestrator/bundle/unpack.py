"""From an image layout to a folder that a replica loads: verified while copied, read-only, named by digest, whole or absent."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.bundle.build import CARD_FILE, REQUIRED_FILES
from orchestrator.bundle.layout import (
    CODE,
    DATASET,
    DOC,
    FILEPATH,
    MODEL_CONFIG,
    MODEL_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    WEIGHT,
    WEIGHT_CONFIG,
    BundleLimits,
    Descriptor,
    LayoutReader,
    check_keys,
    damaged,
    descriptor,
    open_layout,
    strict_json,
)  # fmt: skip
from orchestrator.bundle.names import BUNDLE_MANIFEST, check_file_names
from orchestrator.core import faults
from orchestrator.core.digests import hex_of, is_digest, sha256_bytes, sha256_file
from orchestrator.core.errors import IntegrityError, StoreError
from orchestrator.core.files import regular_files, sync_folder
from orchestrator.core.ids import new_token

_LAYER_TYPES: Final = frozenset({WEIGHT, WEIGHT_CONFIG, DATASET, DOC, CODE})
_READ_ONLY: Final = 0o444


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of a bundle."""

    path: str
    blob: Descriptor


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """A bundle whose manifest and config were verified; its layers only where the function says so."""

    digest: str
    layers: tuple[Layer, ...]
    manifest: bytes

    @property
    def size_bytes(self) -> int:
        """Sum over all layers."""
        return sum(layer.blob.size_bytes for layer in self.layers)


def bundle_digest(layout: Path) -> str:
    """Return the digest of the bundle in a layout; its manifest is verified.

    Raises:
        IntegrityError: There is none, or more than one.
    """
    return read_bundle(layout).digest


def read_bundle(layout: Path, *, expected: str | None = None, limits: BundleLimits | None = None) -> BundleInfo:
    """Verify and parse manifest and config, not the layers.

    Args:
        layout: The image layout.
        expected: The bundle's digest, from a trusted place; `index.json` is then not even looked at.
        limits: Caps.

    Raises:
        IntegrityError: Something is not what its digest says, or is not allowed.
    """
    with open_layout(layout) as reader:
        return _read(reader, expected, limits or BundleLimits())


def unpack(layout: Path, dest_root: Path, *, expected: str | None = None, limits: BundleLimits | None = None) -> Path:
    """Verify every byte while copying into `<dest_root>/<hex of the bundle's digest>/`, and return that folder.

    The folder holds the bundle's files, 0444, and `oci-manifest.json`. One that is already there is verified, and replaced
    when damaged. A crash leaves only `.in-*` garbage, which the next call for this bundle removes.

    Raises:
        IntegrityError: Something is not what its digest says, or is not allowed; nothing was put under the final name.
        StoreError: The disk refused.
    """
    with open_layout(layout) as reader:
        bundle = _read(reader, expected, limits or BundleLimits())
        final = dest_root.absolute() / hex_of(bundle.digest)
        try:
            if _is_sound(final):
                return final
            with _alone(final.parent):
                if not _is_sound(final):  # another process may have been quicker
                    _place(reader, bundle, final)
        except OSError as error:
            raise StoreError(
                f"the bundle of {bundle.size_bytes} bytes cannot be unpacked: {error}",
                place=str(dest_root),
                hint="check free space and permissions",
            ) from error
    return final


def open_unpacked(folder: Path, *, content: bool = True) -> BundleInfo:
    """Verify an unpacked bundle against its own name: every file, and nothing but these files.

    Args:
        folder: What `unpack` returned.
        content: Whether to hash the files; names and sizes are always checked.

    Raises:
        IntegrityError: A file is missing, extra, a link, or changed.
    """
    try:
        present = {path.relative_to(folder).as_posix(): path for path in regular_files(folder)}
        manifest = present.pop(BUNDLE_MANIFEST).read_bytes()
    except (OSError, ValueError, KeyError) as error:
        raise damaged(f"no unpacked bundle: {error}", folder) from error
    if sha256_bytes(manifest) != f"sha256:{folder.name}":
        raise damaged(f"the manifest is that of {sha256_bytes(manifest)}", folder)
    layers = _layers(_manifest(manifest, BundleLimits()), BundleLimits())
    if set(present) != {layer.path for layer in layers}:
        raise damaged(f"the files are {sorted(present)[:20]}, the manifest says other names", folder)
    for layer in layers:
        path = present[layer.path]
        if path.stat().st_size != layer.blob.size_bytes or (content and sha256_file(path) != layer.blob.digest):
            raise damaged(f"{layer.path} is not what the manifest says", folder)
    return BundleInfo(f"sha256:{folder.name}", layers, manifest)


def read_card(folder: Path) -> dict[str, Any]:
    """Return `bundle.json` of an unpacked bundle."""
    return strict_json((folder / CARD_FILE).read_bytes(), CARD_FILE)


def _read(reader: LayoutReader, expected: str | None, limits: BundleLimits) -> BundleInfo:
    pointer = _from_index(reader, limits) if expected is None else _by_digest(reader, expected)
    data = reader.small(pointer, limits.manifest_size_bytes)
    manifest = _manifest(data, limits)
    layers = _layers(manifest, limits)
    config_blob = descriptor(manifest["config"], "the config")
    if config_blob.media_type != MODEL_CONFIG:
        raise damaged(f"the config has media type {config_blob.media_type[:80]!r}", reader.path)
    config = strict_json(reader.small(config_blob, limits.manifest_size_bytes), "the config")
    _check_config(config, layers)
    return BundleInfo(pointer.digest, layers, data)


def _by_digest(reader: LayoutReader, expected: str) -> Descriptor:
    if not is_digest(expected):
        raise damaged(f"the bundle's digest reads {expected[:80]!r}", reader.path)
    return Descriptor(OCI_MANIFEST, expected, reader.size(expected))


def _from_index(reader: LayoutReader, limits: BundleLimits) -> Descriptor:
    index = strict_json(reader.top("index.json", limits.index_size_bytes), "index.json")
    check_keys(index, {"schemaVersion", "mediaType", "manifests"}, "index.json", optional=frozenset({"annotations"}))
    if index["schemaVersion"] != 2 or index["mediaType"] != OCI_INDEX or not isinstance(index["manifests"], list):
        raise damaged("index.json is no image index of version 2", reader.path)
    found: list[Descriptor] = []
    for entry in cast("list[object]", index["manifests"]):
        item = descriptor(entry, "an entry of index.json", optional=frozenset({"artifactType", "annotations"}))
        if item.media_type == OCI_MANIFEST and cast("Mapping[str, Any]", entry).get("artifactType") == MODEL_MANIFEST:
            found.append(item)
    if len({item.digest for item in found}) != 1:
        raise damaged(f"index.json names {len(found)} models, expected 1", reader.path)
    return found[0]


def _manifest(data: bytes, limits: BundleLimits) -> dict[str, Any]:
    manifest = strict_json(data, "the manifest")
    check_keys(manifest, {"schemaVersion", "mediaType", "artifactType", "config", "layers"}, "the manifest")
    kinds = (manifest["schemaVersion"], manifest["mediaType"], manifest["artifactType"])
    if kinds != (2, OCI_MANIFEST, MODEL_MANIFEST):
        raise damaged(f"the manifest is of kind {json.dumps(kinds)[:200]}")
    layers: object = manifest["layers"]
    if not isinstance(layers, list) or not 0 < len(cast("list[object]", layers)) <= limits.layers:
        raise damaged(f"the manifest has no list of 1 to {limits.layers} layers")
    return manifest


def _layers(manifest: Mapping[str, Any], limits: BundleLimits) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for number, entry in enumerate(cast("list[object]", manifest["layers"])):
        what = f"layer {number}"
        blob = descriptor(entry, what, extra=frozenset({"annotations"}))
        annotations: object = cast("Mapping[str, Any]", entry)["annotations"]
        if not isinstance(annotations, dict):
            raise damaged(f"{what} has no annotations")
        named = cast("dict[str, Any]", annotations)
        check_keys(named, {FILEPATH}, f"the annotations of {what}")
        if blob.media_type not in _LAYER_TYPES:
            raise damaged(f"{what} has media type {blob.media_type[:80]!r}, which is not allowed")
        if blob.size_bytes > limits.layer_size_bytes:
            raise damaged(f"{what} declares {blob.size_bytes} bytes, at most {limits.layer_size_bytes}")
        if not isinstance(named[FILEPATH], str):
            raise damaged(f"{what} has no file name")
        layers.append(Layer(named[FILEPATH], blob))
    names = [layer.path for layer in layers]
    problem = check_file_names(names) or ", ".join(f"no {name}" for name in sorted(REQUIRED_FILES - set(names)))
    if problem:
        raise damaged(f"the manifest is refused: {problem}")
    total = sum(layer.blob.size_bytes for layer in layers)
    if total > limits.total_size_bytes:
        raise damaged(f"the layers declare {total} bytes, at most {limits.total_size_bytes}")
    return tuple(layers)


def _check_config(config: Mapping[str, Any], layers: tuple[Layer, ...]) -> None:
    check_keys(config, {"descriptor", "config", "modelfs"}, "the config")
    if config["modelfs"] != {"type": "layers", "diffIds": [layer.blob.digest for layer in layers]}:
        raise damaged("the config names other layers than the manifest")


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Keep other processes from unpacking into `folder`; the kernel frees the lock of a process that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_sound(folder: Path) -> bool:
    try:
        open_unpacked(folder)
    except IntegrityError:
        return False
    return True


def _place(reader: LayoutReader, bundle: BundleInfo, final: Path) -> None:
    """Copy and verify beside the final name, then rename."""
    _sweep(final)
    free = shutil.disk_usage(final.parent).free
    if free < bundle.size_bytes:
        raise StoreError(f"unpacking needs {bundle.size_bytes} bytes, {free} are free", place=str(final.parent))
    temp = final.with_name(f".in-{final.name}.{new_token(4)}")
    temp.mkdir()
    try:
        for layer in bundle.layers:
            target = temp / layer.path
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(target, reader.pieces(layer.blob))
        _write(temp / BUNDLE_MANIFEST, [bundle.manifest])
        for folder in (temp, *(path for path in temp.rglob("*") if path.is_dir())):
            sync_folder(folder)
        faults.point("bundle.unpack.copied")
        if final.exists():
            final.rename(final.with_name(f".in-{final.name}.old-{new_token(4)}"))
        temp.rename(final)
        sync_folder(final.parent)
        faults.point("bundle.unpack.placed")
    finally:
        _sweep(final)


def _sweep(final: Path) -> None:
    for garbage in final.parent.glob(f".in-{final.name}.*"):
        shutil.rmtree(garbage, ignore_errors=True)


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _READ_ONLY)
    with os.fdopen(handle, "wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
