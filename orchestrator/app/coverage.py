"""`coverage`: a graph against a SoC, as it is or after the rewrites that its toolchain gets."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import OrchestratorError, UsageError

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
    """What was found.

    Attributes:
        prepared: What the rewrites did; None where the graph was covered as given.
        after: One line: what `--prepare` would make of a graph that is blocked as given; empty where it is not tried.
    """

    model: Path
    coverage: Coverage
    prepared: Prepared | None
    after: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the whole answer as one object."""
        prepared = None if self.prepared is None else self.prepared.to_json()
        return {"model": str(self.model), **self.coverage.to_json(), "prepared": prepared, "with_prepare": self.after}


def examine(request: CoverageRequest) -> CoverageAnswer:
    """Cover one ONNX file.

    Raises:
        UsageError: The file is not there, or an option is for `--prepare` alone.
        PlanError: SoC, toolchain, precision mode or rewrite do not exist or do not fit.
        GateError: The file is refused, or a rewrite cannot be done.
    """
    from orchestrator.graph.coverage import check_toolchain

    if not request.model.is_file():
        raise UsageError(f"no file {str(request.model)!r}", hint="give the path of an .onnx file")
    if not request.prepare:
        if request.shapes or request.switches:
            raise UsageError("--shape and --rewrite change the graph", hint="add --prepare")
        found = _cover(request.model, request)
        return CoverageAnswer(request.model, found, None, _after(found, request))
    check_toolchain(request.toolchain)
    check_sizes(request.model, request.shapes)
    found, prepared = _prepared(request)
    return CoverageAnswer(request.model, found, replace(prepared, path=request.model))


def _prepared(request: CoverageRequest) -> tuple[Coverage, Prepared]:
    from orchestrator.graph.prepare import prepare

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
        return _cover(prepared.path, request), prepared


def _after(found: Coverage, request: CoverageRequest) -> str:
    """Say what the rewrites would make of a blocked graph, where any of them is meant for what blocks it."""
    if not any(node.rewrite for node in found.offending("blocked")):
        return ""
    try:
        after, _ = _prepared(request)
    except OrchestratorError as error:
        return f"with --prepare, as every run does: {error.message}"
    counts = ", ".join(f"{count} {verdict}" for verdict, count in after.counts.items() if count)
    return f"with --prepare, as every run does: {after.verdict} ({len(after.nodes)} nodes: {counts})"


def check_sizes(model: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Hold names typed with `--shape` against the graph: a misspelt one would change nothing, without a word.

    A recipe's sizes may be for another of its inputs; what is typed for one file is for that file.

    Raises:
        UsageError: No input has a dimension of that name.
        GateError: The file is refused.
    """
    from orchestrator.graph.read import inspect_onnx

    inputs = inspect_onnx(model).inputs if shapes else ()
    names = dict.fromkeys(dim for item in inputs for dim in item.shape if isinstance(dim, str))
    strange = next((name for name in shapes if name not in names), None)
    if strange is not None:
        near = get_close_matches(strange, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        hint += f"sizes that vary: {', '.join(names)}" if names else "none of its sizes varies: leave --shape out"
        raise UsageError(f"the graph has no size called {strange[:80]!r}", place="--shape", hint=hint)


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
