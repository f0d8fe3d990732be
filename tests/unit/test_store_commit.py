"""The store: whole or absent, idempotent, read-only, and it notices every change."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.bundle.store import Store
from orchestrator.core.errors import IntegrityError, StoreError, UserCodeError
from orchestrator.core.manifest import MANIFEST_NAME

TYPE = "application/vnd.orchestrate.files.v1"
FINGERPRINT = "sha256:" + "ab" * 32
CONTENT = {"a.txt": b"alpha", "sub/b.bin": bytes(range(256)), "empty": b""}


def folder_of(base: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    base.mkdir(parents=True, exist_ok=True)
    return base


def test_commit_moves_the_files_makes_them_read_only_and_names_them_by_content(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder = folder_of(tmp_path / "out", CONTENT)

    manifest = store.commit(folder, TYPE)

    placed = store.path(manifest.digest)
    assert {p: (placed / p).read_bytes() for p in CONTENT} == CONTENT
    assert placed == tmp_path / "store" / "artifacts" / manifest.digest[7:9] / manifest.digest[7:]
    modes = {stat.S_IMODE(p.stat().st_mode) for p in placed.rglob("*") if p.is_file()}
    assert modes == {0o444}
    assert not folder.exists()
    assert list((tmp_path / "store" / "temp").iterdir()) == []


def test_committing_the_same_content_again_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = store.commit(folder_of(tmp_path / "one", CONTENT), TYPE)
    inode = (store.path(first.digest) / "a.txt").stat().st_ino

    second = store.commit(folder_of(tmp_path / "two", CONTENT), TYPE)

    assert first == second
    assert (store.path(first.digest) / "a.txt").stat().st_ino == inode
    assert list((tmp_path / "store" / "temp").iterdir()) == []


def test_committing_again_heals_a_damaged_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = store.commit(folder_of(tmp_path / "one", CONTENT), TYPE).digest
    victim = store.path(digest) / "a.txt"
    victim.chmod(0o644)
    victim.write_bytes(b"ALPHA")

    store.commit(folder_of(tmp_path / "two", CONTENT), TYPE)

    store.verify(digest, content=True)


def test_a_hard_linked_file_is_copied_so_that_its_other_name_cannot_change_the_artifact(tmp_path: Path) -> None:
    store, folder = Store(tmp_path / "store"), folder_of(tmp_path / "out", CONTENT)
    os.link(folder / "a.txt", tmp_path / "elsewhere")

    digest = store.commit(folder, TYPE).digest
    (tmp_path / "elsewhere").write_bytes(b"later")

    store.verify(digest, content=True)
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) != 0o444


def test_a_folder_on_another_file_system_is_copied(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    source = folder_of(other / f"orchestrate-test-{os.getpid()}", CONTENT)
    store = Store(tmp_path / "store")
    try:
        digest = store.commit(source, TYPE).digest
        assert store.verify(digest, content=True).size_bytes == 261
    finally:
        subprocess.run(["rm", "-r", str(source)], check=True)


@pytest.mark.parametrize("kind", ["link", "fifo", "reserved", "absent", "linked folder"])
def test_commit_refuses_what_is_not_plain_files(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path / "out", {} if kind == "absent" else CONTENT)
    if kind == "link":
        (folder / "l").symlink_to("/etc/hostname")
    elif kind == "fifo":
        os.mkfifo(folder / "f")
    elif kind == "reserved":
        (folder / MANIFEST_NAME).write_text("{}")
    elif kind == "absent":
        folder = tmp_path / "nowhere"
    else:
        (tmp_path / "alias").symlink_to(folder)
        folder = tmp_path / "alias"

    with pytest.raises(UserCodeError):
        Store(tmp_path / "store").commit(folder, TYPE)


@pytest.mark.parametrize("digest", ["sha256:../../etc", "", "sha256:" + "A" * 64, "sha256:" + "0" * 64])
def test_unknown_and_malformed_digests_are_typed_errors(tmp_path: Path, digest: str) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(StoreError):
        store.path(digest)
    assert not store.has(digest)


def damage(folder: Path, how: str, where: int) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    victim = files[where % len(files)]
    victim.chmod(0o644)
    data = victim.read_bytes()
    if how == "missing":
        victim.unlink()
    elif how == "extra":
        (folder / "more.txt").write_bytes(b"x")
    elif how == "symlink":
        victim.rename(folder.parent / "moved")
        victim.symlink_to(folder.parent / "moved")
    elif how == "truncate":
        victim.write_bytes(data[: len(data) // 2] if data else b"x")
    else:
        at = where % max(len(data), 1)
        victim.write_bytes(data[:at] + bytes([(data[at] if data else 0) ^ 1]) + data[at + 1 :])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(how=st.sampled_from(["flip", "truncate", "missing", "extra", "symlink"]), where=st.integers(0, 10_000))
def test_verify_notices_every_change(tmp_path_factory: pytest.TempPathFactory, how: str, where: int) -> None:
    base = tmp_path_factory.mktemp("damage")
    store = Store(base / "store")
    digest = store.commit(folder_of(base / "out", CONTENT), TYPE).digest
    damage(store.path(digest), how, where)

    with pytest.raises(IntegrityError):
        Store(base / "store").verify(digest, content=True)
    with pytest.raises(IntegrityError):
        Store(base / "store").path(digest)
    assert store.has(digest) is (how == "flip") or how in {"flip", "truncate"}


def test_results_survive_and_damage_counts_as_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.result(FINGERPRINT) is None
    store.put_result(FINGERPRINT, {"outputs": {"onnx": "sha256:" + "0" * 64}, "metrics": {"x": 0.5}})
    assert store.result(FINGERPRINT) == {"outputs": {"onnx": "sha256:" + "0" * 64}, "metrics": {"x": 0.5}}

    path = tmp_path / "store" / "results" / f"{'ab' * 32}.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    assert store.result(FINGERPRINT) is None
    assert not path.exists()

    store.put_result(FINGERPRINT, {})
    store.drop_result(FINGERPRINT)
    store.drop_result(FINGERPRINT)
    assert store.result(FINGERPRINT) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"result": 1, "digest": 2}', "[" * 100_000, "\x00"])
def test_a_garbage_result_counts_as_none(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path / "store")
    store.put_result(FINGERPRINT, {})
    (tmp_path / "store" / "results" / f"{'ab' * 32}.json").write_text(text)
    assert store.result(FINGERPRINT) is None


def test_a_result_of_another_fingerprint_under_this_name_counts_as_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.put_result(FINGERPRINT, {"a": 1})
    other = "sha256:" + "cd" * 32
    (tmp_path / "store" / "results" / f"{'ab' * 32}.json").rename(tmp_path / "store" / "results" / f"{'cd' * 32}.json")
    assert store.result(other) is None


def test_a_result_with_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not JSON"):
        Store(tmp_path / "store").put_result(FINGERPRINT, {"x": float("nan")})


def test_gc_keeps_what_is_kept_and_what_is_young_and_drops_results_of_the_rest(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    kept, old, young = (store.commit(folder_of(tmp_path / n, {"f": n.encode()}), TYPE).digest for n in ("a", "b", "c"))
    for digest in (kept, old):
        os.utime(store.path(digest) / MANIFEST_NAME, (0, time.time() - 1000))
    store.put_result(FINGERPRINT, {"outputs": {"x": old}})
    store.put_result("sha256:" + "cd" * 32, {"outputs": {"x": kept}})
    (tmp_path / "store" / "temp" / "dead").mkdir()
    os.utime(tmp_path / "store" / "temp" / "dead", (0, 0))

    removed = store.gc({kept}, older_than_s=100)

    assert [(r.kind, r.name) for r in removed] == [("artifact", old), ("result", FINGERPRINT), ("temp", "dead")]
    assert store.has(kept)
    assert store.has(young)
    assert not store.has(old)
    assert store.result("sha256:" + "cd" * 32) is not None
    assert store.gc({kept, young}, older_than_s=0) == []


def test_committing_again_makes_an_old_artifact_young(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = store.commit(folder_of(tmp_path / "one", CONTENT), TYPE).digest
    os.utime(store.path(digest) / MANIFEST_NAME, (0, 0))
    store.commit(folder_of(tmp_path / "two", CONTENT), TYPE)
    assert store.gc((), older_than_s=100) == []


COMMIT = """
import sys
from pathlib import Path
from orchestrator.bundle.store import Store
store = Store(Path(sys.argv[1]))
digest = store.commit(Path(sys.argv[2]), "t").digest
store.put_result("sha256:" + "ab" * 32, {"d": digest})
print(digest)
"""


def run_commit(tmp_path: Path, out: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", COMMIT, str(tmp_path / "store"), str(out)]
    return subprocess.run(argv, env={**os.environ, **extra}, capture_output=True, text=True, timeout=60)


def test_kill_at_every_fault_point_then_the_same_again_ends_in_the_same_state(tmp_path: Path) -> None:
    log = tmp_path / "points"
    expected = run_commit(tmp_path, folder_of(tmp_path / "first", CONTENT), ORCHESTRATE_FAULT_LOG=str(log))
    points = log.read_text().split()
    assert points == [
        *(f"store.commit.{p}" for p in ("taken", "hashed", "sealed", "published")),
        *(f"store.result.{p}" for p in ("before", "after")),
    ]
    for number, point in enumerate(points):
        base, fired = tmp_path / str(number), tmp_path / f"fired{number}"
        arm = {"ORCHESTRATE_FAULT": f"{point}:kill", "ORCHESTRATE_FAULT_LOG": str(fired)}
        killed = run_commit(base, folder_of(base / "one", CONTENT), **arm)
        assert killed.returncode == -9
        assert fired.read_text().splitlines()[-1] == f"{point} fired"

        again = run_commit(base, folder_of(base / "two", CONTENT))

        assert again.stdout == expected.stdout, again.stderr
        store, digest = Store(base / "store"), again.stdout.strip()
        store.verify(digest, content=True)
        assert store.result(FINGERPRINT) == {"d": digest}
        store.gc({digest}, older_than_s=0)
        assert list((base / "store" / "temp").iterdir()) == []


def test_four_processes_committing_the_same_content_agree(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", COMMIT, str(tmp_path / "store")]
    folders = [folder_of(tmp_path / str(n), CONTENT) for n in range(4)]
    children = [subprocess.Popen([*argv, str(f)], stdout=subprocess.PIPE, text=True) for f in folders]
    answers = {child.communicate(timeout=60)[0].strip() for child in children}
    assert [child.returncode for child in children] == [0] * 4
    assert len(answers) == 1
    Store(tmp_path / "store").verify(answers.pop(), content=True)


def test_a_disk_that_refuses_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the store should be")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "store").commit(folder_of(tmp_path / "out", CONTENT), TYPE)


def test_the_store_imports_nothing_heavy() -> None:
    code = "import sys, orchestrator.bundle.store; print(sorted({m.split('.')[0] for m in sys.modules}))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not [n for n in ("numpy", "torch", "onnx", "fsspec", "ray", "mlflow", "sqlalchemy") if f"'{n}'" in names]
