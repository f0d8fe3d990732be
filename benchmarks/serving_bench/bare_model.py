"""The least that serving a model can cost: its ONNX Runtime session called in a loop, in a process of its own.

`python -m serving_bench.bare_model MODEL SAMPLES THREADS SECONDS [RATE BATCH SEED]`: without a rate, the best batch and its rows
a second; with one, latencies of the same Poisson arrivals that the servers get, whatever waits being run together.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from serving_bench.histogram import Histogram
from serving_bench.schedule import Schedule

BATCHES: Final = (1, 2, 4, 8, 16, 32)
_AS_GOOD: Final = 0.97
"""A batch that is so near to the fastest is the better one: it waits less."""


def open_session(model: str, threads: int) -> Any:
    """Return the session with the options of our runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def rows(samples: dict[str, Any], count: int) -> dict[str, Any]:
    """Return `count` rows, the samples again and again."""
    return {name: np.resize(array, (count, *array.shape[1:])) for name, array in samples.items()}


def best_batch(session: Any, samples: dict[str, Any], seconds: float) -> dict[str, float]:
    """Return the batch size with the most rows a second, over rounds that take turns."""
    feeds = {size: rows(samples, size) for size in BATCHES}
    took = dict.fromkeys(BATCHES, 0.0)
    cpu, runs = dict.fromkeys(BATCHES, 0.0), dict.fromkeys(BATCHES, 0)
    session.run(None, feeds[BATCHES[-1]])
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for size, feed in feeds.items():
            for _ in range(max(1, 8 // size)):
                began, used = time.perf_counter(), time.process_time()
                session.run(None, feed)
                took[size] += time.perf_counter() - began
                cpu[size] += time.process_time() - used
                runs[size] += 1
    speeds = {size: runs[size] * size / took[size] for size in BATCHES}
    most = max(speeds.values())
    best = min(size for size in BATCHES if speeds[size] >= _AS_GOOD * most)
    return {"batch": best, "rows_per_s": most, "cpu_us": cpu[best] / (runs[best] * best) * 1e6}


def at_rate(
    session: Any, samples: dict[str, Any], seconds: float, rate: float, batch: int, seed: int
) -> dict[str, float]:
    """Return latencies from the times at which rows arrive."""
    feeds = {size: rows(samples, size) for size in range(1, batch + 1)}
    for feed in feeds.values():
        session.run(None, feed)
    taken = Histogram()
    start = time.perf_counter_ns()
    times = Schedule(rate, seed, start)
    until = start + int(seconds * 1e9)
    while times.next_ns < until:
        waiting: list[int] = []
        now = time.perf_counter_ns()
        if times.next_ns > now:
            time.sleep((times.next_ns - now) / 1e9)
            now = time.perf_counter_ns()
        while times.next_ns <= now and len(waiting) < batch:
            waiting.append(times.take())
        if waiting:
            session.run(None, feeds[len(waiting)])
            now = time.perf_counter_ns()
            for intended in waiting:
                taken.add(now - intended)
    return {"rate": rate, **taken.summary()}


def main(model: str, file: str, threads: str, seconds: str, *more: str) -> None:
    """Measure and print JSON."""
    with np.load(Path(file)) as stored:
        samples = {name: stored[name] for name in stored.files}
    session = open_session(model, int(threads))
    if more:
        rate, batch, seed = more
        print(json.dumps(at_rate(session, samples, float(seconds), float(rate), int(batch), int(seed))))
    else:
        print(json.dumps(best_batch(session, samples, float(seconds))))


if __name__ == "__main__":
    main(*sys.argv[1:])
