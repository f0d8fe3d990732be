"""Target `onnx` without a SoC: the graph itself is what onnxruntime runs; there is nothing to compile."""

from __future__ import annotations

from importlib import metadata

from orchestrator.graph.read import inspect_onnx
from orchestrator.steps.compile_job import Built, CompileJob, copy_graph


def build(job: CompileJob) -> Built:
    """Copy the graph.

    Raises:
        GateError: The graph is refused.
    """
    info = inspect_onnx(job.graph)
    copy_graph(job.graph, job.out)
    facts = {"opset": info.opset, "nodes": info.node_count}
    return Built("onnx-cpu", {"name": "onnxruntime", "version": metadata.version("onnxruntime")}, facts=facts)
