"""The bundle: same content, same digest; unpacked only when every byte is what it says; attacks are typed errors."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.bundle import layout as layout_module
from orchestrator.bundle.golden import read_golden, write_golden
from orchestrator.bundle.layout import BundleLimits
from orchestrator.bundle.oci import (
    BundleParts,
    build_layout,
    bundle_digest,
    open_unpacked,
    read_bundle,
    read_card,
    unpack,
)
from orchestrator.bundle.store import Store
from orchestrator.core.digests import canonical_json, sha256_bytes
from orchestrator.core.errors import GateError, IntegrityError, StoreError

SECRET = "top secret"


def make_parts(base: Path, **changes: Any) -> BundleParts:
    onnx = base / "onnx"
    onnx.mkdir(parents=True)
    (onnx / "model.onnx").write_bytes(b"graph")
    (onnx / "model.onnx.data").write_bytes(bytes(range(256)) * 20)
    (onnx / "onnx.json").write_text("{}")
    (onnx / "manifest.json").write_text("the store's own")
    (base / "model.safetensors").write_bytes(b"weights")
    write_golden(base / "g", {"x": np.ones((3, 2), np.float32)}, {"y": np.arange(3)})
    card = {"bundle": 1, "name": "digits", "inputs": []}
    return BundleParts(
        **{
            "name": "digits",
            "onnx": onnx,
            "golden": base / "g",
            "card": card,
            "model": base / "model.safetensors",
            **changes,
        }
    )


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    build_layout(make_parts(tmp_path / "parts"), tmp_path / "layout")
    return tmp_path / "layout"


def test_a_bundle_survives_the_round_trip(layout: Path, tmp_path: Path) -> None:
    digest = bundle_digest(layout)
    folder = unpack(layout, tmp_path / "bundles")
    assert folder == tmp_path / "bundles" / digest.removeprefix("sha256:")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "model.onnx", "model.onnx.data", "onnx.json", "golden.safetensors", "model.safetensors", "bundle.json", "oci-manifest.json",
    }  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}
    assert (folder / "model.onnx.data").read_bytes() == bytes(range(256)) * 20
    assert read_card(folder)["name"] == "digits"
    assert read_golden(folder / "golden.safetensors").count == 3
    assert open_unpacked(folder).digest == digest
    assert {path.name for path in (tmp_path / "bundles").iterdir()} == {folder.name, ".lock"}


def test_the_manifest_is_what_modelpack_says(layout: Path) -> None:
    manifest = json.loads(read_bundle(layout).manifest)
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    kinds = {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]}
    assert kinds["model.onnx"] == kinds["model.onnx.data"] == "application/vnd.cncf.model.weight.v1.raw"
    assert kinds["golden.safetensors"] == "application/vnd.cncf.model.dataset.v1.raw"
    assert kinds["bundle.json"] == "application/vnd.cncf.model.weight.config.v1.raw"


def test_building_again_elsewhere_gives_the_same_bytes(tmp_path: Path) -> None:
    one = build_layout(make_parts(tmp_path / "a"), tmp_path / "one")
    two = build_layout(make_parts(tmp_path / "b"), tmp_path / "two")
    assert one == two == bundle_digest(tmp_path / "one")
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    assert len(files) == 2 + 1 + 1 + 6


def test_other_content_is_another_bundle(tmp_path: Path) -> None:
    one = build_layout(make_parts(tmp_path / "a"), tmp_path / "one")
    assert build_layout(make_parts(tmp_path / "b", card={"name": "other"}), tmp_path / "two") != one


def test_a_layout_from_the_store_unpacks(layout: Path, tmp_path: Path) -> None:
    digest = bundle_digest(layout)
    store = Store(tmp_path / "store")
    placed = store.path(store.commit(layout, "application/vnd.orchestrate.bundle.v1").digest)
    assert unpack(placed, tmp_path / "bundles", expected=digest).name == digest[7:]


@pytest.mark.parametrize(
    "changes",
    [
        {"golden": Path("/nowhere")},
        {"extra": {"model.onnx": Path("/etc/hostname")}},
        {"extra": {"../x": Path("/etc/hostname")}},
    ],
)
def test_what_cannot_be_built(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(GateError):
        build_layout(make_parts(tmp_path / "parts", **changes), tmp_path / "layout")


def test_unpacking_again_is_free_and_a_damaged_copy_is_replaced(layout: Path, tmp_path: Path) -> None:
    folder = unpack(layout, tmp_path / "bundles")
    inode = (folder / "model.onnx").stat().st_ino
    assert (unpack(layout, tmp_path / "bundles") / "model.onnx").stat().st_ino == inode
    for damage in ("flip", "extra", "symlink"):
        if damage == "flip":
            (folder / "model.onnx").chmod(0o644)
            (folder / "model.onnx").write_bytes(b"grapH")
        elif damage == "extra":
            (folder / "evil.py").write_text("")
        else:
            (folder / "model.onnx").rename(tmp_path / "moved")
            (folder / "model.onnx").symlink_to(tmp_path / "moved")
        with pytest.raises(IntegrityError):
            open_unpacked(folder)
        unpack(layout, tmp_path / "bundles")
        open_unpacked(folder)


# --- attacks -------------------------------------------------------------------------------------------------------


def blob_of(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def put(layout: Path, data: bytes) -> dict[str, Any]:
    digest = sha256_bytes(data)
    blob_of(layout, digest).write_bytes(data)
    return {"digest": digest, "size": len(data)}


def rewritten(
    layout: Path,
    change: Callable[[dict[str, Any]], object],
    *,
    config: Callable[[dict[str, Any]], object] | None = None,
) -> None:
    """Forge the manifest and point the index at it: an attacker who controls the whole layout."""
    manifest = json.loads(read_bundle(layout).manifest)
    change(manifest)
    body = json.loads(blob_of(layout, json.loads(read_bundle(layout).manifest)["config"]["digest"]).read_bytes())
    if config is None:
        body["modelfs"]["diffIds"] = [
            layer.get("digest") for layer in manifest.get("layers", []) if isinstance(layer, dict)
        ]
    else:
        config(body)
    if "config" in manifest:
        manifest["config"] |= put(layout, canonical_json(body))
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"][0] |= put(layout, canonical_json(manifest))
    (layout / "index.json").write_bytes(canonical_json(index))


def refused(layout: Path, tmp_path: Path, match: str | None = None, **more: Any) -> None:
    opened: list[str] = []
    real = os.open

    def watched(path: Any, *args: Any, **kwargs: Any) -> int:
        opened.append(str(path))
        return real(path, *args, **kwargs)

    (tmp_path / "secret").write_text(SECRET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_module.os, "open", watched)
        with pytest.raises(IntegrityError, match=match):
            unpack(layout, tmp_path / "bundles", **more)
    outside = [name for name in opened if "secret" in name or "passwd" in name or ".." in name]
    assert outside == []
    assert [path.name for path in (tmp_path / "bundles").glob("*")] in ([], [".lock"])


def some_layer(layout: Path, name: str = "model.onnx.data") -> dict[str, Any]:
    layers = json.loads(read_bundle(layout).manifest)["layers"]
    return next(layer for layer in layers if layer["annotations"]["org.cncf.model.filepath"] == name)


@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx", "golden.safetensors", "bundle.json"])
@pytest.mark.parametrize("how", ["flip", "truncate", "grow", "missing", "symlink", "hardlink", "fifo", "folder"])
def test_a_damaged_blob(layout: Path, tmp_path: Path, name: str, how: str) -> None:
    blob = blob_of(layout, some_layer(layout, name)["digest"])
    data = blob.read_bytes()
    if how in {"missing", "symlink", "fifo", "folder"}:
        blob.rename(tmp_path / "secret-blob")
    if how == "flip":
        blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "truncate":
        blob.write_bytes(data[:-1])
    elif how == "grow":
        blob.write_bytes(data + b"x")
    elif how == "symlink":
        blob.symlink_to(tmp_path / "secret-blob")
    elif how == "hardlink":
        os.link(blob, tmp_path / "other-name")
    elif how == "fifo":
        os.mkfifo(blob)
    elif how == "folder":
        blob.mkdir()
    refused(layout, tmp_path)


@pytest.mark.parametrize("which", ["manifest", "config"])
@pytest.mark.parametrize("how", ["flip", "missing", "symlink"])
def test_a_damaged_manifest_or_config(layout: Path, tmp_path: Path, which: str, how: str) -> None:
    bundle = read_bundle(layout)
    digest = bundle.digest if which == "manifest" else json.loads(bundle.manifest)["config"]["digest"]
    blob = blob_of(layout, digest)
    data = blob.read_bytes()
    if how == "flip":
        blob.write_bytes(data.replace(b"layers", b"Layers"))
    else:
        blob.rename(tmp_path / "moved")
        if how == "symlink":
            blob.symlink_to(tmp_path / "moved")
    refused(layout, tmp_path)


@pytest.mark.parametrize("part", ["blobs", "blobs/sha256", "index.json", "oci-layout"])
@pytest.mark.parametrize("how", ["missing", "symlink"])
def test_parts_of_the_layout_that_are_absent_or_links(layout: Path, tmp_path: Path, part: str, how: str) -> None:
    (layout / part).rename(tmp_path / "moved")
    if how == "symlink":
        (layout / part).symlink_to(tmp_path / "moved")
    refused(layout, tmp_path)


BAD_DIGESTS = [
    "sha256:../../../etc/passwd", "sha256:../../secret", "../../../etc/passwd", "sha256:" + "0" * 63, "sha256:" + "G" * 64,
    "sha512:" + "0" * 64, "sha256:" + "0" * 64 + "\n", "", None, 7, ["sha256"],
]  # fmt: skip


@pytest.mark.parametrize("digest", BAD_DIGESTS)
@pytest.mark.parametrize("where", ["layer", "config", "index"])
def test_digests_that_are_none(layout: Path, tmp_path: Path, digest: Any, where: str) -> None:
    if where == "index":
        index = json.loads((layout / "index.json").read_bytes())
        index["manifests"][0]["digest"] = digest
        (layout / "index.json").write_text(json.dumps(index))
    elif where == "layer":
        rewritten(layout, lambda m: m["layers"][0].update(digest=digest))
    else:
        manifest = json.loads(read_bundle(layout).manifest)
        manifest["config"]["digest"] = digest
        index = json.loads((layout / "index.json").read_bytes())
        index["manifests"][0] |= put(layout, canonical_json(manifest))
        (layout / "index.json").write_bytes(canonical_json(index))
    refused(layout, tmp_path, "digest")


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../secret", "a//b", "./x", ".hidden", "a/.git/x", "a\\b", "a\0b", "", "a" * 200,
                                  "a/b/c/d/e", "x\n", "oci-manifest.json", "MODEL.onnx", "model.onnx/x", "ünï", None, 3, ["x"]])  # fmt: skip
def test_file_names_that_are_not_plain(layout: Path, tmp_path: Path, name: Any) -> None:
    def change(manifest: dict[str, Any]) -> None:
        layer = next(x for x in manifest["layers"] if x["annotations"]["org.cncf.model.filepath"] == "model.onnx.data")
        layer["annotations"]["org.cncf.model.filepath"] = name

    rewritten(layout, change)
    refused(layout, tmp_path, "file name|file and a folder")


EXTRA = {"org.cncf.model.filepath": "x", "other": "y"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(subject={}), "keys"),
        (lambda m: m.update(annotations={}), "keys"),
        (lambda m: m["config"].update(urls=["http://evil"]), "keys"),
        (lambda m: m["layers"][0].update(urls=["http://evil"]), "keys"),
        (lambda m: m["layers"][0].update(data="aGk="), "keys"),
        (lambda m: m["layers"][0].update(annotations=EXTRA), "keys"),
        (lambda m: m["layers"][0].update(annotations=[]), "annotations"),
        (lambda m: m["layers"][0].pop("annotations"), "keys"),
        (lambda m: m["layers"][0].pop("size"), "keys"),
        (lambda m: m.pop("config"), "keys"),
        (lambda m: m.update(schemaVersion=1), "kind"),
        (lambda m: m.update(mediaType="application/vnd.docker.distribution.manifest.v2+json"), "kind"),
        (lambda m: m.update(artifactType="application/x-other"), "kind"),
        (lambda m: m["layers"][0].update(mediaType="application/vnd.cncf.model.weight.v1.tar"), "media type"),
        (lambda m: m["layers"][0].update(mediaType="application/octet-stream"), "media type"),
        (lambda m: m["layers"][0].update(mediaType=None), "media type"),
        (lambda m: m["config"].update(mediaType="application/json"), "media type"),
        (lambda m: m["layers"][0].update(size=2**62), "declares"),
        (lambda m: m["layers"][0].update(size=-1), "size"),
        (lambda m: m["layers"][0].update(size=True), "size"),
        (lambda m: m["layers"][0].update(size=1.5), "size"),
        (lambda m: m["layers"][0].update(size="10"), "size"),
        (lambda m: m["layers"][0].update(size=m["layers"][0]["size"] + 1), "bytes, expected"),
        (lambda m: m.update(layers=[]), "list of"),
        (lambda m: m.update(layers={}), "list of"),
        (lambda m: m.update(layers=[7]), "no object"),
        (lambda m: m.update(layers=m["layers"][:2]), "no "),
        (lambda m: m.update(layers=m["layers"] + m["layers"][:1]), "twice"),
    ],
)
def test_forged_manifests(layout: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], match: str) -> None:
    rewritten(layout, change)
    refused(layout, tmp_path, match)


@pytest.mark.parametrize(
    "config",
    [
        lambda c: c["modelfs"].update(diffIds=[]),
        lambda c: c["modelfs"]["diffIds"].reverse(),
        lambda c: c.update(more=1),
        lambda c: c.pop("modelfs"),
    ],
)
def test_forged_configs(layout: Path, tmp_path: Path, config: Callable[[dict[str, Any]], object]) -> None:
    rewritten(layout, lambda _: None, config=config)
    refused(layout, tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "null", '{"schemaVersion": 2}', "[" * 100_000, '{"a": NaN}', "\ud800".encode("utf-8", "surrogatepass"),
     '{"schemaVersion": 2, "schemaVersion": 2, "mediaType": "x", "manifests": []}',
     '{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}',
     '{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": {}}',
     " " * (2 << 20)],
)  # fmt: skip
def test_forged_indexes(layout: Path, tmp_path: Path, text: str | bytes) -> None:
    (layout / "index.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(layout, tmp_path)


def test_two_models_in_one_index_are_refused_unless_the_digest_is_given(layout: Path, tmp_path: Path) -> None:
    first = bundle_digest(layout)
    second = build_layout(make_parts(tmp_path / "other", card={"name": "second"}), tmp_path / "more")
    shutil.copytree(tmp_path / "more" / "blobs", layout / "blobs", dirs_exist_ok=True)
    index, more = (json.loads((folder / "index.json").read_bytes()) for folder in (layout, tmp_path / "more"))
    index["manifests"] += more["manifests"]
    (layout / "index.json").write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match="names 2 models"):
        bundle_digest(layout)
    for digest in (first, second):
        assert unpack(layout, tmp_path / "bundles", expected=digest).name == digest[7:]


def test_a_swapped_index_changes_nothing_when_the_digest_is_given(layout: Path, tmp_path: Path) -> None:
    digest = bundle_digest(layout)
    rewritten(layout, lambda m: m["layers"].reverse())
    assert bundle_digest(layout) != digest
    assert unpack(layout, tmp_path / "bundles", expected=digest).name == digest[7:]
    with pytest.raises(IntegrityError, match="cannot be read"):
        unpack(layout, tmp_path / "bundles", expected="sha256:" + "0" * 64)
    with pytest.raises(IntegrityError, match="digest"):
        unpack(layout, tmp_path / "bundles", expected="sha256:../../secret")


def test_caps(layout: Path, tmp_path: Path) -> None:
    for limits, match in [
        (BundleLimits(layers=2), "list of"),
        (BundleLimits(layer_size_bytes=100), "declares"),
        (BundleLimits(total_size_bytes=5000), "layers declare"),
        (BundleLimits(manifest_size_bytes=10), "declares"),
        (BundleLimits(index_size_bytes=10), "index.json"),
    ]:
        refused(layout, tmp_path, match, limits=limits)


def test_too_little_space_is_said_before_copying(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(StoreError, match=r"needs .* bytes, 1 are free"):
        unpack(layout, tmp_path / "bundles")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_single_flipped_bit_is_noticed(layout: Path, tmp_path: Path, data: st.DataObject) -> None:
    digest = bundle_digest(layout)
    blobs = sorted((layout / "blobs" / "sha256").iterdir())
    blob = data.draw(st.sampled_from(blobs))
    good = blob.read_bytes()
    at, bit = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 7))
    blob.write_bytes(good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :])
    try:
        with pytest.raises(IntegrityError):
            unpack(layout, tmp_path / "bundles", expected=digest)
        assert not (tmp_path / "bundles" / digest[7:]).exists()
    finally:
        blob.write_bytes(good)


UNPACK = "import sys; from pathlib import Path; from orchestrator.bundle.unpack import unpack; print(unpack(Path(sys.argv[1]), Path(sys.argv[2])))"


def test_kill_at_every_fault_point_then_again(layout: Path, tmp_path: Path) -> None:
    for point in ("bundle.unpack.copied", "bundle.unpack.placed"):
        root, log = tmp_path / point, tmp_path / f"{point}.log"
        env = {**os.environ, "ORCHESTRATE_FAULT": f"{point}:kill", "ORCHESTRATE_FAULT_LOG": str(log)}
        argv = [sys.executable, "-c", UNPACK, str(layout), str(root)]
        assert subprocess.run(argv, env=env, check=False).returncode == -9
        assert log.read_text().splitlines()[-1] == f"{point} fired"
        folder = unpack(layout, root)
        open_unpacked(folder)
        if point.endswith("copied"):
            assert {path.name for path in root.iterdir()} == {folder.name, ".lock"}


def test_four_processes_unpacking_at_once_agree(layout: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", UNPACK, str(layout), str(tmp_path / "bundles")]
    children = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({child.communicate(timeout=60)[0] for child in children}) == 1
    assert [child.returncode for child in children] == [0] * 4


def test_reading_a_bundle_needs_neither_torch_nor_onnx() -> None:
    code = "import sys, orchestrator.bundle.unpack, orchestrator.bundle.oci; print([n for n in ('torch', 'onnx', 'ray', 'mlflow', 'sqlalchemy') if n in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
