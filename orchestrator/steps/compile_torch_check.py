"""Builds a torch package from its own files and answers golden samples with it: `python -m … FOLDER GOLDEN ANSWER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from orchestrator.bundle.golden import read_golden
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.files import write_json
from orchestrator.graph.parity import EXACT_DB, compare
from orchestrator.graph.torch_model import build, load_checkpoint, predictor
from orchestrator.graph.verdict import Thresholds, judge


def main(folder: Path, golden_file: Path, answer: Path) -> None:
    """Write `{error, worst_sqnr_db}`."""
    try:
        worst, error = _check(folder, golden_file)
    except OrchestratorError as failed:
        worst, error = 0.0, failed.message
    write_json(answer, {"error": error, "worst_sqnr_db": worst})


def _check(folder: Path, golden_file: Path) -> tuple[float, str]:
    how = json.loads((folder / "build.json").read_bytes())
    golden = read_golden(golden_file)
    module = build(str(how["factory"]), folder / str(how["source"])).eval()
    load_checkpoint(module, folder)
    found = compare(golden.outputs, predictor(module, list(how["outputs"]))(golden.inputs))
    verdict = judge(found, Thresholds(), saturating=False)
    worst = min((min(metrics.worst_sqnr_db, EXACT_DB) for metrics in found.values()), default=EXACT_DB)
    return worst, "" if verdict.passed else "; ".join(reason.text for reason in verdict.reasons)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
