"""Claim: what coverage says for MindSpore Lite is what its real 2.0.0 converter does, over a zoo of graphs.

    python benchmarks/agreement.py [--quick] [--json] [--model GRAPH.onnx SAMPLES.npz]... [--samples 4] [--python PATH]

For each graph as it is, after prepare(), and after prepare() with free dimensions fixed: coverage's verdict, what the
converter did, and how the MindIR's answers on its CPU runtime compare with ONNX Runtime's of the graph as it was (SQNR of
the worst output, dB). `unknown` claims nothing. Exit status 1 on a disagreement that no known quirk explains. `--quick`
leaves out the fixed form and the real models. The interpreter is the one that tests/install-tools.sh made, unless named.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from forecast import RECIPES, real_model  # noqa: E402
from support.agreement import FORMS, Row, judge  # noqa: E402
from support.ascend_tools import mindspore_lite_python  # noqa: E402
from support.zoo import ZOO  # noqa: E402

from orchestrator.ascend.mindspore_lite import MindSporeLite  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="leave out the fixed form and the real models")
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    parser.add_argument("--model", nargs=2, type=Path, action="append", default=[], metavar=("ONNX", "NPZ"),
                        help="in place of those that recipes serve")  # fmt: skip
    parser.add_argument("--samples", type=int, default=4, help="of each model, how many")
    parser.add_argument("--python", type=Path, default=mindspore_lite_python(), help="interpreter with mindspore-lite")
    parser.add_argument("--only", nargs="*", help="graphs of the zoo, by name")
    args = parser.parse_args()
    if args.python is None:
        print("no mindspore-lite 2.0.0: run tests/install-tools.sh, or name its interpreter with --python")
        return 0
    lite = MindSporeLite(args.python)
    started, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for name, source, samples in graphs(args, Path(folder)):
            for form in [form for form in FORMS if not (args.quick and form == "fixed")]:
                row = judge(name, form, source, samples, lite, source.parent, timeout_s=20.0 if name in ZOO else 300.0)
                rows.append(row)
                if not args.json:
                    print(line(row), flush=True)
    wrong = [row for row in rows if row.agree is False and not row.explanation.startswith("quirk")]
    summary = {
        "mindspore_lite": lite.version(),
        "rows": len(rows),
        "agree": sum(row.agree is True for row in rows),
        "no_claim": sum(row.agree is None for row in rows),
        "explained": sum(row.agree is False for row in rows) - len(wrong),
        "unexplained": len(wrong),
        "seconds": round(time.monotonic() - started, 1),
    }
    if args.json:
        print(json.dumps({"summary": summary, "rows": [row.to_json() for row in rows]}, indent=1))
    else:
        print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in summary.items()))
    return 1 if wrong else 0


def graphs(args: argparse.Namespace, folder: Path) -> Any:
    """Yield name, file and samples: the zoo's, then those named."""
    for name, make in ZOO.items():
        if args.only is None or name in args.only:
            zoo, place = make(), folder / name
            place.mkdir()
            onnx.save(zoo.model, place / "source.onnx")
            yield name, place / "source.onnx", zoo.samples
    for name, path, arrays in models(args):
        place = folder / name
        place.mkdir()
        with np.load(arrays, allow_pickle=False) as file:
            wanted = {item.name for item in onnx.load(path, load_external_data=False).graph.input}
            samples = {key: file[key][: args.samples] for key in file.files if key in wanted}
        yield name, _linked(path, place), samples


def models(args: argparse.Namespace) -> list[tuple[str, Path, Path]]:
    """Return name, file and samples of the models that were named; without a choice, of those that recipes serve."""
    if args.model or args.only is not None or args.quick:
        return [(f"{path.stem}-{number}", path, arrays) for number, (path, arrays) in enumerate(args.model)]
    found = [(recipe, real_model(recipe)) for recipe in RECIPES]
    return [(name, place / "model.onnx", place / "samples.npz") for name, place in found if place is not None]


def _linked(path: Path, place: Path) -> Path:
    """Results go beside the source, so a model that is not ours is copied, its external data with it."""
    onnx.save(onnx.load(path), place / "source.onnx")
    return place / "source.onnx"


def line(row: Row) -> str:
    word = {True: "agree", False: "DISAGREE", None: "no claim"}[row.agree]
    if row.agree is False and row.explanation.startswith("quirk"):
        word = "explained"
    parity = "" if row.parity_db is None else f"{row.parity_db:.1f} dB"
    done = f" [{', '.join(row.rewrites)}]" if row.rewrites else ""
    text = f"{row.graph:18} {row.form:9} coverage {row.verdict:8} converter {row.outcome:18} {parity:9} {word}{done}"
    detail = row.explanation or "; ".join(row.findings[:2])
    return f"{text}\n{'':28} {detail[:230]}" if detail and row.agree is not True else text


if __name__ == "__main__":
    sys.exit(main())
