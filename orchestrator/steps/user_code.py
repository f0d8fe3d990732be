"""Finding the user's functions and calling them; whatever they raise comes out as one `UserCodeError` with file:line."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, cast

from orchestrator.core.errors import OrchestratorError, UserCodeError

_TAIL_CHARACTERS: Final = 4000
_entered: set[Path] = set()
"""Folder of the recipe whose code this process holds."""


def load_entrypoint(entrypoint: str, recipe_dir: Path) -> Callable[..., Any]:
    """Return the function that `module:name` names; the module lies in the recipe's folder.

    Raises:
        UserCodeError: No such module or function, or importing it failed.
    """
    module_name, _, name = entrypoint.partition(":")
    _forget_others(module_name.partition(".")[0], recipe_dir)
    if str(recipe_dir) not in sys.path:
        sys.path.insert(0, str(recipe_dir))
    with user_code(entrypoint, recipe_dir):
        module = importlib.import_module(module_name)
    found = getattr(module, name, None)
    if not callable(found):
        have = ", ".join(n for n, value in vars(module).items() if callable(value) and not n.startswith("_")) or "none"
        raise UserCodeError(
            f"{module_name} has no function {name!r}",
            place=str(getattr(module, "__file__", module_name)),
            hint=f"functions there: {have[:200]}",
        )
    return cast("Callable[..., Any]", found)


@contextmanager
def user_code(what: str, recipe_dir: Path) -> Generator[None]:
    """Turn any exception of the block into `UserCodeError`; our own errors pass as they are.

    Raises:
        UserCodeError: `place` is the deepest line of the user's own files, `details.traceback` the end of the trace.
    """
    try:
        yield
    except OrchestratorError:
        raise
    except Exception as error:
        raise describe_failure(error, what, recipe_dir) from error
    except SystemExit as error:
        if error.code in (None, 0):
            return
        raise describe_failure(error, what, recipe_dir) from error


def describe_failure(error: BaseException, what: str, recipe_dir: Path) -> UserCodeError:
    """Return the user-facing form of an exception that came out of the user's code."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    place = _place(error, error.__traceback__, recipe_dir)
    trace = "".join(traceback.format_exception(error))
    hint = "correct the recipe's code and run again; steps that are done are not repeated"
    if type(error).__name__ == "OutOfMemoryError":
        hint = "the device's memory is full: a smaller batch or more workers"
    return UserCodeError(
        f"{what} failed: {text}", place=place, hint=hint, details={"traceback": trace[-_TAIL_CHARACTERS:]}
    )


def _place(error: BaseException, trace: TracebackType | None, recipe_dir: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno or 0}"
    frames = traceback.extract_tb(trace)
    own = [frame for frame in frames if _is_users(Path(frame.filename), recipe_dir)]
    frame = (own or frames or [None])[-1]
    return f"{frame.filename}:{frame.lineno}" if frame else ""


def _is_users(path: Path, recipe_dir: Path) -> bool:
    # A virtual environment may lie inside the recipe's folder.
    return path.is_relative_to(recipe_dir) and "site-packages" not in path.parts


def _forget_others(name: str, recipe_dir: Path) -> None:
    """Drop what another recipe left in this process, and any module whose name hides one of this recipe's."""
    for other in _entered - {recipe_dir}:
        _drop([key for key, module in sys.modules.items() if _is_users(Path(_file(module)), other)])
        sys.path[:] = [entry for entry in sys.path if entry != str(other)]
    _entered.clear()
    _entered.add(recipe_dir)
    module = sys.modules.get(name)
    here = (recipe_dir / f"{name}.py").exists() or (recipe_dir / name).is_dir()
    if module is not None and here and not _is_users(Path(_file(module)), recipe_dir):
        _drop([key for key in sys.modules if key == name or key.startswith(f"{name}.")])


def _file(module: object) -> str:
    return str(getattr(module, "__file__", None) or "")


def _drop(names: list[str]) -> None:
    for name in names:
        del sys.modules[name]
    importlib.invalidate_caches()
