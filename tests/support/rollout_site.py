"""A serving site, its ledger and checked traffic, beside which rollouts walk in child processes that can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from orchestrator.core import faults
from orchestrator.core.digests import Digest
from orchestrator.core.errors import OrchestratorError
from orchestrator.ledger import Generation, GenerationState, Ledger, Owner
from orchestrator.rollout.deploy import deploy
from orchestrator.rollout.request import DeployRequest
from orchestrator.rollout.rollback import rollback
from orchestrator.rollout.site import RouterSite
from orchestrator.rollout.strategy import Strategy
from support.history import Operation, Response, check
from support.serving_site import DEVICE, ServingSite, scale_bundle

ENDPOINT = "scale"
SETTINGS: dict[str, Any] = {"request_timeout_s": 20.0, "replica_grace_s": 20.0}
DIRECT: dict[str, Any] = {}


@dataclass(slots=True)
class Drill:
    """What a fault led to.

    Attributes:
        fired: How often the fault was seen to happen.
        answers: Count by status; 0 = a connection that broke.
        violations: What must not be.
        recovery_s: Longest time without a good answer to any client.
    """

    name: str
    fired: int
    answers: dict[int, int]
    violations: list[str]
    recovery_s: float
    figures: dict[str, float] = field(default_factory=dict[str, float])


class Child:
    """A forked process; the parent must have no threads. Its exit code is that of the command; -9 when it was killed."""

    def __init__(self, work: Callable[[], object], text: Path, *, fault: str = "", log: Path | None = None) -> None:
        self._text, self._code = text, cast("int | None", None)
        text.unlink(missing_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_in_child(work, text, fault, log))

    def ended(self) -> bool:
        """Tell whether it has, without waiting."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is not None

    def wait(self, timeout_s: float = 90.0) -> int:
        """Return its exit code."""
        ServingSite.wait(self.ended, timeout_s, f"the end of process {self.pid}")
        assert self._code is not None
        return self._code

    def said(self) -> str:
        """Return the error with which it ended."""
        return self._text.read_text() if self._text.exists() else ""


def _in_child(work: Callable[[], object], text: Path, fault: str, log: Path | None) -> int:
    for name, value in (("_FAULT", fault), ("_LOG", str(log or "")), ("_ACTIVE", bool(fault or log))):
        setattr(faults, name, value)
    faults._passed.clear()
    try:
        work()
    except OrchestratorError as error:
        text.write_text(f"{type(error).__name__}: {error.message}")
        return error.exit_code
    except BaseException:  # noqa: BLE001  # the child must never return into the caller
        text.write_text(traceback.format_exc())
        return 99
    return 0


