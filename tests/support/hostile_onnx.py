"""Hostile and damaged ONNX files, one per attack. `ATTACKS` maps the attack's name to what writes it into a folder.

Beside every model stand a weights file that is fine (`w.bin`, 64 bytes) and, one folder up, what must never be opened: the
canary, a named pipe. Opening it for reading hangs, and while somebody does, a writer can open it too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CANARY = "canary"
ATTACKS: dict[str, Callable[[Path], bytes]] = {}

Build = Callable[[Path], "bytes | onnx.ModelProto"]


def attack(build: Build) -> Build:
    """Register a builder under its function's name."""

    def whole(folder: Path) -> bytes:
        made = build(folder)
        return made if isinstance(made, bytes) else made.SerializeToString()

    ATTACKS[build.__name__] = whole
    return build


def write(name: str, folder: Path) -> Path:
    """Write one hostile model with its surroundings; returns its path, `folder/model/model.onnx`."""
    inner = folder / "model"
    inner.mkdir(parents=True)
    (inner / "w.bin").write_bytes(np.eye(4, dtype=np.float32).tobytes())
    os.mkfifo(folder / CANARY)
    data = ATTACKS[name](inner)
    path = inner / "model.onnx"
    if not path.exists() and not path.is_symlink():
        path.write_bytes(data)
    return path


def canary_is_being_read(folder: Path) -> bool:
    """Tell whether anybody has the canary open for reading right now."""
    try:
        os.close(os.open(folder / CANARY, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise
    return True


def graph_of(nodes: list[Any], weights: list[Any] = [], shape: tuple[int | str, ...] = ("n", 4)) -> onnx.ModelProto:  # noqa: B006
    """Return a model from `x` to `y` of these nodes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(shape))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def good() -> onnx.ModelProto:
    """Return a model that is fine."""
    return graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )


def outside(location: str, **more: str) -> TensorProto:
    """Return tensor `w` whose bytes lie at `location`."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def located(location: str, **more: str) -> onnx.ModelProto:
    """Return a model whose weight lies at `location`."""
    model = good()
    model.graph.initializer[0].CopyFrom(outside(location, **more))
    return model


def rich() -> onnx.ModelProto:
    """Return a model with a bit of everything: subgraph, attribute tensor, sparse, external and typed data, texts, notes."""
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["h", "c"], [f"{op}_out"], name=op)],
            f"{op}_branch",
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, ["n", 4])],
        )
        for op in ("Add", "Mul")
    ]
    nodes = [
        helper.make_node(
            "Constant", [], ["c"], value=helper.make_tensor("v", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
        ),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="mm"),
        helper.make_node("If", ["yes"], ["z"], name="choose", then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Softmax", ["z"], ["s"], axis=-1),
        helper.make_node("Reshape", ["s", "shape"], ["y"]),
    ]
    nodes[1].metadata_props.add(key="source", value="model.py:12")
    weights = [
        outside("w.bin", offset="0", length="64"),
        numpy_helper.from_array(np.array(True), "yes"),
        helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 4]),
    ]
    return graph_of(nodes, weights)


def edited(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    """Return the good model after `change`."""
    model = good()
    change(model)
    return model


def varint(number: int) -> bytes:
    """Encode a protobuf varint."""
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def wrapped(graph: bytes) -> bytes:
    """Return a model file around raw bytes of a graph: ir_version 8, opset 17."""
    return b"\x08\x08" + b"\x42\x04\x0a\x00\x10\x11" + b"\x3a" + varint(len(graph)) + graph


@attack
def external_path_traversal(folder: Path) -> onnx.ModelProto:
    return located(f"../{CANARY}")


@attack
def external_absolute_path(folder: Path) -> onnx.ModelProto:
    return located(str(folder.parent / CANARY))


@attack
def external_in_subfolder_and_back(folder: Path) -> onnx.ModelProto:
    (folder / "sub").mkdir()
    return located(f"sub/../../{CANARY}")


@attack
def external_symlink(folder: Path) -> onnx.ModelProto:
    (folder / "link.bin").symlink_to(folder.parent / CANARY)
    return located("link.bin")


@attack
def external_hard_link(folder: Path) -> onnx.ModelProto:
    (folder.parent / "other").write_bytes(b"\0" * 64)
    os.link(folder.parent / "other", folder / "hard.bin")
    return located("hard.bin")


@attack
def external_pipe(folder: Path) -> onnx.ModelProto:
    os.mkfifo(folder / "pipe")
    return located("pipe")


@attack
def external_device(folder: Path) -> onnx.ModelProto:
    return located("/dev/zero")


@attack
def external_folder(folder: Path) -> onnx.ModelProto:
    (folder / "sub").mkdir()
    return located("sub")


@attack
def external_nul_in_name(folder: Path) -> onnx.ModelProto:
    return located(f"w.bin\0/../../{CANARY}")


@attack
def external_in_sparse_tensor(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.sparse_initializer.add().values.CopyFrom(outside(f"../{CANARY}")))


@attack
def external_in_attribute(folder: Path) -> onnx.ModelProto:
    return graph_of(
        [
            helper.make_node("Constant", [], ["w"], value=outside(f"../{CANARY}")),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ]
    )


@attack
def external_in_sparse_attribute(folder: Path) -> onnx.ModelProto:
    node = onnx.NodeProto(op_type="Constant", output=["w"])
    field = node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor
    field.values.CopyFrom(outside(f"../{CANARY}"))
    field.indices.CopyFrom(outside(f"../{CANARY}"))
    field.dims.extend([4, 4])
    return graph_of([node, helper.make_node("MatMul", ["x", "w"], ["y"])])


@attack
def external_in_subgraph(folder: Path) -> onnx.ModelProto:
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("z", 1, None)],
        [outside(f"../{CANARY}")],
    )
    yes = numpy_helper.from_array(np.array(True), "yes")
    return graph_of([helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)], [yes])


