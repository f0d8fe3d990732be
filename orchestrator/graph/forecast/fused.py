"""Tensors that compilers usually keep inside one fused kernel: an overflow there may never be written to memory.

The strict verdict counts every tensor and is the one that gates. The fused one leaves these out, as information.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.graph.forecast.workspace import Workspace


def fused_away(space: Workspace) -> frozenset[str]:
    """Return the tensors inside normalizations, attention scores, GELU and SiLU."""
    makers = {name: node for node in space.graph.node for name in node.output if name}
    found: set[str] = set()
    for node in space.graph.node:
        if node.op_type in {"Div", "Mul"}:
            found.update(_normalization(node, makers))
            found.update(_activation(node, makers))
        if node.op_type == "Softmax":
            found.update(_scores(node.input[0], makers))
    return frozenset(found - {entry.name for entry in space.graph.output})


def _normalization(node: Any, makers: Mapping[str, Any]) -> list[str]:
    """X / Sqrt(ReduceMean(x^2) + eps), or x * Reciprocal(Sqrt(...))."""
    chain = _back(node.input[1], makers, ("Reciprocal",), optional=True)
    chain += _back(chain[-1] if chain else node.input[1], makers, ("Sqrt", "Add", "ReduceMean"))
    last = makers.get(chain[-1]) if chain else None
    if last is None or last.op_type != "ReduceMean":
        return []
    square = makers.get(last.input[0])
    if square is not None and (
        square.op_type == "Pow" or (square.op_type == "Mul" and square.input[0] == square.input[1])
    ):
        return [*chain, square.output[0]]
    return []


def _back(name: str, makers: Mapping[str, Any], kinds: tuple[str, ...], *, optional: bool = False) -> list[str]:
    found: list[str] = []
    for kind in kinds:
        node = next(
            (makers[n] for n in _options(found, name, makers) if n in makers and makers[n].op_type == kind), None
        )
        if node is None:
            return found if optional else []
        found.append(node.output[0])
    return found


def _options(found: list[str], name: str, makers: Mapping[str, Any]) -> Iterator[str]:
    """Yield what may come next: the tensor itself at the start, then any input of the node before."""
    if found:
        yield from makers[found[-1]].input
    else:
        yield name


def _activation(node: Any, makers: Mapping[str, Any]) -> list[str]:
    if node.op_type != "Mul":
        return []
    for name in node.input:
        maker = makers.get(name)
        if maker is None:
            continue
        if maker.op_type in {"Sigmoid", "HardSigmoid"} and maker.input[0] in node.input:  # SiLU
            return [name]
        if maker.op_type == "Add":  # GELU: Mul(x, Add(Erf(Div(x)), 1))
            inner = next((makers[n] for n in maker.input if n in makers and makers[n].op_type in {"Erf", "Tanh"}), None)
            if inner is not None:
                return [name, inner.output[0], *(n for n in inner.input if n in makers)]
    return []


def _scores(name: str, makers: Mapping[str, Any]) -> list[str]:
    """MatMul, scaling and mask between it and Softmax."""
    found: list[str] = []
    while (node := makers.get(name)) is not None and len(found) < 4:
        found.append(name)
        if node.op_type == "MatMul":
            return found
        if node.op_type not in {"Mul", "Div", "Add", "Where"}:
            return []
        name = next((n for n in node.input if n in makers and makers[n].op_type != "Constant"), "")
    return []
