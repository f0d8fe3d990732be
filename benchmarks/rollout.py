"""Claims: promotions and rollbacks under load fail no request and mix no generations; weights are exact; a rollback takes a second.

    python benchmarks/rollout.py [--quick] [--json] [--no-peer]

A local site serves `recipes/digits`; checked traffic of 1,200 requests a second goes on while `orchestrate promote` and
`orchestrate rollback` take turns, each a process of its own, as a user calls them. Afterwards every answer is compared with what
the ledger's audit says was live or a declared canary at that time. Beside it: the same switch by an in-place update of Ray Serve.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from peers import NotInstalled, installed  # noqa: E402
from serving_bench.server import free_port  # noqa: E402
from support.history import Operation, Response, check  # noqa: E402

from orchestrator.ledger import AuditRow, Ledger  # noqa: E402
from orchestrator.serving.client import OipClient, encode_request  # noqa: E402

RATE: Final = 1200
CLIENTS: Final = 12
WEIGHTS: Final = (1, 10, 25, 50)
STEP_S: Final = 4
ORCHESTRATE: Final = str(Path(sys.executable).parent / "orchestrate")

Row = dict[str, Any]


class Project:
    """A folder with the digits recipe, its site, and the commands of a user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "recipes" / "digits", folder / "digits")
        self.recipe = folder / "digits" / "recipe.yaml"
        whole = self.recipe.read_text()
        self._before = whole[: whole.index("\nrollout:")]
        (folder / "home").mkdir()
        self._env = {**os.environ, "HOME": str(folder / "home"), "NO_COLOR": "1"}
        self._env.pop("RAY_ADDRESS", None)
        self.strategy("direct: {}")

    def strategy(self, text: str) -> None:
        """Write the recipe with this strategy."""
        self.recipe.write_text(f"{self._before}\nrollout:\n  endpoint: digits\n  pool: edge\n  {text}\n")

    def call(self, *arguments: str, allowed: Sequence[int] = (0,)) -> tuple[float, Row]:
        """Run a command; returns its wall seconds and its result."""
        began = time.perf_counter()
        done = subprocess.run(
            [ORCHESTRATE, *arguments, "--json"], cwd=self.folder, env=self._env, capture_output=True, check=False
        )
        took_s = time.perf_counter() - began
        if done.returncode not in allowed:
            raise SystemExit(
                f"{arguments} ended with {done.returncode}: {(done.stdout + done.stderr).decode()[-2000:]}"
            )
        lines = done.stdout.decode().strip().splitlines()
        return took_s, json.loads(lines[-1]) if lines else {}

    def audit(self) -> list[AuditRow]:
        """Return the ledger's audit."""
        path = self.folder / ".orchestrate" / "ledger.db"
        rows: list[AuditRow] = []
        with Ledger.open(f"sqlite:///{path}") as ledger:
            while found := ledger.audit.rows(after_seq=rows[-1].seq if rows else 0, limit=10_000):
                rows.extend(found)
        return rows


