"""Real models on ONNX Runtime: the bare loop, ours, and every peer with the same session and its own batching."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from serving_bench.contenders import Contender, Served
from serving_bench.job import Job
from serving_bench.ours import cores, model_pool
from serving_bench.payloads import OIP_PATH, VARIANTS, Arrays, oip_base64, oip_binary, raw
from serving_bench.payloads import http as render
from serving_bench.server import BENCHMARKS, ROOT, NotServed, Server, answers, load
from serving_bench.wire import Request

RECIPES: Final = ("minilm", "efficientnet-lite0")
SEED: Final = 1
_MAX_THREADS: Final = 4
"""What our runtime takes."""
_BATCH_DELAY_S: Final = 0.01
_OPEN_CONNECTIONS: Final = 128
_LEAST_BATCHES, _LEAST_ROWS = 8, 200
"""A slow model is measured for longer."""

Row = dict[str, Any]


def files(recipe: str) -> tuple[Path, Path]:
    """Return graph and samples, made once below `.bench/` as a run makes them.

    Raises:
        NotServed: Its package is not installed.
    """
    folder = ROOT / ".bench" / "models" / recipe
    if not (folder / "model.onnx").exists():
        command = [sys.executable, str(BENCHMARKS / "forecast.py"), "--export", recipe, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotServed(f"it cannot be exported: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "model.onnx", folder / "samples.npz"


def requests_of(form: str, name: str, samples: Sequence[Arrays]) -> tuple[Request, ...]:
    """Return the samples in a server's own form."""

    def one(arrays: Arrays) -> Request:
        if form == "binary":
            return oip_binary(OIP_PATH.format(name), arrays, b"")
        if form == "base64":
            return oip_base64(OIP_PATH.format(name), arrays, b"")
        if form == "raw":
            return raw("/infer", arrays, b"")
        text = base64.b64encode(b"".join(array.tobytes() for array in arrays.values())).decode()
        body = json.dumps({"blob": text} if form == "blob" else {"blobs": [text]}).encode()
        return Request(render("/infer", body, {"content-type": "application/json"}), b"")

    return tuple(one(arrays) for arrays in samples)


def bare(model: Path, samples: Path, threads: int, seconds: float, *more: object) -> Row:
    """Run the bare loop in a process of its own."""
    arguments = [str(x) for x in (model, samples, threads, seconds, *more)]
    done = subprocess.run(
        [sys.executable, "-m", "serving_bench.bare_model", *arguments],
        capture_output=True, check=False, cwd=BENCHMARKS, env={**os.environ, "PYTHONPATH": f"{BENCHMARKS}:{ROOT}"},
    )  # fmt: skip
    if done.returncode != 0:
        raise NotServed(f"the bare loop: {done.stderr.decode()[-500:]}")
    return json.loads(done.stdout)


