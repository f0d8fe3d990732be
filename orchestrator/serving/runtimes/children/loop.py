"""Run by another interpreter (CPython 3.7 or later, NumPy), never imported by us: loads one model, then answers batches.

The parent's end of a socket pair is the only way in. A message is `<IQ`: bytes of a JSON head and of a body, then both. The
first head says what to load; each later one `{"inputs": [[name, dtype, shape, size_bytes], ...]}` with the arrays as body.
Answers: `{"outputs": [[dtype, shape, size_bytes], ...]}` and the arrays, or `{"error", "kind"}`. One thread does it all.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import socket
import struct
import sys
from typing import Any, Callable, Dict, List, Optional, Tuple  # noqa: UP035  CPython 3.7

_HEAD = struct.Struct("<IQ")


class Rejected(Exception):
    """The model does not take these inputs."""


def serve(open_model: Callable[[Dict[str, Any]], Any]) -> None:  # noqa: UP006
    """Load what the first message asks for and answer batches until the parent closes the socket.

    Args:
        open_model: Returns an object with `facts()` and `run({name: array}) -> [array]`.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[2]):
        os._exit(1)
    link = socket.socket(fileno=int(sys.argv[1]))
    first = _receive(link)
    if first is None:
        os._exit(0)
    request = first[0]
    sys.path.extend(request.get("python_path", []))  # CANN's own modules
    try:
        model = open_model(request)
        facts = model.facts()
    except Exception as error:  # noqa: BLE001  the other interpreter's errors cross as text
        _send(link, {"error": "%s: %s" % (type(error).__name__, error)}, [])  # noqa: UP031
        os._exit(0)
    _send(link, facts, [])
    while True:
        message = _receive(link)
        if message is None:
            os._exit(0)  # native destructors at exit are one more place to crash
        _answer(link, model, *message)


def _answer(link: socket.socket, model: Any, head: Dict[str, Any], body: memoryview) -> None:  # noqa: UP006
    import numpy

    arrays, place = {}, 0
    for name, dtype, shape, size in head["inputs"]:
        arrays[name] = numpy.frombuffer(body[place : place + size], dtype).reshape(shape)
        place += size
    try:
        found = [numpy.ascontiguousarray(array) for array in model.run(arrays)]
    except Exception as error:  # noqa: BLE001
        kind = "rejected" if isinstance(error, Rejected) else "execution"
        _send(link, {"kind": kind, "error": "%s: %s" % (type(error).__name__, error)}, [])  # noqa: UP031
        return
    rows = [[array.dtype.name, list(array.shape), array.nbytes] for array in found]
    _send(link, {"outputs": rows}, [array.reshape(-1).view(numpy.uint8).data for array in found if array.size])


def soc_name() -> str:
    """Return what the device calls itself; empty where nobody can say."""
    try:
        return str(importlib.import_module("acl").get_soc_name() or "")
    except ImportError:
        pass
    try:
        library = ctypes.CDLL("libascendcl.so")
    except OSError:
        return ""
    library.aclrtGetSocName.restype = ctypes.c_char_p
    return (library.aclrtGetSocName() or b"").decode()


def _receive(link: socket.socket) -> Optional[Tuple[Dict[str, Any], memoryview]]:  # noqa: UP006, UP045
    sizes = _exactly(link, _HEAD.size)
    if sizes is None:
        return None
    head_size, body_size = _HEAD.unpack(sizes)
    head, body = _exactly(link, head_size), _exactly(link, body_size)
    if head is None or body is None:
        return None
    return json.loads(bytes(head).decode()), memoryview(body)


def _exactly(link: socket.socket, size: int) -> Optional[bytearray]:  # noqa: UP045
    data, place = bytearray(size), 0
    view = memoryview(data)
    while place < size:
        got = link.recv_into(view[place:])
        if not got:
            return None
        place += got
    return data


def _send(link: socket.socket, head: Dict[str, Any], body: List[Any]) -> None:  # noqa: UP006
    text = json.dumps(head).encode()
    try:
        link.sendall(_HEAD.pack(len(text), sum(len(piece) for piece in body)) + text)
        for piece in body:
            link.sendall(piece)
    except OSError:
        os._exit(0)
