"""MindSpore Lite's converter and CPU runtime, in the interpreter that holds them.

The wheel with the converter, 2.0.0, wants CPython 3.7. A conversion counts as done when the call raised nothing, the file
is there, and the runtime built it; parity is still the caller's to check, for some graphs convert to wrong numbers.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from orchestrator.ascend.mindir import MindirStamp, read_stamp
from orchestrator.ascend.mindspore_lite_faults import convert_error, run_error
from orchestrator.ascend.mindspore_lite_options import AscendOptions
from orchestrator.ascend.mindspore_lite_process import Finished, call
from orchestrator.core.errors import DeviceError, GateError, PlanError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Optimize = Literal["none", "general", "ascend_oriented"]
_RELU: Final = bytes.fromhex(  # one Relu of opset 13, what the probe converts
    "08073a360a0f0a01781201791a0172220452656c751201705a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a"
    "02080142040a00100d"
)
_NEWEST_DIALECT: Final = 1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of a built MindIR; -1 is a free dimension, and outputs of such models have the shape (-1,)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Converted:
    """A MindIR and where it came from.

    Attributes:
        path: The file, readable and writable by us (the converter leaves it 0400).
        log: The converter's native text.
        producer: What wrote it: `mindspore-lite`.
        version: Version of the converter.
        stamp: What the file says of itself; the dialects of MindSpore and MindSpore Lite do not mix.
        built: Whether the CPU runtime built it; an Ascend one is built on the device only.
        inputs: Of the built model; integers of 64 bits have become 32.
        outputs: Of the built model, in the graph's order and names.
    """

    path: Path
    log: str
    producer: str
    version: str
    stamp: MindirStamp
    built: bool
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class MindSporeLite:
    """The tool by the interpreter that has it. Its runtime gets one thread: with two, attention answers wrong numbers.

    Attributes:
        python: Interpreter with mindspore_lite and numpy.
    """

    python: Path

    def version(self, *, timeout_s: float = 60.0) -> str:
        """Return the version of mindspore_lite, e.g. `2.0.0`.

        Raises:
            EnvironmentFileError: The interpreter is not there or has no mindspore_lite.
        """
        with _private_folder() as work:
            return str(self._call(work, {"action": "version"}, timeout_s).answer["version"])

    def cann_missing(self, *, timeout_s: float = 120.0) -> str:
        """Try to convert one Relu for Ascend; return why that cannot be, or an empty text where CANN is there."""
        with _private_folder() as work:
            model = work / "probe.onnx"
            model.write_bytes(_RELU)
            try:
                self.convert(model, work / "probe.mindir", optimize="ascend_oriented", timeout_s=timeout_s)
            except (DeviceError, GateError) as error:
                return error.message
        return ""

    def convert(
        self,
        model: Path,
        out: Path,
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        optimize: Optimize = "general",
        fp16: bool = False,
        ascend: AscendOptions | None = None,
        timeout_s: float,
    ) -> Converted:
        """Convert an ONNX file to MindIR and build it once on the CPU runtime.

        Args:
            model: ONNX file; its external data lie beside it.
            out: Where the MindIR goes, `*.mindir`; replaced in one step, left alone on failure.
            shapes: Fixed shapes by input name. Riskier than a graph whose shapes are fixed: transformers and LSTMs crash.
            optimize: `general` for CPU runs, `ascend_oriented` for the device (needs CANN), `none` leaves it to load time.
            fp16: Store weights as fp16; without effect on MindIR in 2.0.0.
            ascend: Options that only `ascend_oriented` reads.
            timeout_s: Limit of each of at most two attempts, seconds.

        Raises:
            GateError: The graph is refused or crashes the converter; `details["reason"]` names why, with the log.
            DeviceError: `ascend_oriented` without CANN.
            PlanError: Options that do not go together.
            EnvironmentFileError: The interpreter cannot run MindSpore Lite.
            InfraError: It took too long or was killed.
        """
        if out.suffix != ".mindir":
            raise PlanError(f"{out.name} must end with .mindir", hint="MindSpore Lite loads no other name")
        oriented = optimize == "ascend_oriented"
        if ascend is not None and not oriented:
            raise PlanError("options for Ascend need optimize `ascend_oriented`", hint="leave them out for a CPU run")
        with _private_folder() as work:
            request = {
                "action": "convert",
                "model": _onnx_name(model),
                "optimize": optimize,
                "shapes": {name: list(shape) for name, shape in (shapes or {}).items()},
                "fp16": fp16,
                "config": _config(ascend, work),
                "build": not oriented,
                "python_path": [item for item in os.environ.get("PYTHONPATH", "").split(":") if item]
                if oriented
                else [],
            }
            finished = self._call(work, request, timeout_s)
            if "inputs" not in finished.answer:
                raise convert_error(finished, shapes=bool(shapes), ascend=oriented)
            version = str(finished.answer["version"])
            return _kept(finished, out, version, built=not oriented)

    def run(self, mindir: Path, inputs: Sequence[Mapping[str, Array]], *, timeout_s: float) -> list[dict[str, Array]]:
        """Run a MindIR on the CPU runtime, one answer for each set of inputs.

        Args:
            mindir: A MindIR of the same MindSpore Lite, converted with `general` or `none`.
            inputs: Arrays by input name; shapes may differ from set to set where the model has free dimensions. 64-bit
                integers are cast to 32 where the converter made them so; values out of range are refused.
            timeout_s: Limit for all sets together, seconds, of each of at most two attempts.

        Raises:
            GateError: It cannot be built or run; `details["reason"]` names why.
            IntegrityError: The file is no MindIR.
        """
        import numpy as np

        check_dialect(mindir)
        with _private_folder() as work:
            for number, arrays in enumerate(inputs):
                entries: dict[str, Any] = {
                    f"in{place}": np.asarray(array) for place, array in enumerate(arrays.values())
                }
                np.savez(work / f"inputs-{number}.npz", **entries)
            names = [list(arrays) for arrays in inputs]
            model = work / "model.mindir"  # it loads no other suffix
            model.symlink_to(mindir.resolve())
            request = {"action": "run", "model": str(model), "inputs": str(work), "names": names}
            finished = self._call(work, request, timeout_s)
            if "outputs" not in finished.answer:
                raise run_error(finished)
            outputs = [str(name) for name in finished.answer["outputs"]]
            answers: list[dict[str, Array]] = []
            for number in range(len(inputs)):
                with np.load(finished.folder / f"outputs-{number}.npz", allow_pickle=False) as file:
                    answers.append({name: file[f"out{place}"] for place, name in enumerate(outputs)})
            return answers

    def _call(self, work: Path, request: Mapping[str, Any], timeout_s: float) -> Finished:
        return call(self.python, work, request, timeout_s=timeout_s)


def check_dialect(mindir: Path) -> MindirStamp:
    """Read the stamp of a MindIR that MindSpore Lite shall load.

    Raises:
        GateError: It is of a dialect that Lite 2.0.0 does not read, such as MindSpore's own exports.
        IntegrityError: It is no MindIR.
    """
    stamp = read_stamp(mindir)
    if stamp.mind_ir > _NEWEST_DIALECT:
        raise GateError(
            f"{mindir.name} is MindIR dialect {stamp.mind_ir} of {stamp.producer} {stamp.version}, "
            f"MindSpore Lite reads up to {_NEWEST_DIALECT}",
            hint="convert the ONNX graph with MindSpore Lite; its MindIR and MindSpore's do not mix",
            details={"reason": "dialect", "mind_ir": stamp.mind_ir},
        )
    return stamp


def _kept(finished: Finished, out: Path, version: str, *, built: bool) -> Converted:
    fresh = finished.folder / "converted.mindir"
    stamp = check_dialect(fresh)
    fresh.chmod(0o644)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.move(fresh, part)
    part.replace(out)
    inputs, outputs = (
        tuple(TensorInfo(row["name"], row["dtype"], tuple(row["shape"])) for row in finished.answer[side])
        for side in ("inputs", "outputs")
    )
    return Converted(out, finished.log, "mindspore-lite", version, stamp, built, inputs, outputs)


@contextmanager
def _private_folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="mindspore-lite-", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


def _onnx_name(model: Path) -> str:
    if model.suffix != ".onnx":
        raise PlanError(f"{model.name} must end with .onnx", hint="MindSpore Lite's converter reads no other name")
    return str(model.resolve())


def _config(ascend: AscendOptions | None, work: Path) -> str:
    text = ascend.to_config() if ascend is not None else ""
    if not text:
        return ""
    (work / "converter.cfg").write_text(text, encoding="utf-8")
    return str(work / "converter.cfg")
