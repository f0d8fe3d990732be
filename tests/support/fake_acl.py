"""A contract fake of pyACL's module `acl`: computes a fake `.om` with onnxruntime, and keeps the vendor's rules.

`write_om` makes a file, `install` a folder for PYTHONPATH in which `import acl` finds this fake, configured by a file. Every
allocation is counted. What the documentation forbids raises `Violation` and is written to the log: a use after free, memory
of another size, a call in another context or from another thread than the one that loaded, a leak at `finalize`. Waiting
calls hold the GIL, as those of pyACL do. `fail` maps a call to [code, after how many good ones]; `wedge` is `event` (the
device never finishes) or `gil` (the call never comes back, with the GIL). While the file `broken` exists every execution
fails, and adds a line to it.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

try:
    from support.fake_acl_device import FakeDevice, Violation
except ImportError:  # in a replica, where this folder is on the path
    from fake_acl_device import FakeDevice, Violation  # type: ignore[no-redef]

__all__ = ["FakeAcl", "Violation", "install", "write_om"]

GEAR_INPUT = "ascend_mbatch_shape_data"
CODES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 12}


def write_om(
    path: Path, model: bytes, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]], **more: Any
) -> Path:
    """Write a fake om. `inputs` and `outputs`: {name, dtype, dims, largest}; -1 in `dims` varies, `largest` is for its size.
    `more`: batches | dims (gears), ranges=True, soc, work_bytes, weight_bytes."""
    head = json.dumps({"inputs": list(inputs), "outputs": list(outputs), **more}).encode()
    path.write_bytes(b"IMOD" + struct.pack("<I", len(head)) + head + model)
    return path


def install(folder: Path, **config: Any) -> Path:
    """Make `folder` one that PYTHONPATH can name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"log": str(folder / "log.json"), **config}))
    code = (
        "import sys\n"
        f"sys.path.append({str(Path(__file__).parent)!r})\n"
        "import fake_acl\n"
        f"sys.modules[__name__] = fake_acl.FakeAcl.from_file({str(folder / 'config.json')!r})\n"
    )
    (folder / "acl.py").write_text(code)
    return folder


