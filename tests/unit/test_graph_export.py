"""Export: the opset that came out, the recipe's names and shapes, unique node names, the same bytes every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from orchestrator.core.errors import GateError, UserCodeError
from orchestrator.graph import export as export_module
from orchestrator.graph.export import ExportInfo, example_inputs, export_onnx
from orchestrator.graph.read import inspect_onnx
from orchestrator.graph.run_onnx import OnnxModel
from orchestrator.graph.spec import TensorSpec, specs

IMAGE = specs({"image": {"dtype": "float32", "shape": ["batch", 1, 8, 8]}})
LOGITS = specs({"logits": {"dtype": "float32", "shape": ["batch", 10]}})


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 10)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, image):
        x = torch.relu(self.norm(self.conv(image)))
        return self.head(self.drop(x.mean((2, 3))))


def do_export(module: torch.nn.Module, out: Path, opset: int = 18, inputs=IMAGE, outputs=LOGITS, **more) -> ExportInfo:
    example = more.pop("example", None) or example_inputs(inputs)
    return export_onnx(module, inputs=inputs, outputs=outputs, example=example, out=out, opset=opset, **more)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export")
    info = do_export(Small(), out, source_root=Path(__file__).parent)
    assert (info.opset, info.exporter, info.tried) == (18, "dynamo", ())
    assert info.worst_sqnr_db["logits"] > 100
    return out


def test_names_shapes_and_opset_are_those_of_the_recipe(exported: Path) -> None:
    info = inspect_onnx(exported / "model.onnx")
    assert info.inputs == IMAGE
    assert info.outputs == LOGITS
    assert info.opsets == {"": 18}
    assert info.op_counts["Conv"] == 1
    assert "Dropout" not in info.op_counts


def test_the_graph_answers_as_torch_does_at_any_batch_size(exported: Path) -> None:
    module, model = Small().eval(), OnnxModel(exported / "model.onnx")
    for batch in (1, 5):
        image = example_inputs(IMAGE, batch=batch)["image"]
        expected = module(torch.from_numpy(image)).detach().numpy()
        np.testing.assert_allclose(model({"image": image})["logits"], expected, atol=1e-5)


def test_node_names_are_unique_non_empty_and_plain_and_say_where_they_come_from(exported: Path) -> None:
    nodes = onnx.load(exported / "model.onnx").graph.node
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names)
    assert all(
        name and set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-")
        for name in names
    )
    sources = {
        entry.value.partition(":")[0] for node in nodes for entry in node.metadata_props if entry.key == "source"
    }
    assert sources == {"test_graph_export.py"}


def test_no_folder_of_this_machine_is_in_the_file(exported: Path) -> None:
    data = (exported / "model.onnx").read_bytes()
    for needle in (b"/site-packages", str(Path(__file__).parent).encode(), os.fsencode(Path.home()), b"stack_trace"):
        assert needle not in data


def test_the_mode_of_the_module_is_kept(tmp_path: Path) -> None:
    module = Small()
    module.norm.eval()
    do_export(module, tmp_path)
    assert module.training
    assert not module.norm.training
    assert not module._forward_hooks


def test_an_opset_that_dynamo_keeps_in_silence_is_noticed_and_the_other_exporter_taken(tmp_path: Path) -> None:
    info = do_export(Small(), tmp_path, 16)
    assert (info.opset, info.exporter) == (16, "torchscript")
    assert info.tried == ("dynamo: wrote opset 18 though 16 was asked",)
    assert inspect_onnx(tmp_path / "model.onnx").opset == 16
    assert inspect_onnx(tmp_path / "model.onnx").outputs == LOGITS


def test_a_newer_opset_is_written_when_asked(tmp_path: Path) -> None:
    info = do_export(Small(), tmp_path, 21)
    assert (info.opset, info.exporter, info.tried) == (21, "dynamo", ())


class Attend(torch.nn.Module):
    def forward(self, image):
        mixed = torch.nn.functional.scaled_dot_product_attention(image, image, image)
        return mixed.flatten(1)[:, :10]


def test_when_nothing_fits_the_error_names_what_each_exporter_gave(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GateError) as caught:
        do_export(Attend(), tmp_path, 11)
    text = caught.value.message
    assert "no exporter gave an ONNX graph of opset 11" in text
    assert "dynamo: wrote opset 18 though 11 was asked" in text
    assert "torchscript: UnsupportedOperatorError: Exporting the operator 'aten::scaled_dot_product_attention'" in text
    assert capfd.readouterr().out == ""
    assert not (tmp_path / "model.onnx").exists()


class Branching(torch.nn.Module):
    """Dynamo cannot follow a Python branch on values; tracing takes the branch of the example."""

    def forward(self, image):
        x = image.flatten(1)[:, :10]
        return x * 2 if x.sum() < 1e9 else x


def test_what_dynamo_cannot_follow_goes_to_torchscript_with_its_warning(tmp_path: Path) -> None:
    info = do_export(Branching(), tmp_path)
    assert info.exporter == "torchscript"
    assert any("Converting a tensor to a Python boolean" in warning for warning in info.warnings)


class Baked(torch.nn.Module):
    def forward(self, image):
        n = image.shape[0]
        noise = torch.zeros(int(n), 10) if n < 1000 else torch.zeros(1, 10)
        return image.flatten(1)[:, :10] + noise


@pytest.mark.parametrize("name", ["embedding", "relu", "linear", "mean"])
def test_an_output_may_be_called_like_an_operator_inside(tmp_path: Path, name: str) -> None:
    class Clashing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 3)

        def forward(self, ids):
            return self.head(torch.relu(self.embedding(ids).mean(1)))

    inputs = specs({"ids": {"dtype": "int64", "shape": ["batch", 5]}})
    outputs = specs({name: {"dtype": "float32", "shape": ["batch", 3]}})
    info = do_export(Clashing(), tmp_path, inputs=inputs, outputs=outputs)
    assert (info.exporter, info.tried) == ("dynamo", ())
    assert inspect_onnx(tmp_path / "model.onnx").outputs == outputs


def test_a_size_that_became_a_constant_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "with_dynamo", export_module.with_torchscript)
    with pytest.raises(GateError, match=r"does not take image\[3, 1, 8, 8\]|became the constant 2"):
        do_export(Baked(), tmp_path)


class Pair(torch.nn.Module):
    """Arguments in another order than the recipe, results by key in another order than the recipe."""

    def forward(self, scale, tokens):
        return {"total": tokens.sum(1), "extra": scale, "scaled": tokens.to(torch.float32) * scale}


PAIR_IN = specs(
    {"tokens": {"dtype": "int64", "shape": ["batch", "length"]}, "scale": {"dtype": "float32", "shape": [1]}}
)
PAIR_OUT = specs(
    {"scaled": {"dtype": "float32", "shape": ["batch", "length"]}, "total": {"dtype": "int64", "shape": ["batch"]}}
)


@pytest.mark.parametrize("opset", [18, 16])
def test_inputs_go_by_name_and_outputs_by_key(tmp_path: Path, opset: int) -> None:
    example = {"tokens": np.arange(6, dtype=np.int64).reshape(2, 3), "scale": np.array([2], np.float32)}
    do_export(Pair(), tmp_path, opset, PAIR_IN, PAIR_OUT, example=example)
    info = inspect_onnx(tmp_path / "model.onnx")
    assert [spec.name for spec in info.inputs] == ["tokens", "scale"]
    assert info.outputs == PAIR_OUT
    found = OnnxModel(tmp_path / "model.onnx")(example)
    np.testing.assert_array_equal(found["total"], [3, 12])
    np.testing.assert_array_equal(found["scaled"], [[0, 2, 4], [6, 8, 10]])


def test_a_batch_of_one_in_the_example_stays_dynamic(tmp_path: Path) -> None:
    do_export(Small(), tmp_path, example=example_inputs(IMAGE, batch=1))
    assert OnnxModel(tmp_path / "model.onnx")(example_inputs(IMAGE, batch=7))["logits"].shape == (7, 10)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"logits": {"dtype": "float32", "shape": ["batch", 12]}}, r"expected float32\[batch, 12\]: axis 1"),
        ({"logits": {"dtype": "int64", "shape": ["batch", 10]}}, "dtype float32 is not int64"),
        ({"logits": {"dtype": "float32", "shape": ["batch"]}}, "rank 2 is not 1"),
        ({"image": {"dtype": "float32", "shape": ["batch", 10]}}, "are inputs and outputs"),
    ],
)
def test_a_module_that_does_not_do_what_the_recipe_says(tmp_path: Path, outputs: dict, message: str) -> None:
    with pytest.raises(GateError, match=message):
        do_export(Small(), tmp_path, outputs=specs(outputs))


def test_the_number_of_outputs(tmp_path: Path) -> None:
    two = (*LOGITS, TensorSpec("more", "float32", ("batch",)))
    with pytest.raises(UserCodeError, match="forward returned a Tensor"):
        do_export(Small(), tmp_path, outputs=two)


def test_names_of_several_inputs_must_be_those_of_forward(tmp_path: Path) -> None:
    inputs = specs({"a": {"dtype": "float32", "shape": ["n"]}, "b": {"dtype": "float32", "shape": ["n"]}})
    with pytest.raises(UserCodeError, match=r"takes \['scale', 'tokens'\], the recipe's inputs are \['a', 'b'\]"):
        do_export(Pair(), tmp_path, inputs=inputs, outputs=PAIR_OUT)


def test_a_module_that_raises(tmp_path: Path) -> None:
    inputs = specs({"image": {"dtype": "float32", "shape": ["batch", 3, 8, 8]}})
    with pytest.raises(UserCodeError, match="forward of Small raised RuntimeError"):
        do_export(Small(), tmp_path, inputs=inputs)


@pytest.mark.parametrize("opset", [18, 16])
def test_big_weights_lie_beside_the_model(tmp_path: Path, opset: int) -> None:
    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(64, 10)

        def forward(self, image):
            return self.head(image.flatten(1))

    do_export(Wide(), tmp_path, opset, inline_limit_bytes=100)
    do_export(Wide(), tmp_path, opset, inline_limit_bytes=100)  # again over the old files: nothing is appended
    info = inspect_onnx(tmp_path / "model.onnx")
    assert info.external_files == ("model.onnx.data",)
    assert (tmp_path / "model.onnx.data").stat().st_size < 4000
    assert OnnxModel(tmp_path / "model.onnx")(example_inputs(IMAGE))["logits"].shape == (2, 10)


AGAIN = """
import sys, runpy
from pathlib import Path
test = runpy.run_path(sys.argv[1])
for number, opset in enumerate((18, 16)):
    out = Path(sys.argv[2]) / str(number)
    test["do_export"](test["Small"](), out, opset, source_root=Path(sys.argv[1]).parent)
"""


def test_two_processes_in_two_folders_write_the_same_bytes(tmp_path: Path) -> None:
    children = []
    for name in ("one", "two"):
        elsewhere = tmp_path / name / "user code"
        elsewhere.mkdir(parents=True)
        copy = elsewhere / "test_graph_export.py"
        copy.write_bytes(Path(__file__).read_bytes())
        argv = [sys.executable, "-c", AGAIN, str(copy), str(tmp_path / name)]
        env = {**os.environ, "PYTHONHASHSEED": "1" if name == "one" else "2"}
        children.append(subprocess.Popen(argv, env=env, cwd=elsewhere))
    assert [child.wait(timeout=200) for child in children] == [0, 0]
    for file in ("0/model.onnx", "1/model.onnx", "0/onnx.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert b"user code" not in (tmp_path / "one/0/model.onnx").read_bytes()
