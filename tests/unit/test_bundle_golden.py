"""Golden samples: what is written is read, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from orchestrator.bundle.golden import read_golden, write_golden
from orchestrator.core.errors import GateError, IntegrityError

X = {"image": np.arange(24, dtype=np.float32).reshape(3, 2, 4), "mask": np.array([True, False, True])}
Y = {"logits": np.arange(6, dtype=np.float16).reshape(3, 2), "label": np.arange(3, dtype=np.int64)}


def test_round_trip_and_the_same_bytes_every_time(tmp_path: Path) -> None:
    write_golden(tmp_path / "a", X, Y)
    write_golden(tmp_path / "b", dict(reversed(X.items())), Y)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    golden = read_golden(tmp_path / "a")
    assert golden.count == 3
    for written, read in ((X, golden.inputs), (Y, golden.outputs)):
        assert set(written) == set(read)
        for name, array in written.items():
            assert array.dtype == read[name].dtype
            np.testing.assert_array_equal(array, read[name])


def test_a_view_that_is_not_contiguous_is_written_as_it_reads(tmp_path: Path) -> None:
    view = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::-1]
    write_golden(tmp_path / "a", {"x": view}, {"y": view.T.copy().T})
    np.testing.assert_array_equal(read_golden(tmp_path / "a").inputs["x"], view)
    np.testing.assert_array_equal(read_golden(tmp_path / "a").outputs["y"], view)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({}, Y),
        (X, {}),
        (X, {"y": np.zeros((2, 1))}),
        ({"x": np.zeros((0, 1))}, {"y": np.zeros((0, 1))}),
        ({"x": np.float32(1)}, {"y": np.float32(1)}),
        ({"": np.zeros(1)}, {"y": np.zeros(1)}),
        ({"x": np.array(["a"])}, {"y": np.zeros(1)}),
        ({"x": np.array([object()])}, {"y": np.zeros(1)}),
    ],
)
def test_what_is_no_sample(tmp_path: Path, inputs: dict, outputs: dict) -> None:
    with pytest.raises(GateError):
        write_golden(tmp_path / "a", inputs, outputs)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("data", [None, b"", b"garbage" * 10, b"\xff" * 16, b"\x02\0\0\0\0\0\0\0{}"])
def test_damaged_files(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "a").write_bytes(data)
    with pytest.raises(IntegrityError):
        read_golden(tmp_path / "a")


@pytest.mark.parametrize(
    "tensors",
    [
        {"input/x": np.zeros((2, 1)), "output/y": np.zeros((2, 1)), "other": np.zeros((2, 1))},
        {"input/x": np.zeros((2, 1)), "output/y": np.zeros((3, 1))},
        {"input/x": np.zeros((2, 1))},
        {"input/": np.zeros((2, 1)), "output/y": np.zeros((2, 1))},
    ],
)
def test_files_of_another_form(tmp_path: Path, tensors: dict) -> None:
    save_file(tensors, tmp_path / "a")
    with pytest.raises(IntegrityError):
        read_golden(tmp_path / "a")
