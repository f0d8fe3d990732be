"""Variants: digests checked, nothing extra, and nothing that pretends to be compiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.bundle.store import Store
from orchestrator.bundle.variant import VARIANT, Variant, read_variant, write_variant
from orchestrator.core.errors import IntegrityError

BUNDLE = "sha256:" + "ab" * 32


def written(folder: Path, **more: Any) -> Variant:
    folder.mkdir(parents=True)
    (folder / "model.om").write_bytes(b"IMOD")
    (folder / "weight").mkdir()
    (folder / "weight/part").write_bytes(b"w")
    fields: dict[str, Any] = {
        "bundle": BUNDLE, "target": "npu", "format": "om", "soc": "Ascend310P3", "precision": "fp16", "runtime": "om",
        "rehearsal": False, "compiled": True,
        "toolchain": {"name": "atc", "version": "8.1.RC1"},
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}], "gears": [{"batch": 1}, {"batch": 4}],
    }  # fmt: skip
    return write_variant(Variant(folder, **{**fields, **more}))


def test_round_trip(tmp_path: Path) -> None:
    made = written(tmp_path / "v")
    assert read_variant(tmp_path / "v") == made
    assert read_variant(tmp_path / "v", content=False).digest == made.digest
    assert (made.compiled, made.rehearsal, made.skipped) == (True, False, None)
    again = written(tmp_path / "w")
    assert again.digest == made.digest, "no times and no paths"


def test_from_a_store(tmp_path: Path) -> None:
    made = written(tmp_path / "v")
    store = Store(tmp_path / "store")
    manifest = store.commit(tmp_path / "v", VARIANT)
    assert read_variant(store.path(manifest.digest)).digest == made.digest


def test_the_twin_says_that_it_stands_in(tmp_path: Path) -> None:
    made = written(tmp_path / "v", runtime="twin", skipped="no ATC here", compiled=False, rehearsal=True)
    assert (made.compiled, made.rehearsal) == (False, True)
    with pytest.raises(IntegrityError, match="do not go together"):
        written(tmp_path / "w", runtime="twin")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "model.om").write_bytes(b"IMOX"), "has content"),
        (lambda f: (f / "model.om").write_bytes(b"longer"), "another size"),
        (lambda f: (f / "weight/part").unlink(), "missing"),
        (lambda f: (f / "extra").write_bytes(b""), "unexpected"),
        (lambda f: (f / "variant.json").unlink(), "no readable"),
        (lambda f: (f / "variant.json").write_bytes(b'{"a": 1, "a": 2}'), "no valid JSON"),
        (lambda f: edit(f, schema=2), "schema"),
        (lambda f: edit(f, bundle="sha256:12"), "no digest"),
        (lambda f: edit(f, runtime="magic"), "unknown"),
        (lambda f: edit(f, compiled=False), "do not go together"),
        (lambda f: edit(f, surprise=1), "does not know"),
        (lambda f: edit(f, gears=None), "malformed"),
        (lambda f: edit(f, files=[{"path": "../x", "size_bytes": 1, "sha256": BUNDLE}]), "unsafe path"),
    ],
)  # fmt: skip
def test_damage(tmp_path: Path, change: Any, says: str) -> None:
    written(tmp_path / "v")
    change(tmp_path / "v")
    with pytest.raises(IntegrityError, match=says):
        read_variant(tmp_path / "v")


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "variant.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_without_files(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="without files"):
        write_variant(Variant(tmp_path, BUNDLE, "npu", "om", None, "fp16", "om", {}, False, True))
