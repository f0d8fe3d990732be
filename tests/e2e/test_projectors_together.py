"""Short runs end before MLflow has seen them; their projectors overlap and still make everything once."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from support.project import Project

STEPS = "".join(f"  - {{name: s{i}, command: ['true']}}\n" for i in range(4))
DOUBLED = "select value, count(*) from tags where key = 'orch.key' group by value having count(*) > 1"


def test_overlapping_projectors_make_each_run_once(tmp_path: Path):
    project = Project(tmp_path)
    for name in ("one", "two", "three"):
        project.write(f"{name}.yaml", f"recipe: 1\nname: {name}\nsteps:\n{STEPS}")
        assert project.run("run", f"{name}.yaml", "--json").code == 0
    database = tmp_path / ".orchestrate" / "mlflow.db"
    deadline = time.monotonic() + 90
    while _count(database) < 15:
        assert time.monotonic() < deadline, "three executions with four steps each"
        time.sleep(0.2)
    time.sleep(2)  # whoever would make something twice is at it now
    assert _count(database) == 15
    with sqlite3.connect(database) as connection:
        assert connection.execute(DOUBLED).fetchall() == []


def _count(database: Path) -> int:
    try:
        with sqlite3.connect(database) as connection:
            return connection.execute("select count(*) from runs").fetchone()[0]
    except sqlite3.OperationalError:
        return 0  # MLflow has not made its tables yet
