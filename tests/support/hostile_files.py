"""Hostile ONNX files: where bytes lie, what kind of file it is, and what tensors say of themselves."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support.hostile_base import CANARY, attack, edited, good, graph_of, located, outside


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
