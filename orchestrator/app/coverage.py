"""`coverage`: a graph against a SoC, as it is or after the rewrites that its toolchain gets."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.graph.coverage import Coverage
    from orchestrator.graph.prepare import Prepared


@dataclass(frozen=True, slots=True)
class CoverageRequest:
    """What was asked on the command line.

    Attributes:
        prepare: Cover the graph that the rewrites leave, not the one given.
        shapes: Dimension name -> sizes, for `prepare`.
        switches: Rewrite -> on or off, for `prepare`.
        cann: Home of a CANN to ask, in place of one found on the machine.
    """

    model: Path
    soc: str | None
    toolchain: str
    precision: str
    prepare: bool
    shapes: Mapping[str, Sequence[int]]
    switches: Mapping[str, bool]
    cann: Path | None


@dataclass(frozen=True, slots=True)
class CoverageAnswer:
    """What was found; `prepared` is None where the graph was covered as given."""

    model: Path
    coverage: Coverage
    prepared: Prepared | None

    def to_json(self) -> dict[str, Any]:
        """Return the whole answer as one object."""
        prepared = None if self.prepared is None else self.prepared.to_json()
        return {"model": str(self.model), **self.coverage.to_json(), "prepared": prepared}


def examine(request: CoverageRequest) -> CoverageAnswer:
    """Cover one ONNX file.

    Raises:
        UsageError: The file is not there, or an option is for `--prepare` alone.
        PlanError: SoC, toolchain, precision mode or rewrite do not exist or do not fit.
        GateError: The file is refused, or a rewrite cannot be done.
    """
    from orchestrator.graph.prepare import prepare

    if not request.model.is_file():
        raise UsageError(f"no file {str(request.model)!r}", hint="give the path of an .onnx file")
    if not request.prepare:
        if request.shapes or request.switches:
            raise UsageError("--shape and --rewrite change the graph", hint="add --prepare")
        return CoverageAnswer(request.model, _cover(request.model, request), None)
    with tempfile.TemporaryDirectory(prefix="orchestrate-coverage-") as folder:
        prepared = prepare(
            request.model,
            Path(folder) / "prepared",
            toolchain=request.toolchain,
            soc=request.soc,
            precision=request.precision,
            shapes=request.shapes,
            switches=request.switches,
        )
        found = _cover(prepared.path, request)
    return CoverageAnswer(request.model, found, replace(prepared, path=request.model))


def _cover(path: Path, request: CoverageRequest) -> Coverage:
    from orchestrator.graph.coverage import cover

    return cover(
        path, soc=request.soc, toolchain=request.toolchain, precision=request.precision, installed=request.cann
    )


def sizes(texts: Sequence[str]) -> dict[str, list[int]]:
    """Read `batch=1,4,16`, repeated.

    Raises:
        UsageError: One is not of that form.
    """
    found: dict[str, list[int]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        parts = values.split(",")
        if not name or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
            raise UsageError(f"--shape {text[:80]!r} is not NAME=SIZE[,SIZE…]", hint="for example --shape batch=1,4,16")
        if name in found:
            raise UsageError(f"--shape names {name!r} twice", hint=f"write its sizes once: --shape {name}=1,4,16")
        found[name] = [int(part) for part in parts]
    return found


def switches(texts: Sequence[str]) -> dict[str, bool]:
    """Read `decompose_gelu=off`, repeated.

    Raises:
        UsageError: One is not of that form.
    """
    words = {"on": True, "true": True, "off": False, "false": False}
    found: dict[str, bool] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or value not in words:
            raise UsageError(
                f"--rewrite {text!r} is not NAME=on or NAME=off", hint="for example --rewrite narrow_int64=on"
            )
        found[name] = words[value]
    return found