class FakeAcl(FakeDevice):
    """The module object. `live` counts what is allocated, by kind; `gears` lists those that were set."""

    @classmethod
    def from_file(cls, path: str) -> FakeAcl:
        return cls(**json.loads(Path(path).read_text()))

    def mdl_query_size(self, path: str) -> tuple[int, int, int]:
        code = self.code("mdl.query_size")
        head = _read(path)[0] if code == 0 else {}
        return head.get("work_bytes", 1 << 20), head.get("weight_bytes", 1 << 20), code

    def mdl_load_from_file(self, path: str) -> tuple[int, int]:
        self.in_context()
        code = self.code("mdl.load_from_file")
        if code:
            return 0, code
        head, data = _read(path)
        if head.get("soc", self._soc) != self._soc:
            return 0, 545001
        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return self._make("model", (head, onnxruntime.InferenceSession(data, options), self._context)), 0

    def mdl_unload(self, model: int) -> int:
        self._own_model(model)
        self._drop(model, "model")
        return 0

    def _own_model(self, model: int) -> Any:
        self.in_context()
        head, session, context = self._use(model, "model")
        if context != self._context:
            self.forbid("load, execute and unload must be in one context")
        return head, session

    def mdl_create_desc(self) -> int:
        return self._make("desc", {})

    def mdl_get_desc(self, desc: int, model: int) -> int:
        self._use(desc, "desc").update(self._own_model(model)[0])
        return self.code("mdl.get_desc")

    def mdl_destroy_desc(self, desc: int) -> int:
        self._drop(desc, "desc")
        return 0

    def mdl_get_num_inputs(self, desc: int) -> int:
        return len(_ins(self._use(desc, "desc")))

    def mdl_get_num_outputs(self, desc: int) -> int:
        return len(self._use(desc, "desc")["outputs"])

    def mdl_get_input_name_by_index(self, desc: int, place: int) -> str:
        return _ins(self._use(desc, "desc"))[place]["name"]

    def mdl_get_input_data_type(self, desc: int, place: int) -> int:
        return CODES[_ins(self._use(desc, "desc"))[place]["dtype"]]

    def mdl_get_output_data_type(self, desc: int, place: int) -> int:
        return CODES[self._use(desc, "desc")["outputs"][place]["dtype"]]

    def mdl_get_input_format(self, _desc: int, _place: int) -> int:
        return 2

    mdl_get_output_format = mdl_get_input_format

    def mdl_get_input_size_by_index(self, desc: int, place: int) -> int:
        head = self._use(desc, "desc")
        return 0 if head.get("ranges") else _bytes(_ins(head)[place])

    def mdl_get_output_size_by_index(self, desc: int, place: int) -> int:
        head = self._use(desc, "desc")
        return 0 if head.get("ranges") else _bytes(head["outputs"][place])

    def mdl_get_input_dims(self, desc: int, place: int) -> tuple[dict[str, Any], int]:
        row = _ins(self._use(desc, "desc"))[place]
        return {"name": row["name"], "dimCount": len(row["dims"]), "dims": list(row["dims"])}, 0

    def mdl_get_output_dims(self, desc: int, place: int) -> tuple[dict[str, Any], int]:
        row = self._use(desc, "desc")["outputs"][place]
        return {"name": row["name"], "dimCount": len(row["dims"]), "dims": list(row["dims"])}, 0

    def mdl_get_dynamic_batch(self, desc: int) -> tuple[dict[str, Any], int]:
        gears = self._use(desc, "desc").get("batches", [])
        return {"batchCount": len(gears), "batch": gears + [0] * (8 - len(gears))}, 0

    def mdl_get_input_dynamic_gear_count(self, desc: int, place: int) -> tuple[int, int]:
        assert place == -1
        return len(self._use(desc, "desc").get("dims", [])), 0

    def mdl_create_dataset(self) -> int:
        return self._make("dataset", {"buffers": [], "gear": None, "shapes": {}})

    def mdl_destroy_dataset(self, dataset: int) -> int:
        self._drop(dataset, "dataset")
        return 0

    def mdl_add_dataset_buffer(self, dataset: int, buffer: int) -> tuple[int, int]:
        self._use(buffer, "data_buffer")
        self._use(dataset, "dataset")["buffers"].append(buffer)
        return dataset, self.code("mdl.add_dataset_buffer")

    def mdl_set_dataset_tensor_desc(self, dataset: int, desc: int, place: int) -> tuple[int, int]:
        self._use(dataset, "dataset")["shapes"][place] = self._use(desc, "tensor_desc")[1]
        return dataset, self.code("mdl.set_dataset_tensor_desc")

    def mdl_set_dynamic_batch_size(self, model: int, dataset: int, place: int, size: int) -> int:
        head = self._gear(model, place)
        if size not in head.get("batches", []):
            self._message = f"E: batch {size} is not in {head.get('batches')}"
            return 145013
        self._use(dataset, "dataset")["gear"] = size
        self.gears.append(size)
        return self.code("mdl.set_dynamic_batch_size")

    def mdl_set_input_dynamic_dims(self, model: int, dataset: int, place: int, wanted: dict[str, Any]) -> int:
        head = self._gear(model, place)
        assert wanted["dimCount"] == len(wanted["dims"]) == sum(len(row["dims"]) for row in head["inputs"])
        flat = [d for row in head["inputs"] for d in row["dims"]]
        gear = [size for size, dim in zip(wanted["dims"], flat, strict=True) if dim == -1]
        if gear not in head.get("dims", []):
            return 145021
        self._use(dataset, "dataset")["gear"] = list(wanted["dims"])
        self.gears.append(gear)
        return self.code("mdl.set_input_dynamic_dims")

    def _gear(self, model: int, place: int) -> Any:
        head, _ = self._own_model(model)
        if _ins(head)[place]["name"] != GEAR_INPUT:
            self.forbid("the gear goes to another input")
        return head

    def mdl_execute_async(self, model: int, inputs: int, outputs: int, stream: int) -> int:
        head, session = self._own_model(model)
        self._use(stream, "stream")
        if self.hold_s:
            self.hold(self.hold_s)
        code = self.code("mdl.execute_async")
        if code:
            return code
        self._executed += 1
        if self.wedge and self._executed > self.wedge_after:
            self._busy_until = float("inf")
            while self.wedge == "gil":
                self.hold(1.0)
            return 0
        self._compute(head, session, self._use(inputs, "dataset"), self._use(outputs, "dataset"))
        self._busy_until = max(self._busy_until, time.monotonic()) + self.device_s
        return 0

    def _compute(self, head: Any, session: Any, inputs: Any, outputs: Any) -> None:
        if len(inputs["buffers"]) != len(_ins(head)) or len(outputs["buffers"]) != len(head["outputs"]):
            self.forbid("a dataset has another number of buffers than the model")
        feeds: dict[str, Any] = {}
        flat = list(inputs["gear"]) if isinstance(inputs["gear"], list) else []
        for place, row in enumerate(_ins(head)):
            if row["name"] == GEAR_INPUT:
                continue
            dims = inputs["shapes"].get(place) or [d if d != -1 else self._largest(row, inputs) for d in row["dims"]]
            if flat:
                dims, flat = flat[: len(row["dims"])], flat[len(row["dims"]) :]
            array = np.dtype(row["dtype"])
            pointer, room = self._use(inputs["buffers"][place], "data_buffer")
            size = int(np.prod(dims)) * array.itemsize
            if size > room:
                self.forbid(f"input {row['name']} needs {size} bytes, its buffer has {room}")
            feeds[row["name"]] = self.region(pointer, size).copy().view(array).reshape(dims)
        for place, value in enumerate(session.run(None, feeds)):
            data = np.frombuffer(value.tobytes(), np.uint8)
            pointer, room = self._use(outputs["buffers"][place], "data_buffer")
            if len(data) > room:
                self.forbid(f"output {place} needs {len(data)} bytes, its buffer has {room}")
            self.region(pointer, len(data))[:] = data

    def _largest(self, row: Any, inputs: Any) -> int:
        return inputs["gear"] if isinstance(inputs["gear"], int) else row["largest"][0]


def _read(path: str) -> tuple[Any, bytes]:
    data = Path(path).read_bytes()
    size = struct.unpack_from("<I", data, 4)[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _ins(head: Any) -> list[Any]:
    gear = [{"name": GEAR_INPUT, "dtype": "int32", "dims": [4], "largest": [4]}]
    return [*head["inputs"], *(gear if head.get("batches") or head.get("dims") else [])]


def _bytes(row: Any) -> int:
    return int(np.prod(row.get("largest") or row["dims"])) * np.dtype(row["dtype"]).itemsize
