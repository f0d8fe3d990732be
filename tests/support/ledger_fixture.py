"""Writes `tests/unit/data/ledger-vN.sqlite`: a ledger as version N of the schema left it. Run by the program of that version.

python tests/support/ledger_fixture.py tests/unit/data/ledger-v3.sqlite
"""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

from orchestrator.ledger import ArtifactRow, EventRow, GenerationState, Ledger, MetricRow, Owner
from support.ledger_samples import digest, execution, request, step


def main(path: Path) -> None:
    with Ledger.open(f"sqlite:///{path.absolute()}") as ledger:
        owner = Owner(user="ada", host="here", machine="gone", pid=1, started_ticks=1)
        lease = ledger.leases.acquire("recipe/digits", owner)
        ledger.executions.create(execution(), lease)
        ledger.executions.record(
            lease,
            steps=[step(state="succeeded", metrics={"accuracy": 0.97, "loss": float("nan")})],
            events=[EventRow(execution="x1", type="step.succeeded", t=5.0, payload={"name": "train"})],
            metrics=[MetricRow(execution="x1", step="train", name="loss", step_number=1, value=0.5, t=4.0)],
            artifacts=[
                ArtifactRow(digest=digest("c"), media_type="m", kind="checkpoint", size_bytes=7, created_at=5.0)
            ],
            edges=[(digest("d"), digest("c"))],
        )
        for number, bundle in enumerate("12"):
            made = ledger.generations.append(request(bundle, expected=number), lease)
            ledger.generations.set_state("digits", made.number, GenerationState.LIVE, lease, actor="ada")
        build = {
            "soc": "Ascend310",
            "runtime": "om",
            "device": "ascend",
            "variant": "",
            "variant_artifact": "",
            "variant_path": "",
        }
        ledger.generations.append(request("3", expected=2, builds=(build,)), lease)
        ledger.generations.set_slots("digits", 2, lease, actor="ada")
        ledger.generations.stamp("local")
        ledger.projections.put("run/x1", "mlflow-run")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA page_size=512")  # keeps the file small in the repository
    connection.execute("VACUUM")
    connection.close()
    os.chmod(path, 0o644)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
