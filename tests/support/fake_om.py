"""Makes a fake `.om` that the fake pyACL can run, from what ATC was asked: `fake_om.py OPTIONS.json OUT.om`; see `fake_acl`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
from onnx.helper import tensor_dtype_to_np_dtype

sys.path.insert(0, str(Path(__file__).parent))
from fake_acl import write_om


def main() -> None:
    options = json.loads(Path(sys.argv[1]).read_text())
    model = onnx.load(options["model"])
    gears = [int(size) for size in options.get("dynamic_batch_size", "").split(",") if size]
    asked = dict(entry.rsplit(":", 1) for entry in options.get("input_shape", "").split(";") if entry)
    inputs = [_port(value, gears, asked.get(value.name)) for value in model.graph.input]
    outputs = [_port(value, gears, None) for value in model.graph.output]
    for place, row in enumerate(outputs):
        row["name"] = f"PartitionedCall_{place}:0:{row['name']}"
    more = {"batches": gears} if gears else {}
    write_om(Path(sys.argv[2]), model.SerializeToString(), inputs, outputs, soc=options["soc_version"], **more)


def _port(value: Any, gears: list[int], asked: str | None) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
    if asked is not None:
        dims = [int(size) for size in asked.split(",")]
    largest = [max(gears, default=1) if dim == -1 else dim for dim in dims]
    dtype = str(tensor_dtype_to_np_dtype(tensor.elem_type))
    return {"name": value.name, "dtype": dtype, "dims": dims if gears else largest, "largest": largest}


if __name__ == "__main__":
    main()
