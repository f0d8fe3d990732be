"""A scaling written into a graph: weights times powers of two, a few multiplications, scaled epsilons."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from orchestrator.graph.forecast.scaling import Scaling
from orchestrator.graph.forecast.workspace import Workspace


def scaled(space: Workspace, scaling: Scaling) -> Workspace:
    """Return the graph with its factors, in a workspace of its own that shares the file of weights."""
    fresh: dict[str, Any] = {}
    nodes = [made for node in scaling.nodes for made in _node(space, scaling, node, fresh)]
    model = space.derived(nodes, initializers=fresh.values())
    return Workspace(space.folder, model, types=dict(space.types), threads=space.threads, size_bytes=space.size_bytes)


def _node(space: Workspace, scaling: Scaling, node: Any, fresh: dict[str, Any]) -> list[Any]:
    copy = type(node)()
    copy.CopyFrom(node)
    before: list[Any] = []
    after: list[Any] = []
    for position, name in enumerate(node.input):
        if exponent := scaling.weights.get((id(node), position), 0):
            label = f"{name}/x2^{exponent}"
            if label not in fresh:
                fresh[label] = space.store(label, np.ldexp(space.weight(name), exponent))
            copy.input[position] = label
        if exponent := scaling.rescaled.get((id(node), position), 0):
            target = f"{node.name}/scaled{position}"
            before.append(_multiply(copy.input[position], target, exponent, fresh))
            copy.input[position] = target
    if id(node) in scaling.epsilons:
        _scale_epsilon(copy, scaling.epsilons[id(node)])
    for position, name in enumerate(node.output):
        if name in scaling.results and name in scaling.exponents:
            copy.output[position] = f"{name}/scaled"
            after.append(_multiply(f"{name}/scaled", name, -scaling.exponents[name], fresh))
    return [*before, copy, *after]


def _multiply(source: str, target: str, exponent: int, fresh: dict[str, Any]) -> Any:
    label = f"power_of_two/{exponent}"
    fresh.setdefault(label, numpy_helper.from_array(np.asarray(2.0**exponent, np.float32), label))
    return helper.make_node("Mul", [source, label], [target], name=f"{target}/mul")


def _scale_epsilon(node: Any, exponent: int) -> None:
    for attribute in node.attribute:
        if attribute.name == "epsilon":
            attribute.f = math.ldexp(attribute.f, exponent)
            return
    node.attribute.append(helper.make_attribute("epsilon", math.ldexp(1e-5, exponent)))