class RolloutSite:
    """One endpoint whose bundles multiply by 2 or 3, so that a value shows which of them answered.

    Args:
        folder: Of its own.
        routers: Router processes.
        slots: Replicas of each generation.
    """

    def __init__(self, folder: Path, *, routers: int = 1, slots: int = 1, **settings: object) -> None:
        self.folder, self.slots = folder, slots
        self.bundles = {factor: scale_bundle(folder / f"x{factor:g}", factor) for factor in (2.0, 3.0)}
        self._operations = folder / "operations.jsonl"
        self.serving = ServingSite(folder / "site", routers=routers, **(SETTINGS | settings))
        self.url = f"sqlite:///{folder / 'ledger.db'}"
        self._traffics, self._children = 0, list[Child]()
        self.rows: list[list[Any]] = []
        try:
            self.serving.start_router()
            self.serving.settings["port"] = int(self.serving.url.rpartition(":")[2])
            self.start_agents()
            self.deploy(2.0)
        except BaseException:
            self.serving.stop()
            raise

    def start_agents(self) -> None:
        self.serving.start_agent(slots=self.slots)

    def request(self, digest: Digest, path: Path, how: dict[str, Any]) -> DeployRequest:
        """Return what a deploy of a bundle asks for."""
        return DeployRequest(
            endpoint=ENDPOINT, pool="edge", bundle=digest, path=path, runtime="onnx-cpu", device=DEVICE, actor="ada",
            ready_timeout_s=60, strategy=Strategy.from_json(how),
        )  # fmt: skip

    def connect(self) -> RouterSite:
        """Return the site as a command sees it."""
        return RouterSite.connect("local", self.serving.url, self.serving.short / "admin.sock")

    def deploy(self, factor: float, how: dict[str, Any] = DIRECT, bundle: tuple[Digest, Path] | None = None) -> int:
        """Deploy in this process; returns the live generation."""
        digest, path = bundle or self.bundles[factor]
        request = self.request(digest, path, how)
        began = time.time()
        with Ledger.open(self.url) as ledger:
            done = deploy(ledger, self.connect(), request, Owner.here("drill"))
        return self._acknowledged("promote", began, digest, done.generation)

    def rollback(self, expect: int | None = None, to: int | None = None) -> int:
        """Roll back in this process; returns the live generation."""
        began = time.time()
        with Ledger.open(self.url) as ledger:
            done = rollback(ledger, self.connect(), ENDPOINT, to=to, expect=expect, actor="bob")
        return self._acknowledged("rollback", began, done.bundle, done.generation)

    def _acknowledged(self, verb: str, began: float, bundle: str, number: int) -> int:
        """Write down what a command was told, in one write: its process may be killed with the next step."""
        args = {"endpoint": ENDPOINT, "bundle": bundle, "request_id": f"{bundle} {number}"}
        row = asdict(Operation(str(os.getpid()), began, time.time(), verb, args, {"generation": number}))
        with self._operations.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return number

    @property
    def operations(self) -> list[Operation]:
        """What commands were told, those of killed processes included."""
        return [Operation(**json.loads(line)) for line in self._operations.read_text().splitlines()]

    def child(self, work: Callable[[], object], *, fault: str = "", log: Path | None = None) -> Child:
        """Do something in a process of its own."""
        self._children.append(Child(work, self.folder / "child.txt", fault=fault, log=log))
        return self._children[-1]

    def stop(self) -> None:
        """End everything."""
        for child in self._children:
            if not child.ended():
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
        self.serving.stop()

    def ask(self, intent: str) -> None:
        """Ask something of the rollout that is under way."""
        with Ledger.open(self.url) as ledger:
            ledger.rollouts.ask(ENDPOINT, intent, actor="bob", reason="drill")  # type: ignore[arg-type]

    @property
    def generations(self) -> tuple[Generation, ...]:
        with Ledger.open(self.url) as ledger:
            return ledger.generations.list(ENDPOINT)

    @property
    def live(self) -> Generation:
        return next(g for g in self.generations if g.state == GenerationState.LIVE)

    @property
    def factor(self) -> float:
        """The factor of the live bundle."""
        return next(factor for factor, bundle in self.bundles.items() if bundle[0] == self.live.bundle)

    @property
    def other(self) -> float:
        return 5.0 - self.factor

    def weight(self) -> int:
        """Return the weight of the newest generation in the router's table."""
        found = self.serving.admin.table().endpoints[ENDPOINT].generations
        newest = max(found, key=lambda g: g.generation)
        return newest.weight if len(found) > 1 and newest.state == "staged" else 0

    def pids(self, generation: int) -> list[int]:
        """Return the replicas of a generation."""
        bundle = next(g.bundle for g in self.generations if g.number == generation)
        rows = self.serving.admin.status()["replicas"]
        return [row["pid"] for row in rows if (row["endpoint"], row["bundle"]) == (ENDPOINT, bundle)]

    @contextmanager
    def traffic(self, clients: int = 6, pause_s: float = 0.01) -> Iterator[Path]:
        """Checked traffic for the length of a block; its answers come into `rows`."""
        self._traffics += 1
        out, job = self.folder / f"answers-{self._traffics}.jsonl", self.folder / "traffic.json"
        told = {"url": self.serving.url, "endpoint": ENDPOINT, "clients": clients, "pause_s": pause_s, "out": str(out)}
        job.write_text(json.dumps(told))
        script = Path(__file__).with_name("rollout_traffic.py")
        process = subprocess.Popen([sys.executable, str(script), str(job)])
        try:
            ServingSite.wait(lambda: out.exists() and out.stat().st_size > 500, 30, "traffic")
            yield out
        finally:
            process.terminate()
            process.wait(60)
            self.rows = [json.loads(line) for line in out.read_text().splitlines()]

    def judge(self, name: str, fired: int, problems: list[str], *, borne: tuple[int, ...] = ()) -> Drill:
        """Compare the last traffic with what the ledger says; `borne`: statuses that this fault may cost."""
        answers = Counter(int(row[3]) for row in self.rows)
        found = [*problems, *([] if fired else ["the fault did not fire"])]
        found += [f"{row[3]}: {row[5]}" for row in self.rows if row[3] not in (200, *borne)]
        good = [row for row in self.rows if row[3] == 200]
        factors = {bundle[0]: factor for factor, bundle in self.bundles.items()}
        found += [
            f"wrong value {row[6]} of {row[5]}" for row in good if abs(factors.get(row[5], row[6]) - row[6]) > 1e-3
        ]
        responses = [Response(row[0], row[1], row[2], row[4], row[5]) for row in good]
        with Ledger.open(self.url) as ledger:
            audit = ledger.audit.rows(limit=100_000)
            ledger.audit.verify()
        found += [f"{v.kind}: {v.text}" for v in check(ENDPOINT, audit, self.operations, responses)]
        return Drill(name, fired, dict(answers), found[:10], _longest_gap_s(good, self.rows))


def _longest_gap_s(good: list[list[Any]], rows: list[list[Any]]) -> float:
    """Return the longest time without a good answer; one that lasts until the end of the traffic counts."""
    times = sorted([row[2] for row in good] + [max((row[2] for row in rows), default=0.0)])
    return max((b - a for a, b in pairwise(times)), default=float("inf"))
