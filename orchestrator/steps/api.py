"""The contract between the worker and a step: a context in, a result out, files and numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

CHECKPOINT = "application/vnd.orchestrate.checkpoint.v1"
ONNX = "application/vnd.orchestrate.onnx.v1"
TWIN = "application/vnd.orchestrate.twin.v1"
BUNDLE = "application/vnd.orchestrate.bundle.v1"
REPORT = "application/vnd.orchestrate.report.v1"
FILES = "application/vnd.orchestrate.files.v1"


class StepEvents(Protocol):
    """How a running step speaks; every call also counts as a heartbeat."""

    def progress(self, done: float, total: float, text: str = "") -> None:
        """Report `done` of `total`, in the step's own unit."""
        ...

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """Report one value; `step` is the epoch or iteration it belongs to. Streamed to MLflow while the step runs."""
        ...

    def message(self, text: str) -> None:
        """Say one line to the person who watches."""
        ...


@dataclass(frozen=True, slots=True)
class SiteInfo:
    """What a step may know of the site it runs on.

    `ray_address` is `host:port` of the GCS, empty where the site has no Ray; tokens are paths, never values.
    """

    name: str
    allow_cpu: bool
    state: Path
    ray_address: str = ""
    ray_token_path: str = ""


@dataclass(frozen=True, slots=True)
class StepContext:
    """All that a step gets.

    Attributes:
        spec: The resolved, JSON-ready settings of the step; everything that the fingerprint covers and the gates.
        recipe_dir: The folder of the user's code; already on `sys.path`.
        inputs: Verified, read-only artifact folders by input name.
        work: A private folder that survives attempts of the same fingerprint; checkpoints live here.
        out: A fresh folder per attempt; a result's folders lie below it.
        attempt: 1, 2, 3 …
    """

    step: str
    kind: str
    spec: Mapping[str, Any]
    recipe_dir: Path
    inputs: Mapping[str, Path]
    work: Path
    out: Path
    site: SiteInfo
    attempt: int
    events: StepEvents


@dataclass(frozen=True, slots=True)
class Output:
    """A folder to commit as an artifact."""

    folder: Path
    media_type: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step leaves: folders, numbers, and small JSON facts (opset, device, versions)."""

    outputs: Mapping[str, Output] = field(default_factory=dict[str, Output])
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Step(Protocol):
    """The one callable that a step's module exports as `run`."""

    def __call__(self, ctx: StepContext) -> StepResult:
        """Do the work.

        Raises:
            UserCodeError: The user's code failed.
            GateError: The step itself said no (preflight, parity); gates on metrics are judged later.
            InfraError: Something else failed; another attempt may help.
        """
        ...
