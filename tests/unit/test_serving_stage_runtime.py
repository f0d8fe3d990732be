"""The runtime of stages, in this process: text in, the model's inputs out; errors of the user's code by their kind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from support.stage_bundles import RECIPE, TEXT, stage_bundle

from orchestrator.bundle.unpack import open_unpacked
from orchestrator.core.errors import ServingError
from orchestrator.serving.link.frames import FrameReader, decode_tensors
from orchestrator.serving.link.wire import Placement
from orchestrator.serving.protocol.signature import Signature
from orchestrator.serving.protocol.tensors import Tensor, TensorSpec, from_array
from orchestrator.serving.replica.batch import execute, start
from orchestrator.serving.replica.stages import check_stage, with_stages
from orchestrator.serving.runtimes.api import ExecutionFailed, InputRejected, Job, Session, Stage, runtime
from orchestrator.serving.runtimes.stage_call import call_stage


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage_bundle(tmp_path_factory.mktemp("bundle"))[1]


@pytest.fixture(autouse=True)
def _own_modules() -> Iterator[None]:
    """A replica is a process of its own; here what it imports must not stay."""
    path, modules, write = list(sys.path), set(sys.modules), sys.dont_write_bytecode
    yield
    sys.path[:], sys.dont_write_bytecode = path, write
    for name in set(sys.modules) - modules:
        if name.split(".")[0] in ("text", "parts"):
            del sys.modules[name]


def opened(bundle: Path, stage: Stage) -> Session:
    return runtime("python-stage").load(Job(bundle, "Ascend310P3", bundle.parent, stage=stage))


def texts(*rows: str | bytes) -> Tensor:
    return from_array("text", np.array(rows, object))


def run(session: Session, *inputs: Tensor) -> dict[str, Any]:
    return {tensor.name: tensor.array() for tensor in session.collect(session.submit(inputs))}


def test_text_becomes_what_the_model_takes(bundle: Path) -> None:
    session = opened(bundle, "preprocess")
    assert (session.device, session.max_batch) == ("cpu", 32), "the slot's device is not touched"
    assert session.inputs == (TensorSpec("text", "BYTES", ("batch",)),)
    found = run(session, texts("1 2 3 4", b"one two three 4"))
    np.testing.assert_array_equal(found["x"], np.array([[1, 2, 3, 4]] * 2, np.float32))
    open_unpacked(bundle)  # importing has left nothing behind


def test_what_the_model_gives_becomes_text(bundle: Path) -> None:
    session = opened(bundle, "postprocess")
    found = run(session, from_array("y", np.array([[1, 2, 3, 4]], np.float32)))
    assert found["words"].tolist() == [b"it is 10"]
    assert found["total"].tolist() == [10.0]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("one two x 4", InputRejected, "preprocess text:numbers refuses this input: ValueError: could not convert"),
        (b"\xff", InputRejected, "not UTF-8"),
        ("key", ExecutionFailed, "failed on this input: KeyError: 'absent'"),
        ("666 2 3 4", ExecutionFailed, r"gave 'x' as FP32\[1, 5\], expected FP32\[batch, 4\]: axis 1 must be 4"),
    ],
)
def test_errors_of_the_users_code_by_their_kind(bundle: Path, text: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        run(opened(bundle, "preprocess"), texts(text))


def test_a_bad_request_does_not_fail_those_beside_it(bundle: Path) -> None:
    session = opened(bundle, "preprocess")
    signature = Signature(session.inputs, session.outputs, session.max_batch)
    work = start(session, signature, 7, [texts("1 1 1 1", "key", "2 2 2 2", "x", "3 3 3 3")], [1, 1, 1, 1, 1])
    (frame,) = FrameReader().feed(b"".join(execute(session, work)))
    statuses = cast("list[dict[str, str] | None]", frame.head["status"])
    assert [status and status["kind"] for status in statuses] == [None, "execution", None, "rejected", None]
    (tensor,) = decode_tensors(frame, "outputs")
    np.testing.assert_array_equal(cast("Any", tensor.array())[:, 0], [1, 2, 3])


@pytest.mark.parametrize("stage", ["preprocess", "postprocess"])
def test_a_stage_proves_itself_on_the_bundles_samples(bundle: Path, stage: Stage) -> None:
    assert check_stage(opened(bundle, stage), bundle, stage) == 32


def test_a_stage_that_computes_otherwise_here_does_not_serve(tmp_path: Path) -> None:
    seed = "import sys\nOFF = 'pytest' in sys.modules and '_off' in sys.modules\n"
    bundle = stage_bundle(
        tmp_path, files={"text.py": seed + TEXT.replace('given["y"].sum(1)', 'given["y"].sum(1) + OFF')}
    )[1]
    for name in ("text", "parts", "parts.words"):
        sys.modules.pop(name, None)
    sys.modules["_off"] = sys
    try:
        with pytest.raises(ServingError, match=r"postprocess: self-check of sample 0: output 'total' is off"):
            check_stage(opened(bundle, "postprocess"), bundle, "postprocess")
    finally:
        del sys.modules["_off"]


def test_raw_bytes_and_a_stage_that_joins_nothing(tmp_path: Path) -> None:
    recipe = RECIPE.replace("dtype: string, shape: [batch]}}\n  outputs", "dtype: bytes, shape: [1]}}\n  outputs")
    code = TEXT.replace('given["text"]', '[row.decode() for row in given["text"]]')
    session = opened(stage_bundle(tmp_path, recipe=recipe, files={"text.py": code})[1], "preprocess")
    assert session.max_batch == 1
    assert run(session, texts("1 2 3 4"))["x"].tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("gives", "says"),
    [
        (None, "gave NoneType, expected a dict"),
        ({"z": np.zeros(2)}, r"gave \['z'\], expected \['y'\]"),
        ({"y": np.zeros((2, 3))}, "as FP64.*give it as FP32"),
        ({"y": np.zeros(2, np.float32)}, "rank 1 is not 2"),
        ({"y": np.zeros((3, 3), np.float32)}, "it took 2 rows and must give as many"),
        ({"y": np.zeros((2, 3), np.complex64)}, "which the protocol cannot carry"),
        ({"y": np.array([[{}]])}, "must be bytes or text"),
    ],
)
def test_outputs_are_held_against_what_was_declared(gives: Any, says: str) -> None:
    spec = TensorSpec("y", "FP32", ("batch", 3))
    with pytest.raises(ExecutionFailed, match=says):
        call_stage(lambda _: gives, "stage", [texts("a", "b")], [spec], rows=2)


def test_a_stage_that_ends_its_process_by_name_is_an_error_of_the_request() -> None:
    with pytest.raises(ExecutionFailed, match="tried to end its process: SystemExit: 3"):
        call_stage(lambda _: sys.exit(3), "stage", [texts("a")], [TensorSpec("y", "FP32", (1,))])


def test_what_is_not_installed_is_named(tmp_path: Path, bundle: Path) -> None:
    fresh = stage_bundle(
        tmp_path, files={"text.py": "import sys\nif '_serving' in sys.modules: import not_there_at_all\n" + TEXT}
    )[1]
    for name in ("text", "parts", "parts.words"):
        sys.modules.pop(name, None)
    sys.modules["_serving"] = sys
    try:
        with pytest.raises(ServingError, match="not_there_at_all") as refused:
            opened(fresh, "preprocess")
    finally:
        del sys.modules["_serving"]
    assert "install not_there_at_all where the site serves" in refused.value.hint
    with pytest.raises(ServingError, match="no stage 'model'"):
        opened(bundle, "model")


def test_an_agent_runs_the_stages_beside_the_model(bundle: Path, tmp_path: Path) -> None:
    placed = Placement("e", f"sha256:{bundle.name}", str(bundle), "onnx-cpu", "cpu (rehearsal)")
    found = with_stages([placed])
    assert [(p.stage, p.runtime) for p in found] == [
        ("model", "onnx-cpu"), ("preprocess", "python-stage"), ("postprocess", "python-stage"),
    ]  # fmt: skip
    (tmp_path / "serve.json").write_text("{")
    damaged = Placement("e", "sha256:0", str(tmp_path), "onnx-cpu", "cpu (rehearsal)")
    assert with_stages([damaged]) == [damaged]


def test_the_runtime_needs_no_heavy_library() -> None:
    code = "import sys, orchestrator.serving.runtimes.python_stage, orchestrator.serving.replica.stages\n"
    code += "print(sorted({'torch', 'onnx', 'onnxruntime', 'pydantic', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
