"""`module:function` beside the recipe: found and checked by reading, never by importing."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from orchestrator.recipe.problems import did_you_mean


def module_file(folder: Path, module: str) -> Path | None:
    """Return the file of a dotted module below `folder`, or None."""
    base = folder.joinpath(*module.split("."))
    for path in (base.with_name(base.name + ".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def parse_module(path: Path) -> ast.Module:
    """Parse a source file.

    Raises:
        ValueError: Not Python; the message says where.
        OSError: It cannot be read.
    """
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise ValueError(f"{path.name}:{error.lineno or 1}:{error.offset or 1}: {error.msg}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"{path.name} is nested too deeply to be read") from error


def find_fault(folder: Path, entrypoint: str) -> str:
    """Return what is wrong with an entry point, or an empty text.

    Args:
        folder: The recipe's folder.
        entrypoint: A well-formed `module:function`.
    """
    module, _, name = entrypoint.partition(":")
    path = module_file(folder, module)
    if path is None:
        beside = [each.stem for each in sorted(folder.glob("*.py"))]
        file = module.replace(".", "/") + ".py"
        return f"there is no {file} beside the recipe{did_you_mean(module, beside)}"
    try:
        names = set(_names(parse_module(path).body))
    except (ValueError, OSError) as error:
        return f"{path.name} cannot be read: {error}"
    if name in names or "*" in names:
        return ""
    return f"{path.name} does not define `{name}`{did_you_mean(name, (n for n in names if not n.startswith('_')))}"


def _names(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements bind at the top of a module; `*` for a star import, which may bind any."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in statement.names)
        elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
        else:
            yield from _names(_inner(statement))


def _inner(statement: ast.stmt) -> Iterator[ast.stmt]:
    if isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While):
        yield from statement.body
    if isinstance(statement, ast.If | ast.Try | ast.For | ast.While):
        yield from statement.orelse
    if isinstance(statement, ast.Try):
        yield from statement.finalbody
        for handler in statement.handlers:
            yield from handler.body
