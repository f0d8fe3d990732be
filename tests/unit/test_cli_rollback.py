"""What `orchestrate rollback` imports: half of its time, so each module must be one that it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_CODE = """
import json, sys
from orchestrator.cli.main import main
try:
    main(["rollback", "--endpoint", "digits"])
except SystemExit as end:
    code = end.code
import orchestrator.app.rollout_projection
print(json.dumps({"code": code, "modules": sorted(sys.modules)}))
"""
_HEAVY = {
    "grpc",
    "h2",
    "httpx",
    "jinja2",
    "mlflow",
    "numpy",
    "onnx",
    "psutil",
    "ray",
    "rich",
    "scipy",
    "torch",
    "uvloop",
}
_ELSEWHERE = {
    "orchestrator.bundle.store",
    "orchestrator.cluster.local",
    "orchestrator.recipe.rollout",
    "orchestrator.rollout.smoke",
    "orchestrator.tracking.rollout_snapshot",
    "sqlalchemy.dialects.postgresql",
}


def test_a_rollback_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    modules = set(found["modules"])
    assert found["code"] == 2, "there is no such endpoint"
    assert {"orchestrator.rollout.rollback", "orchestrator.app.serve_site"} <= modules, "it has come as far as the site"
    assert not modules & _ELSEWHERE
    assert not {name.partition(".")[0] for name in modules} & _HEAVY
