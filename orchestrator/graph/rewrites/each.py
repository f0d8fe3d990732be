"""The loop that most passes share: go over the nodes of some types, replace each, collect what could not be replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from orchestrator.graph.rewrites.base import CannotRewrite, Changes, Context
from orchestrator.graph.rewrites.build import Builder, Names, nodes

Replace = Callable[[Builder, ir.Node], "bool | None"]
"""Replaces one node; False where the node is not meant. Raises CannotRewrite before it has built anything."""


def each(
    *op_types: str, when: Callable[[Context, ir.Node], bool] | None = None
) -> Callable[[Replace], Callable[[ir.Model, Context], Changes]]:
    """Make a pass of a function that replaces one node.

    A node that cannot be replaced stays, with a note: whether that matters is for coverage and `lower_opset` to say.
    """

    def decorate(replace: Replace) -> Callable[[ir.Model, Context], Changes]:
        def apply(model: ir.Model, context: Context) -> Changes:
            changes, names = Changes(), Names(model)
            for node in nodes(model, *op_types):
                wanted = when(context, node) if when is not None else context.replaces(node.op_type)
                if not wanted:
                    continue
                try:
                    if replace(Builder(model, node, names), node) is not False:
                        changes.nodes.append(node.name or "")
                except CannotRewrite as error:
                    changes.stuck.append(f"{node.name} ({node.op_type}) stays: {error}")
            return changes

        return apply

    return decorate


def on_demand(context: Context, node: ir.Node) -> bool:
    """For passes that are not about an operator: whatever the pass itself finds."""
    del context, node
    return True


def number(value: Any) -> float:
    """Return an attribute as a float."""
    return float(value)
