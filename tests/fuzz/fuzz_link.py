"""Fuzz the link's frames with atheris: `python tests/fuzz/fuzz_link.py --seconds 60`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from support.fuzz_targets import link, run  # noqa: E402

from orchestrator.serving.link import Kind, encode, encode_tensors  # noqa: E402

TENSOR = [("x", "FP32", (1, 2), [bytes(8)]), ("b", "BYTES", (1,), [b"\1\0\0\0a"])]
HEAD = {"status": [None], "compute_us": 1, "credit": 1, "rows": [1]}
if __name__ == "__main__":
    run(
        link,
        [
            b"".join(encode_tensors(Kind.REPLY, HEAD, "outputs", TENSOR, number=1)),
            b"".join(encode_tensors(Kind.BATCH, HEAD, "inputs", TENSOR, number=1)),
            encode(Kind.HELLO, {"role": "agent", "pool": "p", "slot": 0, "device": "d", "pid": 1, "host": "h"}),
            encode(Kind.CREDIT, {"credit": 2}) + encode(Kind.BYE, {"reason": "r"}),
        ],
    )
