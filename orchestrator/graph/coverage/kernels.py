"""Is there a kernel for the node on this SoC, for the dtype that the precision mode leaves; else the AI CPU, which is slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orchestrator.ascend.kernels import cube_dtypes
from orchestrator.ascend.operators import ascend_types, atc_operator, is_local, lowered
from orchestrator.graph.coverage.judge import Question
from orchestrator.graph.coverage.nodes import Node
from orchestrator.graph.coverage.verdicts import Finding, best, worst

_FLOATS: Final = frozenset({"float16", "bfloat16", "float32"})
_HIGHEST_RANK: Final = 8

_DATA_OF_NODE: Final = {"Where": 1, "NonMaxSuppression": 0, "OneHot": 2}
"""Input whose dtype decides, where that is not the first."""

_DATA_OF_KERNEL: Final = {
    "ConcatV2": 0, "Concat": 1, "Split": 1, "Fill": 1, "SelectV2": 1, "Conv2DTranspose": 1, "Conv3DTranspose": 1,
    "OneHot": 2, "Range": 0,
}  # fmt: skip
"""The same for the Ascend-IR operator, whose inputs may have another order."""

_BY_RANK: Final = {
    "Conv": {3: "Conv2D", 4: "Conv2D", 5: "Conv3D"},
    "ConvTranspose": {3: "Conv2DTranspose", 4: "Conv2DTranspose", 5: "Conv3DTranspose"},
    "MaxPool": {3: "MaxPoolV3", 4: "MaxPoolV3", 5: "MaxPool3D"},
    "AveragePool": {3: "AvgPoolV2", 4: "AvgPoolV2", 5: "AvgPool3D"},
}  # fmt: skip


def kernel_finding(node: Node, question: Question) -> Finding | None:
    """Return why the node has no fast kernel, None when it has one."""
    if not question.through_ge or node.folded:
        return None
    types = _types(node)
    if not types:
        return Finding(
            "unknown",
            f"no table says which Ascend operator {node.op_type} becomes",
            "compile it where CANN is installed",
        )
    if not question.kernels.knows(question.family):
        return Finding(
            "unknown",
            f"the shipped kernel table ({question.kernels.name}) has none of this SoC",
            "run it where CANN for this SoC is installed",
        )
    if all(is_local(ir) for ir in types):
        return None
    if (node.rank() or 0) > _HIGHEST_RANK:
        return Finding("unknown", f"rank {node.rank()}: no table speaks of more than {_HIGHEST_RANK} dimensions")
    dtype = _dtype(node)
    if not dtype:
        return Finding(
            "unknown", "shape inference does not know the type of its input", "fix the input shapes (--prepare)"
        )
    operator = atc_operator(node.op_type, node.domain)
    also = operator.also if operator else ()
    found = [_best([_one(ir, dtype, node, question) for ir in types])]
    found += [_one(ir, dtype, node, question) for ir in also]
    verdict = worst(item.verdict for item in found)
    return None if verdict == "ok" else next(item for item in found if item.verdict == verdict)


def _types(node: Node) -> tuple[str, ...]:
    by_rank = _BY_RANK.get(node.op_type, {}).get(node.rank() or 0) if not node.domain else None
    if by_rank:
        return (by_rank,)
    operator = atc_operator(node.op_type, node.domain)
    return operator.types if operator else ascend_types(node.op_type, node.domain)


def _dtype(node: Node) -> str:
    index = _DATA_OF_NODE.get(node.op_type, 0)
    if node.has(index):
        return node.value(index).dtype
    return next((value.dtype for value in node.outputs if value is not None), "")


def _best(findings: Sequence[Finding]) -> Finding:
    verdict = best(item.verdict for item in findings)
    return next(item for item in findings if item.verdict == verdict)


def _one(ir: str, dtype: str, node: Node, question: Question) -> Finding:
    """Judge one Ascend-IR operator."""
    if is_local(ir):
        return Finding("ok", "")
    table, family = question.kernels, question.family
    kernel = table.kernel(ir, family)
    choices = _choices(dtype, question)
    if kernel is not None:
        takes = [kernel.takes(choice, _DATA_OF_KERNEL.get(ir, 0)) for choice in choices]
        if True in takes:
            return Finding("ok", "")
        if None in takes and dtype in {
            "float16",
            "float32",
        }:  # the vector units have both, the matrix unit says its own
            return Finding("ok", "")
    passed_on = lowered(ir)
    if kernel is None and passed_on:
        return _best([_one(other, dtype, node, question) for other in passed_on])
    cpu = table.ai_cpu(ir)
    if cpu is not None and _cpu_takes(cpu, dtype, _DATA_OF_KERNEL.get(ir, 0)):
        return Finding(
            "slow", f"{ir} of {dtype} runs on the AI CPU, which is slow", _narrower(dtype), _narrowing(dtype)
        )
    if kernel is None:
        return _absent(ir, node, question)
    if kernel.takes(dtype, _DATA_OF_KERNEL.get(ir, 0)) is None and not _lacks_bfloat16(dtype, family):
        return Finding(
            "unknown",
            f"the table does not say whether {ir} takes {dtype}: its kernel decides when it is compiled",
            _narrower(dtype),
            _narrowing(dtype),
        )
    return Finding("blocked", _refused(ir, dtype, question), _dtype_fix(dtype, question), _narrowing(dtype))


def _absent(ir: str, node: Node, question: Question) -> Finding:
    table, family = question.kernels, question.family
    operator = atc_operator(node.op_type, node.domain)
    if operator is not None and operator.listed and family == "ascend310p" and not _elsewhere(ir, question):
        return Finding("ok", f"{ir} has no kernel of its own name; the vendor lists {node.op_type} for this series")
    if _elsewhere(ir, question):
        return Finding(
            "blocked",
            f"{ir} has no kernel on {family} ({table.name}), nor on the AI CPU",
            "write it with other operators, or choose another SoC",
        )
    return Finding(
        "unknown",
        f"no table has a kernel called {ir}: graph passes may replace it, which the tables do not say",
        "compile it where CANN is installed",
    )


def _elsewhere(ir: str, question: Question) -> bool:
    """Tell whether other families have the kernel, so that its absence here means something."""
    from orchestrator.ascend.kernels import shipped

    return any(ir in kernels for kernels in (*question.kernels.core.values(), *shipped().core.values()))


def _choices(dtype: str, question: Question) -> tuple[str, ...]:
    """Return the dtypes that the compiler may turn the tensor into under the precision mode."""
    if question.strict or dtype not in _FLOATS:
        return (dtype,)
    lower = "bfloat16" if question.precision == "mixed_bfloat16" else "float16"
    return (lower, "float32") if dtype != "bfloat16" else ("bfloat16", "float32")


def _lacks_bfloat16(dtype: str, family: str) -> bool:
    hardware = cube_dtypes(family)
    return dtype == "bfloat16" and hardware is not None and "bfloat16" not in hardware


def _cpu_takes(rows: Sequence[frozenset[str] | None], dtype: str, index: int) -> bool:
    row = rows[min(index, len(rows) - 1)] if rows else None
    return row is None or dtype in row


def _refused(ir: str, dtype: str, question: Question) -> str:
    mode = f" (precision {question.precision} keeps it)" if question.strict and dtype == "float32" else ""
    return f"{ir} has no kernel for {dtype} on {question.family}{mode}, nor one on the AI CPU"


def _dtype_fix(dtype: str, question: Question) -> str:
    if question.strict and dtype == "float32":
        return "use precision fp16, mixed_float16 or cube_fp16in_fp32out"
    return _narrower(dtype) or "cast it in the model"


def _narrowing(dtype: str) -> str | None:
    return {"int64": "narrow_int64", "float64": "narrow_float64"}.get(dtype)


def _narrower(dtype: str) -> str:
    texts = {
        "int64": "use int32 in the model; for inputs of the model the rewrite narrow_int64 does it",
        "float64": "the rewrite narrow_float64 computes it in float32",
    }
    return texts.get(dtype, "")
