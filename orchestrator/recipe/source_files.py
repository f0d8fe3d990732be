"""Which of the user's files can change what an entry point does: the closure of its local imports, by reading only."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from orchestrator.recipe.entrypoints import module_file, parse_module

_NOT_SOURCE: Final = frozenset({"__pycache__", ".git", ".orchestrate", ".venv"})


def source_files(
    folder: Path, entrypoints: Sequence[str], extra_globs: Sequence[str] = (), *, command: Sequence[str] = ()
) -> dict[str, Path]:
    """Return the local files that entry points, or a command, can reach.

    Followed are `import`, `from ... import`, relative imports, the packages on the way, and `import_module("name")` with
    a literal name; anything computed is not seen, `extra_globs` names it. A file that is not Python counts, unread.

    Args:
        folder: The recipe's folder, first on the module path.
        entrypoints: `module:function` texts; modules that are not below `folder` are skipped.
        extra_globs: Patterns below `folder`, e.g. `vocab/*.txt`.
        command: Words of a command; those that name a file below `folder`, and the module after `-m`, are followed.

    Returns:
        Relative POSIX path -> file, sorted.
    """
    closure = _Closure(folder)
    for entrypoint in entrypoints:
        closure.add_module(entrypoint.partition(":")[0])
    for previous, word in zip(("", *command), command, strict=False):
        if previous == "-m":
            closure.add_module(word)
        elif (path := _below(folder, word)) is not None:
            closure.add_file(path)
    closure.follow()
    found = closure.files
    for pattern in extra_globs:
        for path in folder.glob(pattern):
            if path.is_file() and not _NOT_SOURCE.intersection(path.relative_to(folder).parts):
                found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def _below(folder: Path, word: str) -> Path | None:
    if not word or word.startswith(("-", "/")) or ".." in word.split("/") or len(word) > 1024:
        return None
    path = folder / word
    return path if path.is_file() else None


class _Closure:
    """Files found so far, and those still to read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unread: list[Path] = []
        self.files: dict[str, Path] = {}

    def add_file(self, path: Path) -> None:
        name = path.relative_to(self._folder).as_posix()
        if name not in self.files:
            self.files[name] = path
            if path.suffix == ".py":
                self._unread.append(path)

    def add_module(self, module: str) -> None:
        """Add a dotted module and the packages on the way to it, as far as they are below the folder."""
        parts = module.split(".")
        if not all(part.isidentifier() for part in parts):
            return
        for size in range(1, len(parts) + 1):
            path = module_file(self._folder, ".".join(parts[:size]))
            if path is not None:
                self.add_file(path)

    def follow(self) -> None:
        while self._unread:
            path = self._unread.pop()
            try:
                tree = parse_module(path)
            except ValueError:
                continue  # Not readable as Python: its bytes still count, and running it will tell the user why.
            package = path.relative_to(self._folder).parent.parts
            for module in _imported(tree, package):
                self.add_module(module)


def _imported(tree: ast.Module, package: tuple[str, ...]) -> Iterator[str]:
    """Yield dotted names that a module may import; `package` is the package that it stands in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            if base is not None:
                yield base
                yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from _by_name(node)


def _base(node: ast.ImportFrom, package: tuple[str, ...]) -> str | None:
    if not node.level:
        return node.module or ""
    climb = node.level - 1
    if climb > len(package):
        return None
    parts = package[: len(package) - climb]
    return ".".join((*parts, node.module) if node.module else parts)


def _by_name(node: ast.Call) -> Iterator[str]:
    function = node.func
    name = (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
    if name in {"import_module", "__import__"} and node.args:
        first = node.args[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value
