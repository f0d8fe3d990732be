"""Replicas that are only their end of the link: an echo of every datatype without a model, and replicas that misbehave.

`python link_replica.py LINK ENDPOINT DATATYPE` is such an echo as a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.core.digests import sha256_bytes
from orchestrator.serving.link.frames import Frame, FrameReader, Kind, decode_tensors, encode, encode_tensors
from orchestrator.serving.link.wire import ReplicaHello, read_rows
from orchestrator.serving.protocol.signature import Signature
from orchestrator.serving.protocol.tensors import ITEM_BYTES, Dim, Tensor, TensorSpec
from orchestrator.serving.runtimes.api import REHEARSAL

DATATYPES = tuple(ITEM_BYTES)

Answer = Callable[[Frame, Sequence[Tensor], Sequence[int]], Sequence[bytes]]
"""A batch to the pieces that the replica sends for it; an empty one ends the connection."""


def specs(*datatypes: str, dims: tuple[Dim, ...] = ("batch", "n")) -> tuple[TensorSpec, ...]:
    """Return one tensor per datatype, called as its datatype in lower case; `n` is dynamic and shared."""
    return tuple(TensorSpec(datatype.lower(), datatype, dims) for datatype in datatypes)


def reply(frame: Frame, tensors: Sequence[Tensor], rows: Sequence[int], **changes: object) -> bytes:
    """Return the reply to a batch; `changes` go over its head."""
    head = {"status": [None] * len(rows), "compute_us": 1, "credit": 1, **changes}
    described = [(t.name, t.datatype, t.shape, [t.data]) for t in tensors]
    return b"".join(encode_tensors(Kind.REPLY, head, "outputs", described, number=frame.id))


def echo(frame: Frame, tensors: Sequence[Tensor], rows: Sequence[int]) -> Sequence[bytes]:
    """Answer each input as the output of the same name with `_out` behind it."""
    return [reply(frame, [Tensor(f"{t.name}_out", t.datatype, t.shape, t.data) for t in tensors], rows)]


class LinkReplica:
    """One thread that dials the router's link as a replica does and answers batches with `answer`.

    Attributes:
        batches: How many have arrived.
        refusals: Why the router ended a connection, one text each.
    """

    def __init__(
        self,
        link: Path | str,
        endpoint: str,
        inputs: tuple[TensorSpec, ...],
        *,
        answer: Answer = echo,
        credit: int = 2,
        max_batch: int = 32,
        name: str = "",
        dial_again: bool = True,
    ) -> None:
        outputs = tuple(TensorSpec(f"{spec.name}_out", spec.datatype, spec.dims) for spec in inputs)
        self.answer, self.batches, self.refusals = answer, 0, list[str]()
        self._link, self._credit, self._again = str(link), credit, dial_again
        self._hello = ReplicaHello(
            name or f"{endpoint}-{os.urandom(3).hex()}", os.getpid(), endpoint, bundle_of(endpoint), "onnx-cpu", REHEARSAL,
            Signature(inputs, outputs, max_batch),
        )  # fmt: skip
        self._stopping = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.connect(self._link)
                self._socket = link
                link.sendall(encode(Kind.HELLO, self._hello.to_json()) + encode(Kind.CREDIT, {"credit": self._credit}))
                self._talk(link)
            if not self._again:
                return
            self._stopping.wait(0.05)

    def _talk(self, link: socket.socket) -> None:
        reader = FrameReader()
        while data := link.recv(1 << 18):
            for frame in reader.feed(data):
                if frame.kind is Kind.BATCH:
                    self.batches += 1
                    for piece in self.answer(frame, decode_tensors(frame, "inputs"), read_rows(frame)):
                        if not piece:
                            return
                        link.sendall(piece)
                elif frame.kind is Kind.BYE:
                    self.refusals.append(str(frame.head.get("reason")))

    def wait(self) -> None:
        """Serve until stopped."""
        self._thread.join()

    def drop(self) -> None:
        """End the connection as a death does."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """End for good."""
        self._stopping.set()
        self.drop()
        self._thread.join(5)


def bundle_of(endpoint: str) -> str:
    """Return the digest that an endpoint of such replicas has in the table."""
    return str(sha256_bytes(endpoint.encode()))


def row(endpoint: str, number: int = 1, weight: int = 100) -> dict[str, object]:
    """Return the generation's row of the routing table; nothing is at its path."""
    return {
        "generation": number, "bundle": bundle_of(endpoint), "path": f"/nowhere/{endpoint}", "runtime": "onnx-cpu",
        "weight": weight, "state": "live", "device": REHEARSAL,
    }  # fmt: skip


def echo_process(link: Path | str, endpoint: str, datatype: str) -> subprocess.Popen[bytes]:
    """Start an echo as a process of its own, which signals can hit."""
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, __file__, str(link), endpoint, datatype], env={**os.environ, "PYTHONPATH": str(root)}
    )


if __name__ == "__main__":
    LinkReplica(sys.argv[1], sys.argv[2], specs(sys.argv[3])).wait()
