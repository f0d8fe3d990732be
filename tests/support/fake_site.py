"""A serve site in one folder: it keeps every table it was given, fences like the router, and answers from files.

State is on disk, so that it outlives a killed deploy like a router does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from orchestrator.bundle.golden import GOLDEN_FILE, read_golden
from orchestrator.core.errors import Unreachable
from orchestrator.core.files import write_json
from orchestrator.serving.table import EMPTY, RoutingTable

DEVICE = "cpu (rehearsal)"


def make_bundle(root: Path, letter: str, *, samples: int = 3) -> Path:
    """A bundle folder whose model doubles its input; named by `digest(letter)`."""
    folder = root / "bundles" / letter
    folder.mkdir(parents=True)
    image = np.arange(samples * 4, dtype=np.float32).reshape(samples, 4) + 1
    save_file({"input/image": image, "output/logits": image * 2}, folder / "golden.safetensors")
    specs = {"inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 4]}]}
    write_json(folder / "bundle.json", {"name": "digits", "outputs": [{"name": "logits"}], **specs})
    return folder


@dataclass
class FakeAnswer:
    outputs: Mapping[str, np.ndarray[Any, Any]]
    generation: int
    bundle: str
    device: str


@dataclass
class FakeSite:
    """`broken` says what a replica of a bundle fails with, `crashes` how often it was started again; `spoil` changes an output; `asked` counts samples."""

    folder: Path
    name: str = "local"
    url: str = "http://127.0.0.1:1"
    agents: int = 1
    broken: dict[str, str] = field(default_factory=dict)
    spoil: dict[str, Any] = field(default_factory=dict)
    down: bool = False
    agent_lag: int = 0
    in_flight: dict[int, list[int]] = field(default_factory=dict)
    asked: int = 0
    restarts: int = 2
    crashes: dict[str, int] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=lambda: {"routers": []})

    def tables(self) -> list[RoutingTable]:
        path = self.folder / "tables.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [RoutingTable.from_json(json.loads(line)) for line in lines]

    def table(self) -> RoutingTable:
        return (self.tables() or [EMPTY])[-1]

    def put_table(self, table: RoutingTable) -> None:
        self._check_up()
        self.table().replace(table)
        RoutingTable.from_json(table.to_json())
        with (self.folder / "tables.jsonl").open("a") as file:
            file.write(json.dumps(table.to_json()) + "\n")

    def status(self) -> dict[str, Any]:
        self._check_up()
        table = self.table()
        rows = [(e, g) for e in table.endpoints.values() for g in e.generations]
        generations = [
            {
                "endpoint": e.name,
                "generation": g.generation,
                "ready": 0 if g.bundle in self.broken else self.agents,
                "queued": 0,
                "in_flight": self._in_flight(g.generation),
            }
            for e, g in rows
        ]
        replicas = [
            {
                "endpoint": e.name,
                "bundle": g.bundle,
                "state": "failed" if g.bundle in self.broken else "ready",
                "restarts": self.restarts + self.crashes.get(g.bundle, 0),
                "failures": 2 if g.bundle in self.broken else 0,
                "error": self.broken.get(g.bundle),
                "log_tail": "Traceback\nlast line" if g.bundle in self.broken else "",
            }
            for e, g in rows
        ]
        applied = table.version - self.agent_lag
        self.agent_lag = 0
        agent = {"pool": "edge", "device": DEVICE, "version": applied, "replicas": replicas}
        return {"version": table.version, "generations": generations, "agents": [agent] * self.agents}

    def evidence(self, endpoint: str) -> dict[str, Any]:
        self._check_up()
        return json.loads(json.dumps(self.counts))

    def infer(self, endpoint: str, generation: int, inputs: Mapping[str, np.ndarray[Any, Any]]) -> FakeAnswer:
        self._check_up()
        self.asked += 1
        found = self.table().endpoints[endpoint].find(generation)
        assert found is not None
        read_golden(Path(found.path) / GOLDEN_FILE)
        outputs = {"logits": inputs["image"] * np.float32(2)}
        answer = FakeAnswer(outputs, generation, found.bundle, found.device)
        spoil = self.spoil.get(found.bundle)
        return spoil(answer) if spoil else answer

    def _in_flight(self, generation: int) -> int:
        left = self.in_flight.get(generation)
        return left.pop(0) if left else 0

    def _check_up(self) -> None:
        if self.down:
            raise Unreachable("the router does not answer", place=self.url)
