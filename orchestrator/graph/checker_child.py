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

_WEIGHTS_RATIO: Final = 3
"""The file and its parsed form; weights are taken out before they are copied again."""
_GRAPH_RATIO: Final = 16
_GRAPH_SIZE_BYTES: Final = 2**28
"""Nodes take 15 times their size in the file: parsed three times over by checker and inference. Graphs without their weights
stay below this size."""

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
    size = min(file_size_bytes, limits.file_size_bytes)
    memory = limits.memory_size_bytes + _WEIGHTS_RATIO * size + _GRAPH_RATIO * min(size, _GRAPH_SIZE_BYTES)
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
    from orchestrator.graph.walk import check_shapes, load_checked
    from orchestrator.graph.weights import take_out

    try:
        model, external = load_checked(path, limits)
        info = describe(model, path, external)
        take_out(model, path.parent)
        whole = model.SerializeToString()
        del model
        found = _check(whole, path)
        check_shapes(found, path, limits)
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
        reason = _plain(error)
        raise GateError(
            f"the ONNX checker refuses the graph: {reason}", place=path.name, hint="export it again"
        ) from error
    try:
        return cast("Any", onnx.shape_inference).infer_shapes(whole, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        reason = _plain(error)
        raise GateError(
            f"shape inference refuses the graph: {reason}", place=path.name, hint="export it again"
        ) from error


def _plain(error: Exception) -> str:
    """Return the message without control characters: it holds names from the file, and ends up on a terminal."""
    text = " ".join(str(error)[:_LONGEST_REASON].split())
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


if __name__ == "__main__":
    os.umask(0o077)
    main(sys.argv[1:])
