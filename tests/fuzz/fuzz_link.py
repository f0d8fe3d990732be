"""Fuzz the link's frames with atheris: `python tests/fuzz/fuzz_link.py --seconds 60`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from support.fuzz_run import run  # noqa: E402


def seeds() -> list[bytes]:
    """Return whole frames of several kinds."""
    from orchestrator.serving.link.frames import Kind, encode, encode_tensors

    tensors = [("x", "FP32", (1, 2), [bytes(8)]), ("b", "BYTES", (1,), [b"\1\0\0\0a"])]
    head = {"status": [None], "compute_us": 1, "credit": 1, "rows": [1]}
    return [
        b"".join(encode_tensors(Kind.REPLY, head, "outputs", tensors, number=1)),
        b"".join(encode_tensors(Kind.BATCH, head, "inputs", tensors, number=1)),
        encode(Kind.HELLO, {"role": "agent", "pool": "p", "slot": 0, "device": "d", "pid": 1, "host": "h"}),
        encode(Kind.CREDIT, {"credit": 2}) + encode(Kind.BYE, {"reason": "r"}),
    ]


if __name__ == "__main__":
    run("link", seeds)