class Traffic:
    """The load, in a process of its own."""

    def __init__(self, project: Project, url: str, samples: np.ndarray[Any, Any], expected: Row) -> None:
        self._out = project.folder / "answers.jsonl"
        job = project.folder / "traffic.json"
        bodies = [encode_request({"image": sample[None]}, binary=True) for sample in samples]
        row = {
            "url": url,
            "path": "/v2/models/digits/infer",
            "bodies": [{"body": base64.b64encode(body).decode(), "headers": headers} for body, headers in bodies],
            "expected": expected,
            "clients": CLIENTS,
            "rate": RATE,
            "out": str(self._out),
        }
        job.write_text(json.dumps(row))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rollout_bench.traffic", str(job)], cwd=ROOT / "benchmarks", stdin=subprocess.PIPE
        )

    def stop(self) -> list[list[Any]]:
        """End, and return what was written down."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait(60):
            raise SystemExit("the traffic failed")
        return [json.loads(line) for line in self._out.read_text().splitlines()]


def bundles(project: Project) -> tuple[str, dict[str, str]]:
    """Bring up two generations of different bundles; returns the URL and the bundles by name."""
    found: dict[str, str] = {}
    url = ""
    for name, epochs in (("a", 3), ("b", 4)):
        print(f"training bundle {name}", file=sys.stderr)
        project.call("run", str(project.recipe), "--set", f"params.epochs={epochs}", "--set", "evaluate.gates=[]")
        _, listed = project.call("endpoint", "list")
        (row,) = listed["endpoints"]
        found[name], url = row["bundle"], row["url"]
    return url.partition("/v2/")[0], found


def outputs(url: str, samples: np.ndarray[Any, Any]) -> list[list[float]]:
    """Return what the live generation answers to each sample alone."""
    with OipClient(url) as client:
        return [
            next(iter(client.infer("digits", {"image": s[None]}).outputs.values())).ravel().tolist() for s in samples
        ]


def promote(project: Project, bundle: str, allowed: Sequence[int] = (0,)) -> tuple[float, Operation]:
    """Promote a bundle as its recipe says."""
    return _moved(project, "promote", bundle, "--pool", "edge", "--recipe", str(project.recipe), allowed=allowed)


def rollback(project: Project) -> tuple[float, Operation]:
    """Roll back."""
    return _moved(project, "rollback")


def _moved(project: Project, verb: str, *arguments: str, allowed: Sequence[int] = (0,)) -> tuple[float, Operation]:
    began = time.time()
    took_s, done = project.call(verb, *arguments, "--endpoint", "digits", allowed=allowed)
    args = {"endpoint": "digits", "bundle": done.get("bundle", "")}
    result = {"generation": int(done["generation"])} if "generation" in done else None
    return took_s, Operation("operator", began, time.time(), verb, args, result)


def measure(rounds: int) -> Row:
    """Promote and roll back under load; then walk the weights."""
    with tempfile.TemporaryDirectory(prefix="orc-bench-") as name:
        project = Project(Path(name))
        try:
            return _measure(project, rounds)
        finally:
            project.call("down")


def prepared(project: Project) -> tuple[str, np.ndarray[Any, Any], Row, dict[str, str]]:
    """Bring both bundles up, the first one live; returns the URL, samples, their outputs by bundle, and the bundles by name."""
    from sklearn.datasets import load_digits

    samples = (load_digits().images[:16, None] / 16).astype(np.float32)
    url, found = bundles(project)
    expected = {found["b"]: outputs(url, samples)}
    rollback(project)
    expected[found["a"]] = outputs(url, samples)
    return url, samples, expected, found


def _measure(project: Project, rounds: int) -> Row:
    url, samples, expected, found = prepared(project)
    traffic = Traffic(project, url, samples, expected)
    operations: list[Operation] = []
    walls: dict[str, list[float]] = {"promote": [], "rollback": []}
    time.sleep(1)
    for number in range(rounds):
        print(f"\rswitch {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
        took_s, done = promote(project, found["b"]) if number % 2 == 0 else rollback(project)
        walls[done.op].append(took_s)
        operations.append(done)
    steps = "\n".join(f"      - set_weight: {w}\n      - pause: {{duration: {STEP_S}s}}" for w in WEIGHTS)
    project.strategy(f"canary:\n    steps:\n{steps}")
    if rounds % 2:
        rollback(project)
    print("\rwalking the weights ", file=sys.stderr)
    _, done = promote(project, found["b"])
    operations.append(done)
    time.sleep(0.5)
    answers = traffic.stop()
    return judge(answers, operations, project.audit(), walls)


def judge(
    answers: list[list[Any]], operations: list[Operation], audit: list[AuditRow], walls: dict[str, list[float]]
) -> Row:
    """Compare what clients got with what was decided."""
    good = [row for row in answers if row[3] == 200]
    responses = [Response(row[0], row[1], row[2], row[4], row[5]) for row in good]
    found = check("digits", audit, operations, responses)
    wrong = [row for row in good if not row[6]]
    seconds = answers[-1][2] - answers[0][1] if answers else 1.0
    return {
        "requests": len(answers),
        "requests_per_s": len(answers) / seconds,
        "failed": len(answers) - len(good),
        "failures": Counter(f"{row[3]} {row[5]}"[:200] for row in answers if row[3] != 200),
        "wrong_generation": len(wrong) + len(found),
        "violations": [violation.text for violation in found[:5]],
        "switches": len(operations),
        **{f"{verb}_s": max(walls[verb]) for verb in walls},
        **{f"{verb}_median_s": statistics.median(walls[verb]) for verb in walls},
        **in_force(operations, responses),
        **weights(audit, responses),
        **switches(audit, responses),
    }


def in_force(operations: Sequence[Operation], responses: Sequence[Response]) -> Row:
    """Return how long after the start of `orchestrate rollback` a request was still sent that an earlier generation answered."""
    took_s: list[float] = []
    for done in operations:
        if done.op == "rollback" and done.result is not None and done.t_ok is not None:
            since, until, number = done.t_invoke, done.t_ok, int(done.result["generation"])
            old = [r.t_send for r in responses if since < r.t_send < until and r.generation < number]
            took_s.append(max(old, default=since) - since)
    return {
        "rollback_in_force_s": max(took_s, default=0.0),
        "rollback_in_force_median_s": statistics.median(took_s or [0.0]),
    }


def switches(audit: Sequence[AuditRow], responses: Sequence[Response]) -> Row:
    """Return how long after the ledger's decision a request was still sent that an earlier generation answered."""
    took_ms: list[float] = []
    for row in audit:
        number = int(row.subject.rpartition("/")[2]) if row.subject.startswith("digits/") else 0
        live = row.action == "generation.live" or (
            row.action == "generation.rollback" and row.detail.get("state") == "live"
        )
        if number and live:
            late = [r.t_send for r in responses if row.t < r.t_send < row.t + 5 and r.generation < number]
            if any(r.t_send > row.t for r in responses):
                took_ms.append((max(late, default=row.t) - row.t) * 1e3)
    return {"switch_ms": max(took_ms, default=0.0), "switch_median_ms": statistics.median(took_ms or [0.0])}


