"""What runs in the child of `graph/sandbox.py`: parse, our walk, `onnx.checker` in full, shape inference.

Everything here reads hostile bytes, so the first thing is to give up what it could be used for. The answer goes to
stdout: a line of JSON, and after a yes the graph with all shapes found, without its weights.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.core.errors import GateError
from orchestrator.core.processes import die_with_parent
from orchestrator.graph.limits import Limits

_PARSED_SIZE_RATIO: Final = 5
"""The file, its parsed form and the copies of checker and inference; a graph of honest nodes stays below."""

_LONGEST_REASON: Final = 1500


def main(arguments: list[str]) -> None:
    """Check one file: `PATH LIMITS PARENT_PID`."""
    path, limits = Path(arguments[0]), Limits.from_text(arguments[1])
    die_with_parent(int(arguments[2]))
    confine(limits, path.stat().st_size if path.is_file() else 0)
    answer = sys.stdout.buffer
    try:
        info, graph = examine(path, limits)
    except GateError as error:
        answer.write(json.dumps({"error": error.to_json()}).encode() + b"\n")
        answer.flush()
        return
    answer.write(json.dumps({"info": info}).encode() + b"\n")
    answer.write(graph)
    answer.flush()


def confine(limits: Limits, file_size_bytes: int) -> None:
    """Lower our own limits for good: memory, processor time, size of written files, no core dump."""
    memory = limits.memory_size_bytes + _PARSED_SIZE_RATIO * min(file_size_bytes, limits.file_size_bytes)
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, limits.reply_size_bytes),
    ):
        resource.setrlimit(kind, (most, most))


def examine(path: Path, limits: Limits) -> tuple[str, bytes]:
    """Check the file; return `GraphInfo.to_text()` and the graph with its shapes, without weights.

    The current folder must hold an empty file of the name `weights.NO_FILE`, which is where the checker looks for what
    was taken out.

    Raises:
        GateError: The file is refused.
    """
    from orchestrator.graph.graph_info import describe
    from orchestrator.graph.walk import load_checked, walk
    from orchestrator.graph.weights import take_out

    try:
        model, external = load_checked(path, limits)
        info = describe(model, path, external)
        take_out(model, path.parent)
        whole = model.SerializeToString()
        del model
        found = _check(whole, path)
        walk(found, Path.cwd() / path.name, limits)  # once more, now that shapes are known: what would it allocate?
        return info.to_text(), found.SerializeToString()
    except MemoryError as error:
        raise GateError("the ONNX file is refused: reading it takes too much memory", place=path.name) from error


def _check(whole: bytes, path: Path) -> Any:
    """Run the C++ checker and inference; the strict kind, whose findings are errors, and the kind that finds most."""
    import onnx
    import onnx.checker
    import onnx.shape_inference

    try:
        onnx.checker.check_model(whole, full_check=True)  # pyright: ignore[reportUnknownMemberType] untyped
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        reason = str(error)[:_LONGEST_REASON]
        raise GateError(
            f"the ONNX checker refuses the graph: {reason}", place=path.name, hint="export it again"
        ) from error
    try:
        return cast("Any", onnx.shape_inference).infer_shapes(whole, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        reason = str(error)[:_LONGEST_REASON]
        raise GateError(
            f"shape inference refuses the graph: {reason}", place=path.name, hint="export it again"
        ) from error


if __name__ == "__main__":
    os.umask(0o077)
    main(sys.argv[1:])
