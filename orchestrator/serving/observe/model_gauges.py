"""Metrics of lazy pools: what is loaded, what that took, and how often models come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.serving.observe.exposition import Family

if TYPE_CHECKING:
    from orchestrator.serving.link.connections import LinkConnection


def model_families(number: str, agents: list[LinkConnection]) -> list[Family]:
    """Return one sample per model and slot, from the agents' last reports; nothing for pools that hold every model."""
    loads = Family("orchestrate_model_loads_total", "counter", "Loads of the model on a slot.")
    unloads = Family("orchestrate_model_unloads_total", "counter", "How often it was unloaded to make room.")
    took = Family("orchestrate_model_load_seconds", "gauge", "What its last load took: the cold start.")
    loaded = Family("orchestrate_model_loaded", "gauge", "1 while it is loaded.")
    memory = Family("orchestrate_model_memory_bytes", "gauge", "What it holds, 0 while it is not loaded.")
    for connection in agents:
        hello = connection.agent
        for report in connection.reports:
            if hello is None or report.load != "lazy":
                continue
            labels = {"router": number, "pool": hello.pool, "slot": hello.slot, "endpoint": report.endpoint}
            labels["bundle"] = report.bundle
            ready = report.state == "ready"
            loads.add(labels, report.loads)
            unloads.add(labels, report.unloads)
            took.add(labels, report.load_s)
            loaded.add(labels, int(ready))
            memory.add(labels, report.memory_bytes if ready else 0)
    return [loads, unloads, took, loaded, memory]
