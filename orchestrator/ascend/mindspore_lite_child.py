"""Run by the interpreter that holds mindspore_lite, never imported by us: converts or runs one model, then ends.

Written for CPython 3.7 with the standard library, numpy and mindspore_lite. What to do stands in `request.json` of the
folder given as the only argument; the answer is `answer.json` there. `stage` names what was under way, which is all that
is left when native code ends the process by a signal.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any


def _die_with_parent(parent_pid: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent_pid:
        os._exit(1)


def _stage(name: str) -> None:
    Path("stage").write_text(name, encoding="utf-8")


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype.name.lower(), "shape": [int(dim) for dim in tensor.shape]}


def _outputs_of(model: Any, lite: Any) -> list[Any]:
    return [lite.Tensor(tensor) for tensor in model._model.get_outputs()]


def _build(lite: Any, path: str) -> Any:
    _stage("build")
    context = lite.Context()
    context.target = ["cpu"]
    context.cpu.thread_num = 1  # with 2, batched MatMuls of 2.0.0 answer wrong numbers
    model = lite.Model()
    model.build_from_file(path, lite.ModelType.MINDIR, context)
    return model


def _convert(lite: Any, request: dict[str, Any]) -> dict[str, Any]:
    _stage("convert")
    converter = lite.Converter()
    converter.save_type = lite.ModelType.MINDIR
    converter.optimize = request["optimize"]
    if request["shapes"]:
        converter.input_shape = request["shapes"]
    if request["fp16"]:
        converter.weight_fp16 = True
    converter.convert(
        fmk_type=lite.FmkType.ONNX,
        model_file=request["model"],
        output_file="converted",  # it appends .mindir
        config_file=request["config"],
    )
    if not Path("converted.mindir").is_file():
        return {"missing": True}
    answer: dict[str, Any] = {"version": lite.__version__, "inputs": [], "outputs": []}
    if not request["build"]:
        return answer
    model = _build(lite, "converted.mindir")
    answer["inputs"] = [_tensor(tensor) for tensor in model.get_inputs()]
    answer["outputs"] = [_tensor(tensor) for tensor in _outputs_of(model, lite)]
    return answer


def _fitted(array: Any, tensor: Any) -> Any:
    """Cast to what the tensor holds: the converter turns int64 into int32 and float64 into float32."""
    import numpy

    wanted = numpy.dtype(tensor.dtype.name.lower())
    if array.dtype == wanted:
        return numpy.ascontiguousarray(array)
    if array.dtype.kind != wanted.kind and array.dtype.kind + wanted.kind not in ("iu", "ui"):
        raise ValueError(f"input {tensor.name!r} is {array.dtype} and the model wants {wanted}")
    if wanted.kind in "iu" and array.size:
        limits = numpy.iinfo(wanted)
        if array.min() < limits.min or array.max() > limits.max:
            raise ValueError(f"input {tensor.name!r} holds values that {wanted} cannot")
    return numpy.ascontiguousarray(array.astype(wanted))


def _run(lite: Any, request: dict[str, Any]) -> dict[str, Any]:
    import numpy

    model = _build(lite, request["model"])
    names = [tensor.name for tensor in _outputs_of(model, lite)]
    for number, given in enumerate(request["names"]):
        _stage(f"predict {number}")
        with numpy.load(str(Path(request["inputs"]) / f"inputs-{number}.npz"), allow_pickle=False) as file:
            arrays = {name: file[f"in{place}"] for place, name in enumerate(given)}
        inputs = model.get_inputs()
        if {tensor.name for tensor in inputs} != set(arrays):
            raise ValueError(f"the model's inputs are {sorted(t.name for t in inputs)}, given {sorted(arrays)}")
        shapes = [list(arrays[tensor.name].shape) for tensor in inputs]
        if shapes != [list(tensor.shape) for tensor in inputs]:
            model.resize(inputs, shapes)
            inputs = model.get_inputs()
        for tensor in inputs:  # before every predict: it reuses these buffers as scratch
            tensor.set_data_from_numpy(_fitted(arrays[tensor.name], tensor))
        answers = [tensor.get_data_to_numpy().copy() for tensor in model.predict(inputs)]
        if len(answers) != len(names):
            raise RuntimeError(f"{len(answers)} outputs, the model names {len(names)}")
        numpy.savez(f"outputs-{number}.npz", **{f"out{place}": array for place, array in enumerate(answers)})
    return {"outputs": names}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    _stage("import")
    sys.path.extend(request.get("python_path", []))  # CANN's own modules; isolated from everything else
    lite: Any = importlib.import_module("mindspore_lite")

    if request["action"] == "version":
        return {"version": lite.__version__}
    return _convert(lite, request) if request["action"] == "convert" else _run(lite, request)


def main() -> None:
    """Do what `request.json` asks for."""
    os.chdir(sys.argv[1])
    request = json.loads(Path("request.json").read_text(encoding="utf-8"))
    _die_with_parent(request["parent_pid"])
    try:
        answer = _answer(request)
    except Exception as error:  # noqa: BLE001 - the other interpreter's errors cross as text
        answer = {"error": f"{type(error).__name__}: {error}"}
    Path("answer.part").write_text(json.dumps(answer), encoding="utf-8")
    Path("answer.part").rename("answer.json")
    sys.stdout.flush()
    os._exit(0)  # the answer is whole; native destructors at exit are one more place to crash


if __name__ == "__main__":
    main()
