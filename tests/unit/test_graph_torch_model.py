"""The user's module: built, loaded, saved; pickles refused; errors that say what differs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.core.errors import IntegrityError, UserCodeError
from orchestrator.graph.torch_model import build, load_checkpoint, predictor, save_checkpoint, torch_file_to_safetensors


def net(width: int = 4) -> torch.nn.Sequential:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 2))


@pytest.fixture
def recipe(tmp_path: Path, request: pytest.FixtureRequest):
    before = list(sys.path)
    (tmp_path / "usermodel.py").write_text(
        "import torch\n"
        "def build(): return torch.nn.Linear(3, 2)\n"
        "def wrong(): return 7\n"
        "def raising(): raise KeyError('weights')\n"
    )
    (tmp_path / "broken_usermodel.py").write_text("def build(:\n")
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("usermodel", None)


def test_build_imports_the_factory_from_the_recipes_folder(recipe: Path) -> None:
    assert isinstance(build("usermodel:build", recipe), torch.nn.Linear)


def test_a_module_of_the_same_name_in_another_recipe_is_not_mixed_up(recipe: Path, tmp_path: Path) -> None:
    build("usermodel:build", recipe)
    other = tmp_path / "other"
    other.mkdir()
    (other / "usermodel.py").write_text("import torch\ndef build(): return torch.nn.ReLU()\n")
    assert isinstance(build("usermodel:build", other), torch.nn.ReLU)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("usermodel:absent", "AttributeError"),
        ("nowhere_at_all:build", "ModuleNotFoundError"),
        ("usermodel:wrong", "returned a int"),
        ("usermodel:raising", "KeyError: 'weights'"),
        ("broken_usermodel:build", "SyntaxError"),
        ("usermodel", "no entry point"),
    ],
)
def test_what_can_be_wrong_with_a_factory(recipe: Path, factory: str, message: str) -> None:
    with pytest.raises(UserCodeError, match=message):
        build(factory, recipe)


def test_a_checkpoint_survives_the_round_trip_and_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    module = net()
    with torch.no_grad():
        module[1].running_mean += 3
    one, two = save_checkpoint(module, tmp_path / "one"), save_checkpoint(module, tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    load_checkpoint(other, tmp_path / "one")
    for name, tensor in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_tied_weights_are_written_under_each_name(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.b.weight = self.a.weight

    module = Tied()
    save_checkpoint(module, tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    fresh = Tied()
    load_checkpoint(fresh, tmp_path)
    assert fresh.a.weight is fresh.b.weight
    assert torch.equal(fresh.a.weight, module.a.weight)


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = {**net(5).state_dict(), "extra.weight": torch.zeros(1)}
    del state["2.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserCodeError) as caught:
        load_checkpoint(net(4), tmp_path)
    text = caught.value.message
    assert "missing: 2.bias" in text
    assert "unexpected: extra.weight" in text
    assert "0.weight is float32[5, 3], the module has float32[4, 3]" in text
    assert caught.value.details["missing"] == ["2.bias"]


def test_another_dtype_is_no_silent_cast(tmp_path: Path) -> None:
    save_checkpoint(net().half(), tmp_path)
    with pytest.raises(UserCodeError, match="is float16"):
        load_checkpoint(net(), tmp_path)


@pytest.mark.parametrize("data", [None, b"", b"\x80\x04garbage", b"\xff" * 100])
def test_a_damaged_or_absent_file(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError):
        load_checkpoint(net(), tmp_path)


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_torch_files_of_every_common_form(tmp_path: Path, key: str | None, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in net().state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "in.pt")
    torch_file_to_safetensors(tmp_path / "in.pt", tmp_path / "out" / "model.safetensors")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    load_checkpoint(module, tmp_path / "out")
    assert torch.equal(module[0].weight, net()[0].weight)


class Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"state_dict": Trap(str(canary))}, tmp_path / "in.pt")
    with pytest.raises(UserCodeError, match="holds Python objects") as caught:
        torch_file_to_safetensors(tmp_path / "in.pt", tmp_path / "model.safetensors")
    assert "state_dict()" in caught.value.hint
    assert not canary.exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "in.pt")
    with pytest.raises(UserCodeError, match="holds Python objects"):
        torch_file_to_safetensors(tmp_path / "in.pt", tmp_path / "model.safetensors")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"model": {"a": 1}}])
def test_torch_files_without_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "in.pt")
    with pytest.raises(UserCodeError, match="holds no state dict"):
        torch_file_to_safetensors(tmp_path / "in.pt", tmp_path / "model.safetensors")


@pytest.mark.parametrize("data", [None, b"", b"hello", b"PK\x03\x04" + b"\0" * 50])
def test_files_that_are_no_torch_files(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "in.pt").write_bytes(data)
    with pytest.raises(UserCodeError):
        torch_file_to_safetensors(tmp_path / "in.pt", tmp_path / "model.safetensors")


def test_predict_is_in_eval_mode_whatever_the_mode_of_the_module() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(0.9))
    predict = predictor(module, ["y"])
    x = np.ones((4, 8), np.float32)
    np.testing.assert_array_equal(predict({"x": x})["y"], x)
    assert module.training


def test_the_light_parts_of_the_room_import_no_torch_and_no_onnx() -> None:
    code = (
        "import sys, orchestrator.graph.spec, orchestrator.graph.parity, orchestrator.graph.verdict, orchestrator.ascend.toolchains;"
        "print([n for n in ('torch', 'onnx', 'onnxruntime') if n in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
