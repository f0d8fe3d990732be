"""Fuzz request bodies with atheris, JSON, binary and gRPC: `python tests/fuzz/fuzz_tensors.py --seconds 60`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from support.fuzz_run import run  # noqa: E402

JSON = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[[1,2,3,4]]}],"outputs":[{"name":"y"}]}'
BINARY = b'{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":5}}]}'


def seeds() -> list[bytes]:
    """Return a request in each form, behind its header length."""
    from orchestrator.serving.protocol.oip_grpc import MESSAGES

    message = MESSAGES["ModelInferRequest"](model_name="m", raw_input_contents=[bytes(16)])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    return [
        bytes(2) + JSON,
        len(BINARY).to_bytes(2, "little") + BINARY + b"\1\0\0\0a",
        bytes(2) + message.SerializeToString(),
    ]


if __name__ == "__main__":
    run("tensors", seeds)
