"""A segment: consecutive steps on one site, handed over as one file, and the folders that belong to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.core.digests import hex_of
from orchestrator.core.errors import InfraError
from orchestrator.core.files import write_json
from orchestrator.plan.model import Draft, draft_from_json, draft_to_json

SCHEMA: Final = 2


@dataclass(frozen=True, slots=True)
class SegmentStep:
    """One step of a segment and the number of this attempt.

    Attributes:
        newer_than: Only a stored result that began after this time (Unix seconds) counts; 0 = any does.
        clean: Empty the step's work folder first.
    """

    draft: Draft
    attempt: int
    newer_than: float = 0.0
    clean: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """What a site gets.

    Attributes:
        store: The artifact store's folder.
        work: Where steps keep private folders by fingerprint.
        recipe_dir: The user's code.
        site_file: Where the address of the site's Ray cluster appears once it is up.
        known: Result of each earlier step that this segment takes inputs from: `{output: digest}` by step.
    """

    execution: str
    folder: Path
    store: Path
    work: Path
    recipe_dir: Path
    site_name: str
    site_state: Path
    allow_cpu: bool
    site_file: Path
    known: Mapping[str, Mapping[str, str]]
    steps: tuple[SegmentStep, ...]

    @property
    def path(self) -> Path:
        """The file that the worker reads."""
        return self.folder / "segment.json"

    @property
    def events(self) -> Path:
        """The file that the worker appends its events to, one JSON object a line."""
        return self.folder / "events.ndjson"

    def log(self, step: str, attempt: int) -> Path:
        """Where everything that a step prints goes."""
        return self.folder.parent / "logs" / f"{step}.{attempt}.log"

    def write(self) -> None:
        """Write the segment's file."""
        data = {
            "schema": SCHEMA,
            "execution": self.execution,
            "store": str(self.store),
            "work": str(self.work),
            "recipe_dir": str(self.recipe_dir),
            "site": {"name": self.site_name, "state": str(self.site_state), "allow_cpu": self.allow_cpu},
            "site_file": str(self.site_file),
            "known": {step: dict(outputs) for step, outputs in self.known.items()},
            "steps": [
                {
                    "draft": draft_to_json(s.draft),
                    "attempt": s.attempt,
                    "newer_than": s.newer_than,
                    "clean": s.clean,
                }
                for s in self.steps
            ],
        }
        write_json(self.path, data, mode=0o600)  # parameters may be secrets

    @classmethod
    def read(cls, path: Path) -> Segment:
        """Read a segment's file.

        Raises:
            InfraError: It was written by another version.
        """
        data = cast("dict[str, Any]", json.loads(path.read_bytes()))
        if data["schema"] != SCHEMA:
            raise InfraError(
                f"the segment has schema {data['schema']}, this worker reads {SCHEMA}",
                hint="install the same version of orchestrator on both sides",
                place=str(path),
            )
        return cls(
            execution=data["execution"],
            folder=path.parent,
            store=Path(data["store"]),
            work=Path(data["work"]),
            recipe_dir=Path(data["recipe_dir"]),
            site_name=data["site"]["name"],
            site_state=Path(data["site"]["state"]),
            allow_cpu=data["site"]["allow_cpu"],
            site_file=Path(data["site_file"]),
            known=data["known"],
            steps=tuple(
                SegmentStep(draft_from_json(s["draft"]), s["attempt"], s["newer_than"], s["clean"])
                for s in data["steps"]
            ),
        )


def work_folder(work: Path, fingerprint: str) -> Path:
    """Return the private folder of a fingerprint; the same for every attempt and every execution."""
    return work / hex_of(fingerprint)[:32]