class Measurement:
    """One recipe: what is sent, what must come back, and at which rates."""

    def __init__(self, recipe: str, seconds: float, tell: Callable[[str], None]) -> None:
        self.name, self.seconds, self._tell = recipe, seconds, tell
        self.model, self._file = files(recipe)
        with np.load(self._file) as stored:
            samples = {name: stored[name] for name in stored.files}
        self.threads = min(_MAX_THREADS, cores())
        self.rows: list[Arrays] = [{n: array[i : i + 1] for n, array in samples.items()} for i in range(VARIANTS)]
        self.golden = self._golden(samples)
        self._expected = self.golden[next(name for name in self.golden if name.startswith("output/"))]

    def _golden(self, samples: dict[str, Any]) -> dict[str, Any]:
        from serving_bench.bare_model import open_session

        session = open_session(str(self.model), self.threads)
        few = {name: array[:VARIANTS] for name, array in samples.items()}
        names = [node.name for node in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, few), strict=True))
        return {f"input/{n}": a for n, a in few.items()} | {f"output/{n}": a for n, a in outputs.items()}

    def bare(self) -> Row:
        """Return the bare loop's row: best batch, rows a second, latencies at half of that."""
        self._tell(f"{self.name} bare")
        row = bare(self.model, self._file, self.threads, 3 * self.seconds)
        self.half_rate = row["rows_per_s"] / 2
        self.batch = int(row["batch"])
        self._full_s = max(self.seconds, _LEAST_BATCHES * self.batch / row["rows_per_s"])
        self._half_s = max(2 * self.seconds, min(5 * self.seconds, _LEAST_ROWS / self.half_rate))
        half = bare(self.model, self._file, self.threads, self._half_s, self.half_rate, self.batch, SEED)
        return {**row, "threads": self.threads, "half": half}

    def again(self, row: Row) -> None:
        """Measure the bare loop once more: the better one counts, for this machine has its moods."""
        found = bare(self.model, self._file, self.threads, 3 * self.seconds)
        if found["rows_per_s"] > row["rows_per_s"]:
            row |= {"rows_per_s": found["rows_per_s"], "cpu_us": found["cpu_us"]}

    def server(self, who: str, form: str, port: int, mark: str) -> Row:
        """Measure a server that answers: closed loop with two batches of connections, then half of the bare loop's rate.

        Raises:
            NotServed: Its answer is not the model's.
        """
        requests = requests_of(form, self.name, self.rows)
        self._verify(port, requests[0])
        self._tell(f"{self.name} {who}")
        warmup_s = max(self.seconds / 3, self._full_s / 4)
        job = Job(port, requests, "http", "", max(8, 2 * self.batch), self._full_s, warmup_s, fixed=False, mark=mark)
        full = load(job)
        half = load(replace(job, connections=_OPEN_CONNECTIONS, seconds=self._half_s, rate=self.half_rate, seed=SEED))
        half["rate"] = self.half_rate
        bad = sum(n for row in (full, half) for status, n in row["answers"].items() if status != "200")
        if full["requests_per_s"] < self.half_rate * 1.05:
            half["note"] = "  beyond what it can"
        return {"rows_per_s": full["requests_per_s"], "cpu_us": full["cpu_us"], "bad": bad, "full": full, "half": half}

    def ours(self) -> Row:
        """Measure ours."""
        with model_pool(self.name, self.model, self.golden, self.batch) as pool:
            return self.server("ours", "binary", pool.http_port, pool.server.mark)

    def theirs(self, contender: Contender) -> Row:
        """Measure a peer."""
        python = contender.python()
        served = Served(self.name, str(self.model), self.threads, self.batch, _BATCH_DELAY_S if self.batch > 1 else 0.0)
        with Server(contender.name) as server:
            ports = contender.start(server, python, served)
            probe = Job(ports.http, requests_of(contender.model, self.name, self.rows))
            server.wait(lambda: answers(probe), contender.ready_s)
            return self.server(contender.name, contender.model, ports.http, server.mark)

    def _verify(self, port: int, request: Request) -> None:
        head, _, body = request.wire.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", first.split()[1], body, dict(line.split(": ", 1) for line in lines))
        answer = connection.getresponse().read()
        connection.close()
        wanted = self._expected[0].ravel()
        found = _numbers(answer)
        if found is None:  # JSON with raw bytes behind it, or raw bytes alone
            found = np.frombuffer(answer[-wanted.nbytes :], wanted.dtype)
        if found.size != wanted.size or not np.allclose(found, wanted, rtol=1e-2, atol=1e-3):
            raise NotServed(f"its answer is not the model's: {answer[:200]!r}")


def _numbers(answer: bytes) -> Any:
    """Return the longest list of numbers in a JSON text, None where it is no JSON alone."""
    try:
        waiting: list[Any] = [json.loads(answer)]
    except ValueError:
        return None
    longest: list[float] = []
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list) and value and isinstance(value[0], float):
            longest = max(longest, value, key=len)
        elif isinstance(value, list):
            waiting += value
    return np.array(longest)


def measure(recipe: str, contenders: Sequence[Contender], seconds: float, tell: Callable[[str], None]) -> Row:
    """Measure one recipe's model everywhere; what cannot be measured has its reason."""
    try:
        one = Measurement(recipe, seconds, tell)
        result: Row = {"bare": one.bare(), "servers": {}}
    except NotServed as error:
        return {"absent": str(error)}
    runs: dict[str, Callable[[], Row]] = {"ours": one.ours}
    runs |= {peer.name: lambda peer=peer: one.theirs(peer) for peer in contenders if peer.model}
    for name, run in runs.items():
        try:
            result["servers"][name] = run()
        except NotServed as error:
            result["servers"][name] = {"absent": str(error)}
        if name == "ours":
            one.again(result["bare"])
    return result
