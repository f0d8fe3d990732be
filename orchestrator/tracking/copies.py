"""Copies of model files in MLflow, so that `models:/name@alias` loads; the manifest goes last, then the model is READY."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from orchestrator.core.digests import sha256_file
from orchestrator.core.errors import IntegrityError
from orchestrator.core.ids import new_token
from orchestrator.core.manifest import MANIFEST_NAME, Manifest
from orchestrator.tracking.call import Call, Record
from orchestrator.tracking.flavor import FLAVOR_FILES, write_onnx_flavor
from orchestrator.tracking.snapshot import ArtifactRef

REPORT_MAX_BYTES: Final = 16 << 20


def put_model_files(call: Call, record: Record, ref: ArtifactRef) -> bool:
    """Copy an artifact's files into its LoggedModel and finish it; True when it is READY.

    The files are copied as they are, so that their digests still match the manifest. For ONNX, MLflow's description of
    the model (MLmodel and its environment files) is added beside them.
    """
    if "ready" in record.sent:
        return True
    status, location = call.session.run(f"look at {record.key}", lambda c: _look(c, record.id))
    if status == "READY":
        record.sent["ready"] = 1
        return True
    folder = ref.path
    if folder is None:
        call.refused.append(f"{record.key}: its files are not on this machine, so that MLflow has no copy")
        return False
    try:
        manifest = Manifest.read(folder)
        manifest.verify(folder, content=False)
    except IntegrityError as error:
        call.refused.append(f"{record.key}: {error.message}")
        return False
    _copy_all(call, record, ref, folder, manifest, location)
    call.session.run(f"finish {record.key}", lambda c: c.finalize_logged_model(record.id, "READY"))
    record.sent["ready"] = 1
    return True


def _look(client: Any, model_id: str) -> tuple[str, str]:
    model = client.get_logged_model(model_id)
    return str(getattr(model.status, "value", model.status)), model.artifact_location


def _copy_all(call: Call, record: Record, ref: ArtifactRef, folder: Path, manifest: Manifest, location: str) -> None:
    for file in manifest.files:
        _put(call, record, folder / file.path, file.path, file.sha256, location)
    if ref.kind in {"onnx", "twin"}:
        with tempfile.TemporaryDirectory(prefix="orchestrate-tracking-") as temp:
            made = Path(temp)
            call.session.run(f"describe {record.key}", lambda _: write_onnx_flavor(folder, made, record.id))
            for name in FLAVOR_FILES:
                if (made / name).exists():
                    _put(call, record, made / name, name, sha256_file(made / name), location)
    _put(call, record, folder / MANIFEST_NAME, MANIFEST_NAME, manifest.digest, location)


def _put(call: Call, record: Record, source: Path, path: str, digest: str, location: str) -> None:
    """Copy one file unless it was copied before; stored at once, because files may be large and the budget small."""
    aspect = f"file {path}"
    if record.sent.get(aspect) == digest[-12:]:
        return
    what = f"{path} of {record.key} {digest}"
    local = _local_folder(location)
    if local is not None and not call.session.is_server:
        call.session.run_upload(what, lambda _: _copy_file(source, local / path))
    else:
        parent = Path(path).parent.as_posix()
        call.session.run_upload(
            what, lambda c: c.log_model_artifact(record.id, str(source), None if parent == "." else parent)
        )
    record.sent[aspect] = digest[-12:]
    call.memory.save(record)


def _local_folder(location: str) -> Path | None:
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if parts.scheme in {"", "file"} else None


def _copy_file(source: Path, target: Path) -> None:
    """Whole or absent, and writable: MLflow's own copy would be torn by a kill and keep the store's read-only mode."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = target.with_name(f".{target.name}.{new_token(4)}.tmp")
    try:
        shutil.copyfile(source, temp)
        temp.replace(target)
    finally:
        temp.unlink(missing_ok=True)
