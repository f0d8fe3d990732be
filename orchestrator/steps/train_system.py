"""The machine while it trains: CPU, memory and NVIDIA devices, sampled into metrics that MLflow shows as system metrics."""

from __future__ import annotations

import importlib
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import psutil

from orchestrator.steps.api import StepEvents

_PERIOD_S: Final = 2.0
_MEGABYTE: Final = 1e6


class SystemSampler:
    """Samples every two seconds until closed. Use as a context manager.

    Args:
        events: Where the metrics go; their step is seconds since the training first began.
        began: A file whose time says when that was; made by the first attempt.
    """

    def __init__(self, events: StepEvents, began: Path) -> None:
        began.touch(exist_ok=True)
        self._began_s = began.stat().st_mtime
        self._events = events
        self._nvml = _nvml()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def __enter__(self) -> SystemSampler:
        psutil.cpu_percent()  # the first call only starts the measurement
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            step = int(time.time() - self._began_s)
            for name, value in self._sample().items():
                self._events.metric(f"system/{name}", value, step)

    def _sample(self) -> dict[str, float]:
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": psutil.virtual_memory().used / _MEGABYTE,
        }
        nvml: Any = self._nvml
        for index in range(nvml.nvmlDeviceGetCount() if nvml else 0):
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            found[f"gpu_{index}_utilization_percentage"] = float(nvml.nvmlDeviceGetUtilizationRates(device).gpu)
            found[f"gpu_{index}_memory_usage_megabytes"] = nvml.nvmlDeviceGetMemoryInfo(device).used / _MEGABYTE
        return found


def _nvml() -> ModuleType | None:
    """Return NVIDIA's management library when package, driver and a device are there."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml
