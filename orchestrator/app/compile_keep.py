"""`compile --keep`: the files of nodes to keep in fp32, held against the graph and the SoC they are given for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from orchestrator.core.errors import UsageError
from orchestrator.steps.compile_job import KEEP_DTYPE, MODIFY_MIXLIST

_BY_TYPE: Final = "OpType::"
_NAMED: Final = 5


def keep_files(keep: Path | None) -> dict[str, Path]:
    """Return option of ATC -> file: of one file, or of a forecast's folder.

    Raises:
        UsageError: There is no such file, or the folder is none of a forecast.
    """
    if keep is None:
        return {}
    path = keep.expanduser().absolute()
    if path.is_dir():
        pairs = (("keep_dtype", KEEP_DTYPE), ("modify_mixlist", MODIFY_MIXLIST))
        found = {name: path / file for name, file in pairs if (path / file).is_file()}
        if not found:
            hint = "give the folder that `forecast --out` wrote"
            raise UsageError(f"{str(keep)!r} has no {KEEP_DTYPE} and no {MODIFY_MIXLIST}", place="--keep", hint=hint)
        return found
    if not path.is_file():
        raise UsageError(f"there is no file {str(keep)!r}", place="--keep", hint="give a keep_dtype file")
    return {"modify_mixlist" if path.suffix == ".json" else "keep_dtype": path}


def check_kept(graph: Path, files: Mapping[str, Path], *, soc: str, precision: str, prepared: bool) -> list[str]:
    """Hold the list of nodes against the graph that ATC reads; return what should be known of those on this SoC.

    Lines `OpType::…` name kernels and not nodes of the file; they are ATC's to check.

    Raises:
        UsageError: A name is of no node: the list is of another model, or of the graph before or after its rewrites.
        PlanError: The SoC is unknown.
    """
    path = files.get("keep_dtype")
    listed = _listed(path) if path is not None else []
    if not listed:
        return []
    from orchestrator.graph.coverage import cover

    strict = {node.node: node for node in cover(graph, soc=soc, toolchain="atc", precision="origin").nodes}
    absent = [name for name in listed if name not in strict]
    if absent:
        raise _absent(absent, listed, list(strict), prepared=prepared)
    if precision in {"origin", "fp32"}:
        return []
    plain = {node.node: node for node in cover(graph, soc=soc, toolchain="atc", precision=precision).nodes}
    lost = [name for name in listed if strict[name].verdict == "blocked" and plain[name].verdict != "blocked"]
    if not lost:
        return []
    kinds = ", ".join(dict.fromkeys(strict[name].op_type for name in lost))
    return [f"--keep: {soc} has no float32 kernel of {kinds}: it cannot keep {_some(lost)}"]


def _listed(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith(("#", _BY_TYPE))))


def _absent(absent: Sequence[str], listed: Sequence[str], names: Sequence[str], *, prepared: bool) -> UsageError:
    near = difflib.get_close_matches(absent[0], names, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    hint += (
        "the list must be of this graph" if prepared else "a forecast's list is of the prepared graph: add --prepare"
    )
    text = f"{len(absent)} of the {len(listed)} nodes to keep are not in the graph: {_some(absent)}"
    return UsageError(text, place="--keep", hint=hint)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(name[:80] for name in names[:_NAMED]) + more
