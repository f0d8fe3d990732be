"""Digests, manifests, atomic files, units, names, errors, redaction: the ground floor."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import errors, redact, units
from orchestrator.core.digests import canonical_json, hex_of, is_digest, sha256_bytes, sha256_file, sha256_json
from orchestrator.core.errors import GateError, IntegrityError, UsageError, error_from_json
from orchestrator.core.files import write_atomic
from orchestrator.core.ids import check_name, is_name, new_execution_id
from orchestrator.core.manifest import Manifest
from orchestrator.core.processes import ProcessIdentity, end_processes, pids_with_environment

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_canonical_json_is_one_form_that_reads_back(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


def test_canonical_json_refuses_nan():
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"x": math.nan})


@given(st.dictionaries(st.text(max_size=4), st.integers(), max_size=6))
def test_digest_ignores_key_order(value):
    assert sha256_json(value) == sha256_json(dict(reversed(list(value.items()))))


def test_digests_are_checked():
    digest = sha256_bytes(b"x")
    assert is_digest(digest)
    assert len(hex_of(digest)) == 64
    for bad in ("sha256:../../etc", "sha256:" + "A" * 64, "x", ""):
        assert not is_digest(bad)
        with pytest.raises(ValueError, match="not a sha256 digest"):
            hex_of(bad)


def test_atomic_write_leaves_no_temp_file_when_it_fails(tmp_path: Path):
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError, match=r"."):
        write_atomic(target, b"a folder is in the way")
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"aaaa")
    (folder / "sub" / "b.bin").write_bytes(b"bbbb")
    Manifest.of_folder(folder, "type/x").write(folder)
    return folder


def test_manifest_names_content_not_place(artifact: Path, tmp_path: Path):
    other = tmp_path / "other"
    artifact.rename(other)
    assert Manifest.of_folder(other, "type/x").digest == Manifest.read(other).digest
    Manifest.read(other).verify(other)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "a.bin").write_bytes(b"aaab"), "has content"),
        (lambda f: (f / "a.bin").write_bytes(b"aaa"), "3 bytes, expected 4"),
        (lambda f: (f / "a.bin").unlink(), "missing files"),
        (lambda f: (f / "extra").write_bytes(b""), "unexpected files"),
        (lambda f: ((f / "a.bin").unlink(), (f / "a.bin").symlink_to("/etc/passwd")), "not a regular file"),
        (lambda f: (f / "manifest.json").write_text("{"), "no readable manifest"),
        (lambda f: (f / "manifest.json").unlink(), "no readable manifest"),
        (
            lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text().replace("a.bin", "../a")),
            "unsafe path",
        ),
        (
            lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text().replace("type/x", "type/y")),
            "its content gives",
        ),
    ],
    ids=["flip", "truncate", "missing", "extra", "symlink", "torn", "none", "traversal", "edited"],
)
def test_damaged_artifact_is_refused(artifact: Path, damage, message: str):
    damage(artifact)
    with pytest.raises(IntegrityError, match=message):
        Manifest.read(artifact).verify(artifact)


def test_file_digest_reads_in_pieces(tmp_path: Path):
    path = tmp_path / "big"
    path.write_bytes(b"0123456789" * 300_000)
    assert sha256_file(path) == sha256_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), (7, 7), (1.5, 1.5)]
)
def test_durations(text, seconds):
    assert units.parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "5 m", "-3s", "1h30", -1])
def test_bad_durations(text):
    with pytest.raises(ValueError, match=r"duration"):
        units.parse_duration_s(text)


def test_sizes_and_their_words():
    assert units.parse_size_bytes("64MiB") == 64 << 20
    assert units.format_bytes(4 << 20) == "4.0 MiB"
    assert units.format_bytes(12) == "12 B"
    assert [units.format_duration(s) for s in (0.311, 42, 185, 7800)] == ["0.31s", "42s", "3m 05s", "2h 10m"]


@pytest.mark.parametrize("name", ["a", "digits", "a.b-c_d9", "0"])
def test_names(name):
    assert check_name(name, "recipe") == name


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a/b", "a b", "$(id)", "x" * 65, "a\n"])
def test_bad_names(name):
    assert not is_name(name)
    with pytest.raises(UsageError, match="not a valid name"):
        check_name(name, "recipe")


def test_execution_ids_sort_by_time():
    ids = [new_execution_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert sorted(ids, key=lambda i: i[:9]) == ids
    assert all(is_name(i) for i in ids)


def test_every_error_family_travels():
    for family in errors._families().values():
        error = family("what", hint="fix", place="here", details={"n": 1})
        back = error_from_json(json.loads(json.dumps(error.to_json())))
        assert type(back) is family
        assert (back.message, back.hint, back.place, back.details) == ("what", "fix", "here", {"n": 1})
        assert back.exit_code in {1, 2, 3, 4, 5, 6, 130}
    assert str(GateError("m", hint="h", place="p")) == "p: m\n  fix: h"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer CANARY123456",
        "https://user:CANARY123456@host/x",
        "https://host/x?sig=CANARY123456",
        "token=CANARY123456",
        "password: CANARY123456",
        "--api-key CANARY123456",
    ],
)
def test_secrets_are_masked_by_form(text):
    assert "CANARY123456" not in redact.redact_text(text)


def test_secrets_are_masked_by_key_and_value():
    redact.remember_secret("plain-secret-value")
    masked = redact.redact({"a": ["plain-secret-value"], "db_password": "short", "token_path": "/a/b", "n": 1})
    assert masked == {"a": ["***"], "db_password": "***", "token_path": "/a/b", "n": 1}
    record = logging.LogRecord("x", 20, "f", 1, "said %s", ("plain-secret-value",), None)
    assert redact.RedactingFilter().filter(record)
    assert record.getMessage() == "said ***"


@pytest.mark.parametrize("key", ["hf_token", "authToken", "API-KEY", "db_password", "params.api_key", "tokens"])
def test_secret_names(key):
    assert redact.redact({key: "value-of-it"}) == {key: "***"}


@pytest.mark.parametrize("key", ["tokenizer", "keyboard", "secretary", "monkey", "max_length"])
def test_names_that_only_look_secret(key):
    assert redact.redact({key: "value-of-it"}) == {key: "value-of-it"}


def test_processes_are_told_apart_and_ended():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={"MARK_OF_TEST": "abc123"})
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    assert identity.alive()
    assert not ProcessIdentity(child.pid, identity.started_ticks + 1).alive()
    while child.pid not in pids_with_environment("MARK_OF_TEST", "abc123"):
        assert child.poll() is None
    assert end_processes([child.pid], grace_s=2) == []
    assert child.wait() == -15


def test_nothing_is_reported_and_no_device_id_is_left_in_home(tmp_path: Path) -> None:
    code = "import orchestrator, onnxruntime"
    clean = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    subprocess.run([sys.executable, "-c", code], env={**clean, "HOME": str(tmp_path)}, check=True, timeout=60)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
