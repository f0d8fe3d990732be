"""The same command line on a PostgreSQL ledger, as a team has it: two folders of state, one truth."""

from __future__ import annotations

from pathlib import Path

from support.postgres import PostgresServer, postgres_server  # noqa: F401  # a fixture
from support.project import Project

RECIPE = (
    'recipe: 1\nname: shared\nsteps:\n  - {name: a, command: ["true"]}\n  - {name: b, command: ["true"], needs: [a]}\n'
)


def on(folder: Path, url: str) -> Project:
    project = Project(folder)
    project.write("recipe.yaml", RECIPE)
    project.write(
        "team.yaml",
        "environment: 1\ntracking: {uri: none}\n"
        f"ledger: {{url: '{url}'}}\nsites: {{local: {{kind: local, allow_cpu: true}}}}\n",
    )
    return project


def test_two_people_share_one_ledger(tmp_path: Path, postgres_server: PostgresServer):  # noqa: F811
    url = postgres_server.database()
    ann, bob = on(tmp_path / "ann", url), on(tmp_path / "bob", url)
    first = ann.run("run", "recipe.yaml", "-e", "team.yaml", "--json")
    assert first.code == 0, first.err + first.out
    second = ann.run("run", "recipe.yaml", "-e", "team.yaml", "--json")
    assert {step["action"] for step in second.result["steps"]} == {"REUSE"}
    listed = bob.run("status", "-e", "team.yaml", "--json").result["executions"]
    assert [row["execution"] for row in listed] == [second.result["execution"], first.result["execution"]]
    plan = bob.run("plan", "recipe.yaml", "-e", "team.yaml", "--json").result["steps"]
    assert plan[0]["reason"] == "no finished result of it is in the store", "Bob's store has no result of Ann's"