def weights(audit: Sequence[AuditRow], responses: Sequence[Response]) -> Row:
    """Return how far from its weight the canary's share was, per 100 requests, between one step and the next."""
    steps = [row for row in audit if row.action == "rollout.step" and row.subject.startswith("digits/")]
    last = {row.subject for row in steps[-1:]}
    changes = [
        (row.t, int(row.detail["weight"]), int(row.subject.rpartition("/")[2]))
        for row in steps
        if row.subject in last and row.detail.get("weight")
    ]
    found: list[Row] = []
    for (since, weight, canary), until in zip(changes, [t for t, _, _ in changes[1:]] + [float("inf")], strict=True):
        end = min(until, since + STEP_S)
        inside = [r for r in responses if since + 0.1 < r.t_send and r.t_recv < end - 0.1]
        if inside:
            share = 100 * sum(r.generation == canary for r in inside) / len(inside)
            found.append({"weight": weight, "share": share, "requests": len(inside)})
    return {"weights": found, "weight_error_max": max((abs(r["share"] - r["weight"]) for r in found), default=None)}


def peer(rounds: int) -> Row:
    """Measure Ray Serve's in-place update."""
    try:
        python = installed("serve-ray", "ray[serve]==2.60.0", "onnxruntime==1.31.1", "uvloop", "httptools", "orjson")
    except NotInstalled as error:
        return {"note": f"it cannot be installed: {error}"}
    with tempfile.TemporaryDirectory(prefix="orc-") as folder:
        settings = Path(folder) / "settings.json"
        # A quarter of our rate: its default proxy does some 400 requests a second here.
        row = {"port": free_port(), "temp": f"{folder}/r", "rounds": rounds, "clients": CLIENTS, "rate": RATE / 4}
        settings.write_text(json.dumps(row))
        environment = {**os.environ, "HOME": folder, "RAY_SERVE_LOG_TO_STDERR": "0"}
        done = subprocess.run(
            [python / "python", ROOT / "benchmarks" / "rollout_bench" / "ray_update.py", settings],
            capture_output=True, check=False, env=environment, timeout=600,
        )  # fmt: skip
    if done.returncode:
        return {"note": done.stderr.decode()[-500:]}
    found = json.loads(done.stdout.decode().strip().splitlines()[-1])
    return {**found, "switch_median_s": statistics.median(found["switch_s"]), "rate": RATE / 4}


def show(row: Row) -> None:
    """Print for people."""
    print(
        f"requests            {row['requests']:,} at {row['requests_per_s']:,.0f}/s, {row['failed']} failed {dict(row['failures'])}"
    )
    print(f"wrong generation    {row['wrong_generation']} {row['violations']}")
    print(
        f"switches            {row['switches']}: in force after {row['switch_median_ms']:.1f} ms, at most {row['switch_ms']:.1f} ms"
    )
    print(
        f"orchestrate rollback  all requests on the old build after {row['rollback_in_force_median_s']:.2f} s, at most "
        f"{row['rollback_in_force_s']:.2f} s; the command ends after {row['rollback_median_s']:.2f} s, at most {row['rollback_s']:.2f} s"
    )
    print(f"orchestrate promote   {row['promote_median_s']:.2f} s wall (golden samples of the new generation included)")
    for found in row["weights"]:
        print(f"weight {found['weight']:3}          {found['share']:.2f} of 100 over {found['requests']:,} requests")
    if "peer" in row:
        other = row["peer"]
        if "switch_s" in other:
            print(
                f"Ray Serve, in place   {other['requests']:,} requests at {other['rate']:.0f}/s, {other['failed']} failed; "
                f"switched after {other['switch_median_s']:.2f} s, at most {max(other['switch_s']):.2f} s"
            )
            times = other["switch_median_s"] * 1e3 / max(row["switch_median_ms"], 0.1)
            print(
                f"ratio                 from the decision to the last old answer: {times:.0f} times ours; it starts a process in it"
            )
        else:
            print(f"Ray Serve             {other['note']}")


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 switches instead of 50")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-peer", action="store_true", help="ours only")
    options = parser.parse_args()
    row = measure(8 if options.quick else 50)
    if not options.no_peer:
        row["peer"] = peer(3 if options.quick else 10)
    if options.json:
        print(json.dumps(row))
    else:
        show(row)
    error = row["weight_error_max"]
    return int(bool(row["failed"] or row["wrong_generation"] or error is None or error > 1))


if __name__ == "__main__":
    sys.exit(main())
