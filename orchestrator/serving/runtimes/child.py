"""A model in a child process, where its library lives in another interpreter: the parent's side of `children/loop.py`.

The child works on one batch while the next one waits in its socket. Whatever native code does to the child, this process
sees the end of the socket.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from orchestrator.ascend.atc_process import private_environment
from orchestrator.core.errors import DeviceError, OrchestratorError, ServingError
from orchestrator.serving.protocol.tensors import Buffer, Tensor, TensorSpec, from_array, numpy_dtype
from orchestrator.serving.runtimes.api import Bucket, ExecutionFailed, InputRejected
from orchestrator.serving.runtimes.sizes import Fit, Sizes, cut, padded

_HEAD: Final = struct.Struct("<IQ")
_CHILDREN: Final = Path(__file__).with_name("children")
_READ_BYTES: Final = 1 << 20
_END_S: Final = 5.0
DEPTH: Final = 2


@dataclass(frozen=True, slots=True)
class Start:
    """How to start a child.

    Attributes:
        python: The interpreter.
        flags: Of the interpreter.
        script: File name in `children`.
        work: Its current folder; HOME and caches lie below.
        environment: Base of its environment; secrets are left out.
        request: Its first message.
        tool: What is missing where it does not start, for people.
        fix: What to do then.
    """

    python: str
    flags: tuple[str, ...]
    script: str
    work: Path
    environment: Mapping[str, str]
    request: Mapping[str, Any]
    tool: str
    fix: str


class Child:
    """The process and its socket. Sends never block for good: answers are taken in meanwhile."""

    def __init__(self, start: Start) -> None:
        ours, theirs = socket.socketpair()
        command = [start.python, *start.flags, str(_CHILDREN / start.script), str(theirs.fileno()), str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                command,
                cwd=start.work,
                env=private_environment(start.work / "private", start.environment),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        except OSError as error:
            ours.close()
            raise DeviceError(f"{start.python} does not start: {error}", hint=start.fix) from error
        finally:
            theirs.close()
        ours.setblocking(False)
        self._tool = start.tool
        self._link = ours
        self._inbox = bytearray()
        self._answers: dict[int, tuple[Mapping[str, Any], memoryview]] = {}
        self._asked = self._answered = 0
        try:
            self.facts = self._take(self.send(start.request, []))[0]
            if "error" in self.facts:
                raise ServingError(f"{start.tool} cannot load the model: {self.facts['error']}", hint=start.fix)
        except OrchestratorError:
            self.close()
            raise

    def send(self, head: Mapping[str, Any], body: Sequence[Buffer]) -> int:
        """Send a message and return its number."""
        text = json.dumps(head).encode()
        size = sum(map(len, body))
        for piece in (_HEAD.pack(len(text), size) + text, *body):
            view = memoryview(piece)
            while view:
                readable, writable, _ = select.select([self._link], [self._link], [])
                if readable:
                    self._read()
                if writable:
                    try:
                        view = view[self._link.send(view) :]
                    except OSError as error:
                        raise self._ended() from error
        self._asked += 1
        return self._asked

    def answered(self, number: int, wait_s: float) -> bool:
        """Return whether the answer is here; waits at most `wait_s`."""
        until = time.monotonic() + wait_s
        while number not in self._answers:
            left = max(0.0, until - time.monotonic())
            if select.select([self._link], [], [], left)[0]:
                self._read()
            elif not left:
                return False
        return True

    def _take(self, number: int) -> tuple[Mapping[str, Any], memoryview]:
        while not self.answered(number, 3600.0):
            pass
        return self._answers.pop(number)

    def receive(self, number: int) -> tuple[Mapping[str, Any], memoryview]:
        """Wait for an answer and return it.

        Raises:
            InputRejected: The child says so.
            ExecutionFailed: The child says so.
            DeviceError: It has ended.
        """
        head, body = self._take(number)
        if "error" in head:
            raise (InputRejected if head["kind"] == "rejected" else ExecutionFailed)(
                f"the model failed: {head['error']}"[:1000]
            )
        return head, body

    def _read(self) -> None:
        try:
            data = self._link.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._ended() from error
        if not data:
            raise self._ended()
        self._inbox += data
        while len(self._inbox) >= _HEAD.size:
            head_size, body_size = _HEAD.unpack_from(self._inbox)
            whole = _HEAD.size + head_size + body_size
            if len(self._inbox) < whole:
                return
            message = bytes(self._inbox[_HEAD.size : whole])
            del self._inbox[:whole]
            self._answered += 1
            self._answers[self._answered] = json.loads(message[:head_size]), memoryview(message)[head_size:]

    def _ended(self) -> DeviceError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        code = self._process.returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return DeviceError(f"the process of {self._tool} ended by {how}", hint="what it said is in the replica's log")

    def close(self) -> None:
        """End the child."""
        self._link.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ChildSession:
    """See `Session`."""

    def __init__(self, child: Child, sizes: Sizes, device: str) -> None:
        self._child, self._sizes = child, sizes
        self.device = device
        self.inputs, self.outputs = sizes.inputs, sizes.outputs
        self.max_batch = sizes.max_batch
        self.buckets: tuple[Bucket, ...] = sizes.buckets
        self.depth = DEPTH
        self._running: dict[int, tuple[int, Fit] | InputRejected] = {}
        self._ticket = 0

    def submit(self, inputs: Sequence[Tensor]) -> int:
        """Send the batch."""
        self._ticket += 1
        try:
            fit = self._sizes.fit(inputs)
        except InputRejected as error:
            self._running[self._ticket] = error
            return self._ticket
        full = [padded(tensor, fit) for tensor in inputs]
        rows = [[t.name, numpy_dtype(t.datatype).name, list(t.shape), len(t.data)] for t in full]
        self._running[self._ticket] = self._child.send({"inputs": rows}, [t.data for t in full]), fit
        return self._ticket

    def done(self, ticket: int, wait_s: float) -> bool:
        """Look into the socket."""
        found = self._running[ticket]
        return isinstance(found, InputRejected) or self._child.answered(found[0], wait_s)

    def collect(self, ticket: int) -> list[Tensor]:
        """Wait for the answer."""
        found = self._running.pop(ticket)
        if isinstance(found, InputRejected):
            raise found
        number, fit = found
        head, body = self._child.receive(number)
        if len(head["outputs"]) != len(self.outputs):
            raise ExecutionFailed(f"the model gave {len(head['outputs'])} outputs, {len(self.outputs)} are declared")
        place, tensors = 0, list[Tensor]()
        for spec, (dtype, shape, size) in zip(self.outputs, head["outputs"], strict=True):
            array = np.frombuffer(body[place : place + size], dtype).reshape(shape)
            tensors.append(cut(_as(spec, array), fit))
            place += size
        return tensors

    def close(self) -> None:
        """End the child."""
        self._child.close()


def _as(spec: TensorSpec, array: npt.NDArray[np.generic]) -> Tensor:
    """Give an output the type that was declared: some converters turn int64 into int32."""
    wanted = numpy_dtype(spec.datatype)
    if array.dtype == wanted:
        return from_array(spec.name, array)
    if array.dtype.kind != wanted.kind:
        raise ExecutionFailed(f"output {spec.name!r} is {array.dtype}, declared is {wanted}")
    return from_array(spec.name, array.astype(wanted))
