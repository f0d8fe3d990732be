"""Every hostile ONNX file ends in a typed error: no signal, no hang, nothing outside its folder opened."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import hostile_onnx as hostile

from orchestrator.core.errors import GateError, InternalError
from orchestrator.graph import checker_child, sandbox
from orchestrator.graph.limits import Limits
from orchestrator.graph.read import inferred, inspect_onnx, load_model
from orchestrator.graph.sandbox import check_in_child
from orchestrator.graph.walk import load_checked

WALL_S = 60.0
REALLY_TAKES_MEMORY = {"memory_bomb_of_empty_nodes", "range_of_a_trillion", "shapes_that_double_forty_times"}


class _Ears:
    """An audit hook cannot be taken back, so this one listens only inside `hearing`."""

    def __init__(self) -> None:
        self.opened: list[str] | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.opened is not None and event == "open" and isinstance(arguments[0], str | Path):
            self.opened.append(str(arguments[0]))

    @contextlib.contextmanager
    def hearing(self) -> Iterator[list[str]]:
        self.opened = opened = []
        try:
            yield opened
        finally:
            self.opened = None


EARS = _Ears()


@dataclass(frozen=True)
class Outcome:
    error: Exception | None
    wall_s: float
    canary_read: bool


def suffer(folder: Path, name: str) -> Outcome:
    path, start, error = hostile.write(name, folder), time.monotonic(), None
    try:
        inspect_onnx(path)
    except Exception as caught:  # noqa: BLE001  what it is, is the question
        error = caught
    return Outcome(error, time.monotonic() - start, hostile.canary_is_being_read(folder))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Suffer all attacks, two at a time: most of it is the start of child processes."""
    root, names = tmp_path_factory.mktemp("hostile"), sorted(hostile.ATTACKS)
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(lambda name: suffer(root / name, name), names), strict=True))


@pytest.mark.parametrize("name", sorted(hostile.ATTACKS))
def test_every_attack_ends_in_a_typed_error(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    assert isinstance(outcome.error, GateError), outcome.error
    said = outcome.error.message
    print(f"{name}: {outcome.wall_s:.2f} s: {said[:200]}")
    assert outcome.wall_s < WALL_S
    assert not outcome.canary_read
    assert said.isprintable()
    assert ("memory" in said or "Arena" in said) == (name in REALLY_TAKES_MEMORY), "refused for a reason not its own"
    assert "longer than" not in said
    assert "kills" not in said


@pytest.mark.parametrize("name", sorted(name for name in hostile.ATTACKS if name.startswith(("external", "model_is"))))
def test_nothing_outside_the_folder_is_opened(tmp_path: Path, name: str) -> None:
    """The same walk in this process, where every `open` is heard."""
    path = hostile.write(name, tmp_path)
    with EARS.hearing() as opened, pytest.raises(GateError):
        load_checked(path, Limits())
    assert set(opened) <= {str(path)}
    assert not hostile.canary_is_being_read(tmp_path)


def test_the_canary_notices_a_reader(tmp_path: Path) -> None:
    """The proof above is worth nothing unless the canary sings."""
    hostile.write("external_path_traversal", tmp_path)
    handle = os.open(tmp_path / hostile.CANARY, os.O_RDONLY | os.O_NONBLOCK)
    assert hostile.canary_is_being_read(tmp_path)
    os.close(handle)
    assert not hostile.canary_is_being_read(tmp_path)


def rich_file(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "w.bin").write_bytes(np.eye(4, dtype=np.float32).tobytes())
    path = folder / "model.onnx"
    path.write_bytes(hostile.rich().SerializeToString())
    return path


def test_weights_are_read_from_their_file_alone(tmp_path: Path) -> None:
    path = rich_file(tmp_path)
    inspect_onnx(path)
    with EARS.hearing() as opened:
        model = load_model(path, weights=False)
    assert opened == [str(path)]
    assert model.graph.initializer[0].external_data[0].value == "w.bin"
    with EARS.hearing() as opened:
        weight = load_model(path).graph.initializer[0]
    assert opened == [str(path), str(tmp_path), "w.bin"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), np.eye(4))


def test_a_file_swapped_for_a_link_after_the_check_is_not_followed(tmp_path: Path) -> None:
    path = rich_file(tmp_path / "model")
    model, _ = load_checked(path, Limits())
    (tmp_path / "secret").write_bytes(b"s" * 64)
    (tmp_path / "model" / "w.bin").unlink()
    (tmp_path / "model" / "w.bin").symlink_to(tmp_path / "secret")
    from orchestrator.graph.weights import read_in

    with pytest.raises(GateError, match="cannot be read"):
        read_in(model, path.parent)


def test_shapes_are_inferred_in_the_child(tmp_path: Path) -> None:
    model = inferred(rich_file(tmp_path))
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    assert shapes["h"] == ["n", 4]
    assert shapes["s"] == ["n", 4]
    big = hostile.good()
    big.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((4, 4096), np.float32), "w"))
    big.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4096
    path = tmp_path / "big.onnx"
    path.write_bytes(big.SerializeToString())
    stub = inferred(path).graph.initializer[0]
    assert list(stub.dims) == [4, 4096]
    assert not stub.raw_data
    assert path.stat().st_size > 65536 > len(inferred(path).SerializeToString())