@attack
def external_in_function(folder: Path) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=outside(f"../{CANARY}")),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = graph_of([helper.make_node("Own", ["x"], ["y"], domain="own")])
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(helper.make_function("own", "Own", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)]))
    return model


@attack
def external_offset_beyond_the_file(folder: Path) -> onnx.ModelProto:
    return located("w.bin", offset="60", length="64")


@attack
def external_offset_overflows(folder: Path) -> onnx.ModelProto:
    return located("w.bin", offset=str(2**64 - 1), length="64")


@attack
def external_length_lies(folder: Path) -> onnx.ModelProto:
    return located("w.bin", length="4")


@attack
def external_ranges_overlap(folder: Path) -> onnx.ModelProto:
    (folder / "w.bin").write_bytes(b"\0" * 100)
    model = located("w.bin", offset="0", length="64")
    model.graph.initializer.append(outside("w.bin", offset="32", length="64"))
    model.graph.initializer[1].name = "v"
    return model


@attack
def external_key_sets_an_attribute(folder: Path) -> onnx.ModelProto:
    return located("w.bin", __class__="x", basepath="/etc")


@attack
def external_one_range_a_thousand_times(folder: Path) -> onnx.ModelProto:
    with (folder / "w.bin").open("wb") as file:
        file.truncate(1 << 30)
    model = good()
    for number in range(1000):
        model.graph.initializer.append(outside("w.bin"))
        model.graph.initializer[-1].dims[:] = [1 << 14, 1 << 14]
        model.graph.initializer[-1].name = f"w{number}"
    return model


@attack
def model_is_a_pipe(folder: Path) -> bytes:
    os.mkfifo(folder / "model.onnx")
    return b""


@attack
def model_is_a_link_to_a_device(folder: Path) -> bytes:
    (folder / "model.onnx").symlink_to("/dev/zero")
    return b""


@attack
def model_is_a_folder(folder: Path) -> bytes:
    (folder / "model.onnx").mkdir()
    return b""


@attack
def zero_bytes(folder: Path) -> bytes:
    return b""


@attack
def one_zero_byte(folder: Path) -> bytes:
    return b"\0"


@attack
def truncated(folder: Path) -> bytes:
    return good().SerializeToString()[:-9]


@attack
def random_bytes(folder: Path) -> bytes:
    return np.random.default_rng(7).bytes(4096)


@attack
def pickle_in_disguise(folder: Path) -> bytes:
    return b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94."


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
def dimensions_overflow(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.initializer[0].dims.extend([2**32, 2**32]))


@attack
def dimensions_wrap_to_the_right_size(folder: Path) -> onnx.ModelProto:
    """4 x 4 x 2^62 x 4 wraps to 0 in 64 bits."""
    return edited(lambda m: m.graph.initializer[0].dims.extend([2**62, 4]))


@attack
def negative_dimension(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.initializer[0].dims.__setitem__(slice(None), [-4, -4]))


@attack
def negative_dimension_of_an_input(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", -(2**63)))


@attack
def rank_of_a_thousand(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.initializer[0].dims.extend([1] * 1000))


@attack
def huge_tensor_without_data(folder: Path) -> onnx.ModelProto:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].ClearField("raw_data")
        model.graph.initializer[0].dims[:] = [1 << 17, 1 << 17]

    return edited(change)


@attack
def less_data_than_declared(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.initializer[0].__setattr__("raw_data", b"\0" * 8))


@attack
def data_in_two_fields(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.initializer[0].float_data.extend([1.0] * 16))


@attack
def data_in_the_wrong_field(folder: Path) -> onnx.ModelProto:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].ClearField("raw_data")
        model.graph.initializer[0].int64_data.extend([1] * 16)

    return edited(change)


@attack
def unknown_element_type(folder: Path) -> bytes:
    return good().SerializeToString().replace(b"\x10\x01\x42\x01w", b"\x10\x63\x42\x01w")


@attack
def string_tensor_in_raw_bytes(folder: Path) -> onnx.ModelProto:
    return edited(lambda m: m.graph.initializer[0].__setattr__("data_type", TensorProto.STRING))


@attack
def string_output(folder: Path) -> onnx.ModelProto:
    words = helper.make_tensor("words", TensorProto.STRING, [1], [b"a"])
    model = graph_of([helper.make_node("Identity", ["words"], ["y"])], [words], (1,))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    return model


@attack
def sequence_input(folder: Path) -> onnx.ModelProto:
    value = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    return edited(lambda m: m.graph.input.append(value))


@attack
def map_input(folder: Path) -> onnx.ModelProto:
    value = onnx.ValueInfoProto(name="m")
    value.type.map_type.key_type = TensorProto.INT64
    value.type.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    return edited(lambda m: m.graph.input.append(value))


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
