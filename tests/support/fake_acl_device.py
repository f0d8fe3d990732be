"""The fake NPU's memory, context, stream and events: see `fake_acl`."""

from __future__ import annotations

import ctypes
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

LOST = 507015
"""An exception of the AI core."""
_libc = ctypes.PyDLL(None)  # unlike CDLL, it keeps the GIL


class Violation(AssertionError):
    """A rule of ACL was broken."""


class FakeDevice:
    """All of `acl` but `acl.mdl`. Attributes `live` and `peak` count what is allocated, by kind."""

    def __init__(self, *, soc: str = "Ascend310P3", free_bytes: int = 8 << 30, total_bytes: int = 16 << 30, device_s: float = 0.0,
                 hold_s: float = 0.0, fail: Mapping[str, Sequence[int]] | None = None, wedge: str = "", hbm: bool = False,
                 log: str = "", wedge_after: int = 0, broken: str = "") -> None:  # fmt: skip
        self._soc, self._free, self._total, self._hbm = soc, free_bytes, total_bytes, hbm
        self.device_s, self.hold_s, self.wedge, self.wedge_after = device_s, hold_s, wedge, wedge_after
        self.fail = {name: list(rule) for name, rule in (fail or {}).items()}
        self.calls: dict[str, int] = {}
        self.violations: list[str] = []
        self.copies: list[tuple[float, int]] = []
        self.gears: list[Any] = []
        self._log, self._broken = log, broken
        self._next = 0x1000
        self._things: dict[int, tuple[str, Any]] = {}
        self._memory: dict[int, np.ndarray[Any, Any]] = {}
        self._initialised, self._device, self._context = False, -1, 0
        self._message = ""
        self._busy_until = 0.0
        self._executed = 0
        self.rt = SimpleNamespace(**_bound(self, "rt_"))
        self.mdl = SimpleNamespace(**_bound(self, "mdl_"))
        self.__dict__.update(_bound(self, "top_"))

    # the bookkeeping

    @property
    def live(self) -> dict[str, int]:
        """What is allocated now, by kind."""
        kinds = [kind for kind, _ in self._things.values()] + ["memory"] * len(self._memory)
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    def forbid(self, text: str) -> None:
        self.violations.append(text)
        self._write()
        raise Violation(text)

    def _write(self) -> None:
        if self._log:
            Path(self._log).write_text(
                json.dumps({"violations": self.violations, "live": self.live, "calls": self.calls})
            )

    def _make(self, kind: str, value: Any = None) -> int:
        self._next += 0x100
        self._things[self._next] = (kind, value)
        return self._next

    def _use(self, handle: int, kind: str) -> Any:
        if type(handle) is not int:
            self.forbid(f"a {kind} handle must be an int, not {type(handle).__name__}")
        if handle not in self._things or self._things[handle][0] != kind:
            self.forbid(f"{handle:#x} is no living {kind}")
        return self._things[handle][1]

    def _drop(self, handle: int, kind: str) -> None:
        self._use(handle, kind)
        del self._things[handle]

    def code(self, name: str) -> int:
        """Count a call and return the code that was ordered for it."""
        self.calls[name] = self.calls.get(name, 0) + 1
        if name == "mdl.execute_async" and self._broken and Path(self._broken).exists():
            with Path(self._broken).open("a") as file:
                file.write(f"{os.getpid()}\n")
            self._message = "EZ9999: Inner Error, the device is broken"
            return LOST
        rule = self.fail.get(name)
        if rule and self.calls[name] > rule[1]:
            self._message = f"EZ9999: Inner Error, ordered for {name}"
            return int(rule[0])
        return 0

    def in_context(self) -> None:
        owner = self._things.get(self._context)
        if owner is None:
            self.forbid("no context is set")
        elif owner[1] != threading.get_ident():
            self.forbid("the context belongs to another thread")

    def region(self, pointer: int, size: int) -> np.ndarray[Any, Any]:
        """Device memory that holds this range."""
        for start, block in self._memory.items():
            if start <= pointer < start + len(block):
                if pointer + size > start + len(block):
                    self.forbid(f"{size} bytes at {pointer:#x} leave their block of {len(block)}")
                return block[pointer - start : pointer - start + size]
        self.forbid(f"{pointer:#x} is no living device memory")
        raise AssertionError

    # acl.*

    def top_init(self, _config: str = "") -> int:
        code = self.code("init")
        if code == 0 and self._initialised:
            return 100002
        self._initialised = code == 0
        return code

    def top_finalize(self) -> int:
        left = self.live
        self._write()
        if left:
            self.forbid(f"finalize with {left} left")
        if self._device >= 0:
            self.forbid("finalize before reset_device")
        self._initialised = False
        return 0

    def top_get_soc_name(self) -> str:
        return self._soc

    def top_get_recent_err_msg(self) -> str:
        text, self._message = self._message, ""
        return text

    def top_create_data_buffer(self, pointer: int, size: int) -> int:
        self.region(pointer, size)
        return self._make("data_buffer", (pointer, size))

    def top_destroy_data_buffer(self, buffer: int) -> int:
        self._drop(buffer, "data_buffer")
        return 0

    def top_create_tensor_desc(self, dtype: int, dims: list[int], layout: int) -> int:
        assert type(layout) is int
        return self._make("tensor_desc", (dtype, list(dims)))

    def top_destroy_tensor_desc(self, desc: int) -> int:
        self._drop(desc, "tensor_desc")
        return 0

    # acl.rt.*

    def rt_set_device(self, number: int) -> int:
        if not self._initialised:
            self.forbid("set_device before init")
        code = self.code("rt.set_device")
        self._device = number if code == 0 else -1
        return code

    def rt_reset_device(self, _number: int) -> int:
        self._device = -1
        return 0

    def rt_create_context(self, _number: int) -> tuple[int, int]:
        code = self.code("rt.create_context")
        self._context = self._make("context", threading.get_ident()) if code == 0 else 0
        return self._context, code

    def rt_destroy_context(self, context: int) -> int:
        self._drop(context, "context")
        return 0

    def rt_create_stream(self) -> tuple[int, int]:
        self.in_context()
        code = self.code("rt.create_stream")
        return self._make("stream") if code == 0 else 0, code

    def rt_destroy_stream(self, stream: int) -> int:
        self._drop(stream, "stream")
        return 0

    def rt_create_event(self) -> tuple[int, int]:
        self.in_context()
        code = self.code("rt.create_event")
        return self._make("event", [0.0]) if code == 0 else 0, code

    def rt_destroy_event(self, event: int) -> int:
        self._drop(event, "event")
        return 0

    def rt_record_event(self, event: int, stream: int) -> int:
        self._use(stream, "stream")
        self._use(event, "event")[0] = self._busy_until
        return self.code("rt.record_event")

    def rt_query_event_status(self, event: int) -> tuple[int, int]:
        self.in_context()
        code = self.code("rt.query_event_status")
        return int(time.monotonic() >= self._use(event, "event")[0]), code

    def rt_synchronize_event(self, event: int) -> int:
        self.in_context()
        self.hold(self._use(event, "event")[0] - time.monotonic())
        return self.code("rt.synchronize_event")

    def hold(self, seconds: float) -> None:
        """Wait as pyACL does: with the GIL."""
        while seconds > 0:
            begun = time.monotonic()
            _libc.usleep(int(min(seconds, 0.5) * 1e6) + 1)
            seconds -= time.monotonic() - begun

    def rt_get_run_mode(self) -> tuple[int, int]:
        return 1, 0

    def rt_get_mem_info(self, kind: int) -> tuple[int, int, int]:
        if (kind == 1) != self._hbm:
            return 0, 0, 0
        return self._free, self._total, self.code("rt.get_mem_info")

    def rt_malloc(self, size: int, policy: int) -> tuple[int, int]:
        self.in_context()
        assert size > 0
        assert policy == 0
        code = self.code("rt.malloc")
        if code:
            return 0, code
        self._next += (size + 0xFFF) & ~0xFFF
        self._memory[self._next] = np.full(size, 0xA5, np.uint8)
        pointer, self._next = self._next, self._next + ((size + 0xFFF) & ~0xFFF)
        return pointer, 0

    def rt_free(self, pointer: int) -> int:
        self.in_context()
        if pointer not in self._memory:
            self.forbid(f"free of {pointer:#x}, which is not allocated")
        if time.monotonic() < self._busy_until and not self.wedge:
            self.forbid("free while the device works")
        del self._memory[pointer]
        return 0

    def rt_memset(self, pointer: int, most: int, value: int, size: int) -> int:
        self.in_context()
        assert size <= most
        self.region(pointer, size)[:] = value
        return self.code("rt.memset")

    def rt_memcpy(self, to: int, most: int, source: int, size: int, kind: int) -> int:
        self.in_context()
        if size > most:
            self.forbid(f"memcpy of {size} bytes into {most}")
        code = self.code("rt.memcpy")
        if code:
            return code
        if kind == 1:
            self.copies.append((time.monotonic(), size))
            self.region(to, size)[:] = np.frombuffer(ctypes.string_at(source, size), np.uint8)
        elif kind == 2:
            ctypes.memmove(to, self.region(source, size).ctypes.data, size)
        else:
            self.forbid(f"memcpy of kind {kind}")
        return 0


def _bound(fake: FakeDevice, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): getattr(fake, name) for name in dir(fake) if name.startswith(prefix)}
