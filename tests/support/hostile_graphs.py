"""Hostile ONNX files: nesting, sizes, what the header claims, and graphs that make a checker work for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support.hostile_base import attack, edited, good, graph_of, varint, wrapped


@attack
def nested_groups(folder: Path) -> bytes:
    """An unknown field of 100,000 nested groups: a parser that follows them by recursion falls off its stack."""
    return b"\xa3\x06" * 100_000 + b"\xa4\x06" * 100_000


@attack
def nested_graphs(folder: Path) -> bytes:
    """30 levels of `If`, each twice: 2^30 graphs for whoever visits both branches of a shared tree; here one chain."""
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "leaf", [], [])
    for _ in range(30):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["z"], then_branch=graph)], "g", [], [])
    model = good()
    model.graph.node.extend(graph.node)
    return model.SerializeToString()


@attack
def nested_beyond_the_parser(folder: Path) -> bytes:
    graph = b""
    for _ in range(3000):
        attribute = b"\x32" + varint(len(graph)) + graph
        node = b"\x2a" + varint(len(attribute)) + attribute
        graph = b"\x0a" + varint(len(node)) + node
    return wrapped(graph)


@attack
def nested_types(folder: Path) -> onnx.ModelProto:
    def change(model: onnx.ModelProto) -> None:
        kind = model.graph.value_info.add(name="deep").type
        for _ in range(20):
            kind = kind.sequence_type.elem_type
        kind.tensor_type.elem_type = 1

    return edited(change)


@attack
def recursive_function(folder: Path) -> onnx.ModelProto:
    def change(model: onnx.ModelProto) -> None:
        body = [helper.make_node("Own", ["x"], ["y"], domain="own")]
        model.functions.append(helper.make_function("own", "Own", ["x"], ["y"], body, [helper.make_opsetid("own", 1)]))

    return edited(change)


@attack
def too_many_nodes(folder: Path) -> bytes:
    return wrapped(b"\x0a\x03\x22\x01A" * 500_001)


@attack
def memory_bomb_of_empty_nodes(folder: Path) -> bytes:
    """24 MB that parse to 2 GB."""
    return wrapped(b"\x0a\x00" * (12 << 20))


@attack
def too_many_tensors(folder: Path) -> bytes:
    return wrapped(b"\x0a\x03\x22\x01A" + b"\x2a\x04\x08\x00\x10\x01" * 500_001)


@attack
def duplicate_opset(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 11)))


@attack
def foreign_domain(folder: Path) -> onnx.ModelProto:
    model = graph_of([helper.make_node("PyOp", ["x"], ["y"], domain="ai.onnx.contrib")])
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    return model


@attack
def foreign_domain_not_imported(folder: Path) -> onnx.ModelProto:
    return graph_of([helper.make_node("PyOp", ["x"], ["y"], domain="ai.onnx.contrib")])


@attack
def opset_zero(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.opset_import[0].__setattr__("version", 0))


@attack
def opset_negative(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.opset_import[0].__setattr__("version", -(2**63)))


@attack
def opset_9999(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.opset_import[0].__setattr__("version", 9999))


@attack
def ir_version_zero(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.__setattr__("ir_version", 0))


@attack
def ir_version_9999(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.__setattr__("ir_version", 9999))


@attack
def empty_operator(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.node[0].__setattr__("op_type", ""))


@attack
def unknown_operator(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.node[0].__setattr__("op_type", "\x1b[2J"))


@attack
def name_of_a_megabyte(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.node[0].__setattr__("name", "a" * (1 << 20)))


@attack
def name_that_is_not_utf8(folder: Path) -> bytes:
    return good().SerializeToString().replace(b"\x1a\x02mm", b"\x1a\x02\xff\xfe")


@attack
def cycle(folder: Path) -> onnx.ModelProto:
    return graph_of(
        [
            helper.make_node("Add", ["x", "b"], ["a"]),
            helper.make_node("Add", ["a", "x"], ["b"]),
            helper.make_node("Relu", ["b"], ["y"]),
        ]
    )


@attack
def node_that_feeds_itself(folder: Path) -> onnx.ModelProto:
    return graph_of([helper.make_node("Add", ["x", "y"], ["y"])])


@attack
def output_made_twice(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.node.append(helper.make_node("Relu", ["x"], ["y"])))


@attack
def initializer_given_twice(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.initializer.append(m.graph.initializer[0]))


@attack
def output_listed_twice(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.output.append(m.graph.output[0]))


@attack
def output_that_nobody_makes(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.output[0].__setattr__("name", "nowhere"))


@attack
def attribute_given_twice(folder: Path) -> onnx.ModelProto:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=0)
    node.attribute.append(helper.make_attribute("axis", 1))
    return graph_of([node])


@attack
def attribute_of_no_function(folder: Path) -> onnx.ModelProto:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=0)
    node.attribute[0].ref_attr_name = "outer"
    return graph_of([node])


def _made(shape: tuple[int | str, ...], *nodes: Any, **constants: Any) -> onnx.ModelProto:
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    return graph_of(list(nodes), weights, shape)


@attack
def constant_of_a_petabyte(folder: Path) -> onnx.ModelProto:
    return _made(("a", "b"), helper.make_node("ConstantOfShape", ["s"], ["y"]), s=np.array([2**40, 2**8], np.int64))


@attack
def expand_to_a_petabyte(folder: Path) -> onnx.ModelProto:
    return _made(
        ("a", "b"),
        helper.make_node("Expand", ["one", "s"], ["y"]),
        one=np.ones((1, 1), np.float32),
        s=np.array([2**24, 2**24], np.int64),
    )


@attack
def tile_a_billion_times(folder: Path) -> onnx.ModelProto:
    return _made(
        ("a", "b"),
        helper.make_node("Tile", ["one", "s"], ["y"]),
        one=np.ones((4, 4), np.float32),
        s=np.array([2**30, 2**30], np.int64),
    )


@attack
def range_of_ten_trillion_floats(folder: Path) -> onnx.ModelProto:
    numbers = {"a": np.float32(0), "b": np.float32(1e13), "c": np.float32(1)}
    return _made(("a",), helper.make_node("Range", ["a", "b", "c"], ["y"]), **numbers)


@attack
def range_of_a_trillion(folder: Path) -> onnx.ModelProto:
    numbers = {"a": np.int64(0), "b": np.int64(2**40), "c": np.int64(1)}
    return _made(
        ("a",),
        helper.make_node("Range", ["a", "b", "c"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=1),
        **numbers,
    )


@attack
def pad_by_a_petabyte(folder: Path) -> onnx.ModelProto:
    return _made(
        ("a", "b"),
        helper.make_node("Pad", ["one", "p"], ["y"]),
        one=np.ones((1, 1), np.float32),
        p=np.array([0, 0, 2**30, 2**30], np.int64),
    )


@attack
def shapes_that_double_forty_times(folder: Path) -> onnx.ModelProto:
    """Data propagation keeps the values of a shape; joined with itself 40 times it has 2^40 of them."""
    nodes = [helper.make_node("Shape", ["x"], ["s0"])]
    nodes += [helper.make_node("Concat", [f"s{i}", f"s{i}"], [f"s{i + 1}"], axis=0) for i in range(40)]
    nodes += [helper.make_node("Cast", ["s40"], ["y"], to=1)]
    return _made(("a",), *nodes)


@attack
def loop_of_loops(folder: Path) -> onnx.ModelProto:
    """A body that itself asks for 2^62 rounds of a body."""

    def body(inner: Any, level: int) -> Any:
        step = helper.make_tensor_value_info(f"i{level}", TensorProto.INT64, [])
        keep = helper.make_tensor_value_info(f"k{level}", TensorProto.BOOL, [])
        nodes = [helper.make_node("Identity", ["yes"], [f"k{level}"])]
        if inner is not None:
            nodes.append(helper.make_node("Loop", ["m", "yes"], [f"o{level}"], body=inner))
        else:
            nodes.append(helper.make_node("Identity", ["x"], [f"o{level}"]))
        out = helper.make_tensor_value_info(f"o{level}", TensorProto.FLOAT, None)
        passed = helper.make_tensor_value_info(f"c{level}", TensorProto.BOOL, [])
        return helper.make_graph(nodes, f"b{level}", [step, passed], [keep, out])

    graph = None
    for level in range(17):
        graph = body(graph, level)
    return _made(
        ("a", "b", "c"),
        helper.make_node("Loop", ["m", "yes"], ["y"], body=graph),
        m=np.int64(2**62),
        yes=np.array(True),
    )
