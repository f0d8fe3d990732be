"""One NPU through pyACL: one context for the process, a stream for each model, every call checked, everything freed in turn.

pyACL returns `(value, …, ret)` with `ret` 0 for success; handles and pointers are whole numbers. It never releases the GIL,
so whatever may wait for the device is asked instead (`done`).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.ascend.error_codes import explain_acl
from orchestrator.core.errors import DeviceError, OrchestratorError
from orchestrator.serving.runtimes.api import ExecutionFailed
from orchestrator.serving.runtimes.headroom import first_device

H2D, D2H, D2D = 1, 2, 3
_HUGE_FIRST: Final = 0
_ACL_HOST: Final = 1
_REPEAT_INIT: Final = 100002
_DDR, _HBM = 0, 1
_RECORDED: Final = 1
_BROKEN_FROM: Final = 500000
"""Codes of the vendor's internal class: after one of them the context is of no use."""
_MARGIN_BYTES: Final = 256 << 20
"""What a process takes beside the model: 100 to 200 MB are pinned for the AICPU kernels."""
_MAX_TEXT: Final = 2000


class _Calls:
    """Calls of pyACL, each checked, and what they have made: `close` frees it, last made first."""

    def __init__(self) -> None:
        try:
            self.acl: Any = importlib.import_module("acl")
        except ImportError as error:
            raise DeviceError(
                f"no pyACL in this interpreter: {error}",
                hint="install CANN and start the site after `source set_env.sh` (it puts pyACL on PYTHONPATH)",
            ) from error
        self._undo = contextlib.ExitStack()

    def call(self, name: str, *args: object) -> tuple[Any, ...]:
        """Call pyACL and return what it gives without the code.

        Raises:
            ExecutionFailed: The code says that this call failed.
            DeviceError: It says that the device did.
        """
        found = self._plain(name, *args)
        values = cast("tuple[Any, ...]", found if isinstance(found, tuple) else (found,))
        self._check(name, values[-1])
        return tuple(values[:-1])

    def get(self, name: str, *args: object) -> Any:
        """Call a getter, which gives its value without a code; no pointer means failure.

        Raises:
            ExecutionFailed: It gave null.
        """
        found = self._plain(name, *args)
        if found is None or (name.rpartition(".")[2].startswith("create_") and not found):
            raise ExecutionFailed(f"acl.{name} gave nothing{self._told()}")
        return found

    def own(self, make: str, free: str, *args: object) -> tuple[Any, ...]:
        """Make something that `close` frees."""
        found = self.call(make, *args)
        self._undo.callback(self._plain, free, found[0])
        return found

    def own_got(self, make: str, free: str, *args: object) -> Any:
        """Likewise for what is made without a code."""
        found = self.get(make, *args)
        self._undo.callback(self._plain, free, found)
        return found

    def at_close(self, free: Callable[[], None]) -> None:
        """Have `close` call this, before it frees what was made until now."""
        self._undo.callback(free)

    def close(self) -> None:
        """Free everything, last made first."""
        self._undo.close()

    def _plain(self, name: str, *args: object) -> Any:
        place: Any = self.acl
        for part in name.split("."):
            place = getattr(place, part)
        return place(*args)

    def _check(self, name: str, code: int) -> None:
        if code == 0:
            return
        known = explain_acl(code)
        words = " ".join(filter(None, (str(code), known.name)))
        text = f"acl.{name} failed with {words}: {known.meaning}{self._told()}"
        raise _family(code)(text, hint=known.fix)

    def _told(self) -> str:
        """What ACL says of it; asking clears it, so it is asked at once."""
        try:
            text = str(self._plain("get_recent_err_msg") or "").strip()
        except AttributeError:  # before CANN 6
            return ""
        return f" (ACL: {' '.join(text.split())[:_MAX_TEXT]})" if text else ""


