"""A variant: a bundle made ready for one target, in a folder with `variant.json`, which names the bundle and every file.

Where there is no compiler the twin stands in: `rehearsal` is then true, `compiled` false and `skipped` says why, so that
nobody takes it for the real thing. `variant.json` holds no times and no paths; its digest is the variant's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, cast

from orchestrator.bundle.layout import strict_json
from orchestrator.core.digests import Digest, is_digest, sha256_json
from orchestrator.core.errors import IntegrityError
from orchestrator.core.files import write_json
from orchestrator.core.manifest import MANIFEST_NAME, Manifest

VARIANT: Final = "application/vnd.orchestrate.variant.v1"
VARIANT_JSON: Final = "variant.json"
SCHEMA: Final = 1

Runtime = Literal["om", "mindir", "onnx-cann", "onnx-cpu", "torch", "twin"]
RUNTIMES: Final = frozenset({"om", "mindir", "onnx-cann", "onnx-cpu", "torch", "twin"})
_HINT: Final = "compile the bundle again"
_LARGEST_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Variant:
    """A bundle for one target.

    Attributes:
        folder: Where the files are.
        bundle: Digest of the bundle that it was made from.
        target: Name of the recipe's target.
        format: `om`, `mindir`, `onnx` or `torch`: what was asked for.
        runtime: What loads the files that are here; `twin` where it is the rehearsal.
        precision: Mode of the target; the twin rounds like it.
        toolchain: `{name, version}` of what compiled it, or of what built the twin.
        rehearsal: Whether it only stands in for the device.
        compiled: Whether a compiler made the files for the target.
        skipped: Why it was not compiled; None where it was.
        inputs: `[{name, dtype, shape}]`; a text in a shape is a size that varies.
        outputs: Likewise.
        gears: Sizes that it was compiled for, `[{batch: 1}, {batch: 4}]`; `[{}]` where none varies.
        facts: Small facts of the compilation: command, host, warnings, buckets.
        files: The files with sizes and digests.
    """

    folder: Path
    bundle: str
    target: str
    format: str
    soc: str | None
    precision: str
    runtime: Runtime
    toolchain: Mapping[str, str]
    rehearsal: bool
    compiled: bool
    skipped: str | None = None
    inputs: Sequence[Mapping[str, Any]] = ()
    outputs: Sequence[Mapping[str, Any]] = ()
    gears: Sequence[Mapping[str, int]] = ({},)
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    files: Manifest = field(default_factory=lambda: Manifest(VARIANT, ()))

    @property
    def digest(self) -> Digest:
        """The variant's name: sha256 of the canonical JSON of `variant.json`."""
        return sha256_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the content of `variant.json`."""
        manifest = self.files.to_json()
        return {
            "schema": SCHEMA,
            "bundle": self.bundle,
            "target": self.target,
            "format": self.format,
            "soc": self.soc,
            "precision": self.precision,
            "toolchain": dict(self.toolchain),
            "runtime": self.runtime,
            "rehearsal": self.rehearsal,
            "compiled": self.compiled,
            "skipped": self.skipped,
            "inputs": [dict(item) for item in self.inputs],
            "outputs": [dict(item) for item in self.outputs],
            "gears": [dict(gear) for gear in self.gears],
            "facts": dict(self.facts),
            "files": manifest["files"],
        }


def write_variant(variant: Variant) -> Variant:
    """Write `variant.json` beside the files that lie in the variant's folder, as the last one; returns it with its files.

    Raises:
        IntegrityError: The folder holds nothing or something that is no regular file, or the variant pretends.
    """
    folder = variant.folder
    (folder / VARIANT_JSON).unlink(missing_ok=True)
    try:
        files = Manifest.of_folder(folder, VARIANT)
    except ValueError as error:
        raise IntegrityError(str(error), place=str(folder)) from error
    if not files.files:
        raise IntegrityError("a variant without files", place=str(folder), hint=_HINT)
    complete = replace(
        variant, files=files, inputs=tuple(variant.inputs), outputs=tuple(variant.outputs), gears=tuple(variant.gears)
    )
    _check(complete, str(folder))
    write_json(folder / VARIANT_JSON, complete.to_json())
    return complete


def read_variant(folder: Path, *, content: bool = True) -> Variant:
    """Read a variant and verify its files.

    Args:
        folder: As `write_variant` left it; a store's `manifest.json` may lie in it too.
        content: Hash the files; names and sizes are always checked.

    Raises:
        IntegrityError: It is absent, damaged, or a file is missing, extra or changed.
    """
    path = folder / VARIANT_JSON
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise _damaged(f"{VARIANT_JSON} has {path.stat().st_size} bytes", path)
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(f"no readable {VARIANT_JSON}: {error.strerror}", path) from error
    fields = strict_json(data, VARIANT_JSON)
    variant = _parse(folder, fields, path)
    present = Manifest(VARIANT, tuple(file for file in variant.files.files if file.path != VARIANT_JSON))
    described = Manifest.of_folder(folder, VARIANT) if content else present
    extra = (
        {file.path for file in described.files} - {file.path for file in present.files} - {VARIANT_JSON, MANIFEST_NAME}
    )
    if extra:
        raise _damaged(f"unexpected files {sorted(extra)[:5]}", path)
    found = {file.path: file for file in described.files}
    for file in present.files:
        here = folder / file.path
        if not here.is_file() or here.is_symlink() or here.stat().st_size != file.size_bytes:
            raise _damaged(f"{file.path} is missing or of another size", path)
        if content and found[file.path].sha256 != file.sha256:
            raise _damaged(f"{file.path} has content {found[file.path].sha256}, expected {file.sha256}", path)
    return variant


def _parse(folder: Path, fields: Mapping[str, Any], path: Path) -> Variant:
    if fields.get("schema") != SCHEMA:
        raise _damaged(f"schema {str(fields.get('schema'))[:20]!r}, this program reads {SCHEMA}", path)
    try:
        body = {"media_type": VARIANT, "files": fields["files"]}
        files = Manifest.from_json({**body, "digest": sha256_json(body)}, place=str(path))
        variant = Variant(
            folder, str(fields["bundle"]), str(fields["target"]), str(fields["format"]), fields["soc"],
            str(fields["precision"]), cast("Runtime", fields["runtime"]), dict(fields["toolchain"]),
            fields["rehearsal"] is True, fields["compiled"] is True, fields["skipped"], tuple(fields["inputs"]),
            tuple(fields["outputs"]), tuple(fields["gears"]), dict(fields["facts"]), files,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(f"a field is absent or malformed: {error}", path) from error
    if variant.to_json() != fields:
        raise _damaged("it has fields that this program does not know", path)
    _check(variant, str(path))
    return variant


def _check(variant: Variant, place: str) -> None:
    if not is_digest(variant.bundle):
        raise _damaged(f"bundle {variant.bundle[:80]!r} is no digest", place)
    if variant.runtime not in RUNTIMES:
        raise _damaged(f"runtime {str(variant.runtime)[:40]!r} is unknown", place)
    pretends = variant.compiled == (variant.skipped is not None) or (not variant.compiled and not variant.rehearsal)
    if pretends or (variant.runtime == "twin" and variant.compiled):
        raise _damaged(
            f"compiled {variant.compiled}, skipped {variant.skipped!r}, rehearsal {variant.rehearsal}, "
            f"runtime {variant.runtime} do not go together", place
        )  # fmt: skip


def _damaged(what: str, place: str | Path) -> IntegrityError:
    return IntegrityError(f"the variant is damaged: {what}", place=str(place), hint=_HINT)
