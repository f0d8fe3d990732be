from __future__ import annotations

import math
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from support.ledger_samples import execution, rollout

from orchestrator.core.errors import LedgerError
from orchestrator.ledger import ExecutionUpdate, GenerationState, Ledger, Owner
from orchestrator.ledger.database import Database
from orchestrator.ledger.migrations import VERSION, prepare

DATA = Path(__file__).parent / "data"
V1 = DATA / "ledger-v1.sqlite"


def set_version(path: Path, version: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("update ledger_meta set value = ? where key = 'schema'", [version])
    connection.close()


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    return Path(shutil.copy(V1, tmp_path / "ledger.db"))


def test_a_ledger_of_version_1_opens_with_everything_in_it(v1: Path) -> None:
    with Ledger.open(f"sqlite:///{v1}") as ledger:
        latest = ledger.executions.latest("digits")
        assert latest is not None
        assert (latest.id, latest.git) == ("x1", {"commit": "0" * 40, "dirty": True})
        (step,) = ledger.executions.steps("x1")
        assert step.metrics["accuracy"] == 0.97
        assert math.isnan(step.metrics["loss"])
        assert [row.payload for row in ledger.executions.events()] == [{"name": "train"}]
        assert [row.value for row in ledger.executions.metrics("x1")] == [0.5]
        assert [row.size_bytes for row in ledger.artifacts.list("checkpoint")] == [7]
        assert [(g.number, g.state) for g in ledger.generations.list("digits")] == [
            (1, GenerationState.DRAINING),
            (2, GenerationState.LIVE),
        ]
        assert ledger.generations.stamp("local").version == 2
        assert ledger.projections.get("run/x1") == "mlflow-run"
        assert ledger.audit.verify().count == 5
        ledger.audit.append("ada", "note", "digits")
        assert ledger.audit.verify().count == 6


def test_a_ledger_of_version_3_opens_and_goes_on_with_rollouts(tmp_path: Path) -> None:
    path = Path(shutil.copy(DATA / "ledger-v3.sqlite", tmp_path / "ledger.db"))
    with Ledger.open(f"sqlite:///{path}") as ledger:
        known = ledger.generations.list("digits")
        assert [(g.number, g.state) for g in known] == [
            (1, GenerationState.DRAINING),
            (2, GenerationState.LIVE),
            (3, GenerationState.STAGED),
        ]
        assert known[2].builds[0]["soc"] == "Ascend310"
        stamp = ledger.generations.stamp("local")
        assert (stamp.version, stamp.slots, stamp.rollouts) == (2, {"digits": 2}, {})
        count = ledger.audit.verify().count
        lease = ledger.leases.acquire("endpoint/digits", Owner.here())
        begun = ledger.rollouts.begin(rollout(3, stable=2), lease)
        ledger.rollouts.add_evidence("digits", 3, [{"n": 1}], lease)
        assert ledger.generations.stamp("local").rollouts == {"digits": begun}
        ledger.generations.set_state("digits", 3, GenerationState.LIVE, lease, actor="ada", former=GenerationState.WARM)
        assert [g.state for g in ledger.generations.list("digits")] == [
            GenerationState.DRAINING,
            GenerationState.WARM,
            GenerationState.LIVE,
        ]
        assert ledger.audit.verify().count == count + 3


def test_a_newer_ledger_is_refused_with_both_versions(v1: Path) -> None:
    set_version(v1, "7")
    with pytest.raises(LedgerError, match=f"schema version 7, this program knows version {VERSION}") as caught:
        Ledger.open(f"sqlite:///{v1}")
    assert "upgrade" in caught.value.hint
    with sqlite3.connect(v1) as connection:
        assert connection.execute("select value from ledger_meta where key = 'schema'").fetchone() == ("7",)
    connection.close()


def test_an_unreadable_version_is_refused(v1: Path) -> None:
    set_version(v1, "one")
    with pytest.raises(LedgerError, match="reads 'one'"):
        Ledger.open(f"sqlite:///{v1}")


def test_an_older_ledger_is_brought_up_step_by_step_in_one_transaction(v1: Path) -> None:
    done: list[int] = []

    def to_2(connection: Connection) -> None:
        done.append(1)
        connection.execute(text("alter table ledger_steps add column host text"))

    def to_3(connection: Connection) -> None:
        done.append(2)
        connection.execute(text("update ledger_steps set host = 'here'"))

    def breaks(_connection: Connection) -> None:
        raise RuntimeError("power cut")

    database = Database(f"sqlite:///{v1}", busy_timeout_s=5)
    with pytest.raises(RuntimeError, match="power cut"):
        prepare(database, version=3, migrations={1: to_2, 2: breaks})
    with database.read() as connection:
        assert (
            "host"
            not in connection.execute(text("select sql from sqlite_master where name = 'ledger_steps'")).scalar_one()
        )
    done.clear()
    identity = prepare(database, version=3, migrations={1: to_2, 2: to_3})
    assert done == [1, 2]
    with database.read() as connection:
        assert connection.execute(text("select host from ledger_steps")).scalar_one() == "here"
    assert prepare(database, version=3, migrations={}) == identity
    database.close()
    set_version(v1, str(VERSION + 1))
    with pytest.raises(LedgerError, match=f"schema version {VERSION + 1}"):
        Ledger.open(f"sqlite:///{v1}")


@pytest.mark.parametrize(
    "url", ["", "not a url", "sqlite://", "sqlite:///:memory:", "mysql://user:secret1@host/db", "/tmp/x.db"]
)
def test_urls_that_cannot_hold_a_ledger_are_refused_with_an_example(url: str) -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger.open(url)
    assert "sqlite:////path/ledger.db" in caught.value.hint
    assert "secret1" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(LedgerError, match="file is not a database"):
        Ledger.open(f"sqlite:///{path}")
    assert path.read_bytes() == b"hello" * 1000


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot open the ledger"):
        Ledger.open(f"sqlite:///{tmp_path}/file/ledger.db")


def test_an_unreachable_server_is_an_error_without_the_password() -> None:
    with pytest.raises(LedgerError, match="refused") as caught:
        Ledger.open("postgresql://user:secret1@127.0.0.1:1/db")
    assert "secret1" not in str(caught.value)


def test_the_file_is_private_and_durable(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.db"
    with Ledger.open(f"sqlite:///{path}") as ledger:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with ledger._database.read() as connection:
            assert connection.execute(text("pragma journal_mode")).scalar_one() == "wal"
            assert connection.execute(text("pragma synchronous")).scalar_one() == 2
            assert connection.execute(text("pragma foreign_keys")).scalar_one() == 1


def test_a_ledger_opened_twice_by_a_process_loses_nothing_when_another_process_closes_it(tmp_path: Path) -> None:
    """To open it must not drop the locks of a ledger that is open already: the other would delete the log under it."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    look = (
        f"from orchestrator.ledger import Ledger\nwith Ledger.open({url!r}) as it: print(it.executions.get('x1').state)"
    )

    def seen_by_another() -> str:
        return subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.strip()

    with Ledger.open(url) as ledger:
        lease = ledger.leases.acquire("recipe/digits", Owner.here())
        ledger.executions.create(execution(), lease)
        Ledger.open(url).close()
        assert seen_by_another() == "running"
        ledger.executions.record(lease, execution=ExecutionUpdate(id="x1", state="succeeded"))
        assert seen_by_another() == "succeeded"


def test_opening_an_existing_ledger_is_quick(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    Ledger.open(url).close()
    times: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        Ledger.open(url).close()
        times.append(time.perf_counter() - started)
    assert min(times) < 0.03


def test_importing_brings_no_heavy_library() -> None:
    script = (
        "import sys, orchestrator.ledger\n"
        "heavy = {'ray', 'torch', 'onnx', 'mlflow', 'numpy', 'pydantic', 'psycopg'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env={**os.environ, "PYTHONPATH": ""})


def test_the_owner_describes_this_process() -> None:
    owner = Owner.here("test")
    assert owner.pid == os.getpid()
    assert not owner.surely_dead()