class _Context(_Calls):
    """The context of this process, on device number 0 of those that ASCEND_RT_VISIBLE_DEVICES leaves.

    Attributes:
        users: Models that use it; the last one closes it.
    """

    def __init__(self, soc: str) -> None:
        super().__init__()
        self.users = 0
        try:
            self._open(soc)
        except BaseException:
            self.close()
            raise

    def _open(self, soc: str) -> None:
        code = self._plain("init")
        if code != _REPEAT_INIT:
            self._check("init", code)
        self._undo.callback(self._plain, "finalize")
        self.call("rt.set_device", 0)
        self._undo.callback(self._plain, "rt.reset_device", 0)
        (self.handle,) = self.own("rt.create_context", "rt.destroy_context", 0)
        self.check_soc(soc)
        (mode,) = self.call("rt.get_run_mode")
        self.to_device, self.to_host = (H2D, D2H) if mode == _ACL_HOST else (D2D, D2D)

    def check_soc(self, soc: str) -> None:
        """Raise `DeviceError` where the device calls itself something else."""
        found = str(self._plain("get_soc_name"))
        if found != soc:
            raise DeviceError(
                f"this slot is {soc}, the device calls itself {found}",
                hint="correct the pool's `soc`, or give the slot a device of that SoC",
            )

    def leave(self) -> None:
        """A model uses it no more."""
        self.users -= 1
        if not self.users:
            _contexts.clear()
            self.close()


_contexts: Final[list[_Context]] = []
"""That of this process, while a model uses it."""


def _enter(soc: str, work: Path) -> _Context:
    """Return the process's context, opened where nobody has it."""
    if not _contexts:
        with first_device(work):
            _contexts.append(_Context(soc))
    (context,) = _contexts
    context.users += 1
    return context


class AclDevice(_Calls):
    """The device, as one model uses it: the context, which all models of the process share, and a stream of its own.

    Args:
        soc: Name that it must have.
        work: See `first_device`.

    Raises:
        DeviceError: There is no pyACL, no device, or another one.
    """

    def __init__(self, soc: str, work: Path) -> None:
        super().__init__()
        try:
            context = _enter(soc, work)
            self._undo.callback(context.leave)
            context.check_soc(soc)
            self.context, self.to_device, self.to_host = context.handle, context.to_device, context.to_host
            (self.stream,) = self.own("rt.create_stream", "rt.destroy_stream")
        except ExecutionFailed as error:
            self.close()
            raise DeviceError(f"the device does not start: {error.message}", hint=error.hint) from error
        except BaseException:
            self.close()
            raise

    def malloc(self, size_bytes: int) -> int:
        """Return device memory, at least one byte, that `close` frees."""
        return int(self.own("rt.malloc", "rt.free", max(1, size_bytes), _HUGE_FIRST)[0])

    def check_memory(self, needed_bytes: int, what: str) -> None:
        """Check that there is room before it is taken: a load that runs out of memory takes its neighbours along.

        Raises:
            DeviceError: There is not; says how much is needed, free and there.
        """
        free, total = self._memory()
        needed = needed_bytes + _MARGIN_BYTES
        if total and free < needed:
            raise DeviceError(
                f"{what} needs {needed >> 20} MiB on the device, {free >> 20} of {total >> 20} MiB are free",
                hint="delete an endpoint of the pool, use fewer or smaller gears, or give the pool another device",
            )

    def _memory(self) -> tuple[int, int]:
        """Return free and total bytes: of HBM, or of DDR where the SoC has no HBM."""
        for kind in (_HBM, _DDR):
            free, total, code = self._plain("rt.get_mem_info", kind)
            if code == 0 and total:
                return int(free), int(total)
        return 0, 0

    def done(self, event: int) -> bool:
        """Return whether the stream has come to the event."""
        (status,) = self.call("rt.query_event_status", event)
        return int(status) == _RECORDED


def _family(code: int) -> type[OrchestratorError]:
    return DeviceError if code >= _BROKEN_FROM else ExecutionFailed