def test_looking_twice_costs_nothing_and_a_change_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = rich_file(tmp_path), []
    real = sandbox.check_in_child
    monkeypatch.setattr("orchestrator.graph.read.check_in_child", lambda *a: calls.append(a) or real(*a))
    (tmp_path / "link.onnx").symlink_to(path)
    assert inspect_onnx(path).node_count == 5
    assert inspect_onnx(tmp_path / "link.onnx").path.name == "link.onnx"
    assert len(calls) == 1
    inspect_onnx(path, limits=Limits(nodes=100))
    assert len(calls) == 2, "other limits are another question"
    (tmp_path / "w.bin").write_bytes(b"\0" * 63)
    with pytest.raises(GateError, match="which has 63"):
        inspect_onnx(path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "kills the checker .SIGSEGV"),
        ("import os; os.abort()", "kills the checker .SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "too much time or memory .SIGKILL"),
        ("import time; time.sleep(60)", "longer than 0.5 s"),
        ("raise SystemExit(3)", "exit code 3"),
        ("bytearray(1 << 60)", "too much memory"),
        ("pass", "no answer"),
        ("print('{')", "no answer"),
        ("import os; os.write(1, bytes(1 << 20) * 9)", "no answer"),
        ("raise TypeError('x')", "breaks the checker"),
    ],
)
def test_whatever_happens_to_the_child_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.setattr(sandbox, "_CODE", code)
    limits = Limits(wall_s=0.5) if "sleep" in code else Limits()
    with pytest.raises(GateError, match=message):
        check_in_child(rich_file(tmp_path), limits)


def test_a_broken_installation_is_not_called_a_hostile_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_CODE", "import no_such_module_anywhere")
    with pytest.raises(InternalError, match="cannot start"):
        check_in_child(rich_file(tmp_path), Limits())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    with pytest.raises(InternalError, match="cannot start"):
        check_in_child(rich_file(tmp_path), Limits())


CONFINED = """
import json, resource, sys
from orchestrator.graph.checker_child import confine
from orchestrator.graph.limits import Limits
confine(Limits(cpu_s=1, reply_size_bytes=1000), 0)
found = {"core": resource.getrlimit(resource.RLIMIT_CORE)[0]}
try:
    bytearray(3 << 30)
except MemoryError:
    found["memory"] = "refused"
try:
    with open(sys.argv[1], "wb") as file:
        file.write(bytes(2000))
except OSError as error:
    found["file"] = error.strerror
print(json.dumps(found), flush=True)
while True:
    pass
"""


def test_the_child_gives_up_memory_time_and_files(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CONFINED, str(tmp_path / "big")], capture_output=True, timeout=30)
    assert json.loads(done.stdout) == {"core": 0, "memory": "refused", "file": "File too large"}
    assert done.returncode in {-24, -9}, "SIGXCPU or SIGKILL ends the endless loop"


BIG = """
import json, resource, sys, time
from pathlib import Path
from orchestrator.graph.read import inferred, inspect_onnx, load_model
path = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.monotonic()
info = inspect_onnx(path)
model = load_model(path, weights=False)
inferred(path)
own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps({"files": info.external_files, "own_mib": (own - before) / 1024, "child_mib": child / 1024, "s": time.monotonic() - start}))
"""


def test_more_than_two_gigabytes_of_weights_take_no_memory(tmp_path: Path) -> None:
    """24 tensors of 96 MiB in one external file of 2.25 GiB, all of it a hole on disk."""
    size = 96 << 20
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(24 * size)
    nodes, weights, rows = [], [], size // 4 // 4
    for number in range(24):
        weight = hostile.outside("weights.bin", offset=str(number * size), length=str(size))
        weight.name = f"w{number}"
        weight.dims[:] = [4, rows]
        weights.append(weight)
        nodes.append(onnx.helper.make_node("MatMul", ["x", f"w{number}"], [f"h{number}"], name=f"mm{number}"))
    nodes.append(onnx.helper.make_node("Sum", [f"h{n}" for n in range(24)], ["y"], name="sum"))
    path = tmp_path / "model.onnx"
    path.write_bytes(hostile.graph_of(nodes, weights, ("n", rows)).SerializeToString())
    done = subprocess.run([sys.executable, "-c", BIG, str(path)], capture_output=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    print(found)
    assert found["files"] == ["weights.bin"]
    assert found["own_mib"] < 64
    assert found["child_mib"] < 256


WHOLE = hostile.rich().SerializeToString()


def damaged(at: int, value: int, kind: str) -> bytes:
    if kind == "cut":
        return WHOLE[:at]
    if kind == "insert":
        return WHOLE[:at] + bytes([value]) + WHOLE[at:]
    if kind == "drop":
        return WHOLE[:at] + WHOLE[at + 1 :]
    return WHOLE[:at] + bytes([WHOLE[at] ^ value]) + WHOLE[at + 1 :]


FLIPS = {
    "at": st.integers(0, len(WHOLE) - 1),
    "value": st.integers(1, 255) | st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]),
    "kind": st.sampled_from(["flip", "flip", "flip", "insert", "drop", "cut"]),
}


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**FLIPS)
def test_random_damage_through_the_door(tmp_path: Path, at: int, value: int, kind: str) -> None:
    path = rich_file(tmp_path)
    path.write_bytes(damaged(at, value, kind))
    said = ""
    try:
        inspect_onnx(path)
    except GateError as error:
        said = error.message
    assert "kills" not in said
    assert "breaks the checker" not in said


@settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(**FLIPS)
def test_random_damage_inside_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, value: int, kind: str
) -> None:
    """What the child runs, in this process: thousands of cases for the price of one start. Nothing but GateError."""
    path = rich_file(tmp_path)
    path.write_bytes(damaged(at, value, kind))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").touch()
    with contextlib.suppress(GateError):
        checker_child.examine(path, Limits())
