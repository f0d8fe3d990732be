"""The stages around the model: what an agent starts for a placement, and how each proves itself before it serves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from orchestrator.bundle.golden import Golden
from orchestrator.bundle.serve_golden import SERVE_GOLDEN, read_serve_golden
from orchestrator.core.errors import DeviceError, IntegrityError, ServingError
from orchestrator.serving.link.wire import Placement
from orchestrator.serving.replica.golden import self_check
from orchestrator.serving.runtimes.api import Session
from orchestrator.serving.serve_settings import MODEL, read_serve_settings

RUNTIME: Final = "python-stage"


def with_stages(placements: Iterable[Placement]) -> list[Placement]:
    """Return the placements and, beside each whose bundle brings code, one for every stage of it.

    A bundle whose settings cannot be read gets only its model: the replica verifies the bundle and says what is wrong.
    """
    found: list[Placement] = []
    for placement in placements:
        found.append(placement)
        try:
            stages = read_serve_settings(Path(placement.path)).stages
        except IntegrityError:
            continue
        found += [replace(placement, stage=stage, runtime=RUNTIME) for stage in stages if stage != MODEL]
    return found


def check_stage(session: Session, bundle: Path, stage: str) -> int:
    """Run a stage on the bundle's samples; returns the batch size that is safe.

    Raises:
        ServingError: It gives other values here than where the bundle was made.
        IntegrityError: The bundle's samples cannot be read.
    """
    golden = read_serve_golden(bundle / SERVE_GOLDEN)
    pair = (golden.asked, golden.inputs) if stage == "preprocess" else (golden.outputs, golden.answers)
    try:
        return self_check(session, Golden(*pair))
    except DeviceError as error:
        raise ServingError(
            f"{stage}: {error.message}",
            place=str(bundle),
            hint="the same code gives other values here: compare the versions of the libraries that it uses",
        ) from error
