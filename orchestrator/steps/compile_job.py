"""What every compiler gets, and what it gives back: files in a folder, or the reason why there are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from orchestrator.bundle.variant import Runtime
from orchestrator.core.files import regular_files
from orchestrator.core.manifest import MANIFEST_NAME
from orchestrator.graph.read import MODEL_ONNX, inspect_onnx
from orchestrator.recipe.compile_options import CompileOptions

KEEP_DTYPE: Final = "keep_dtype.cfg"
MODIFY_MIXLIST: Final = "modify_mixlist.json"
CUSTOMIZE_DTYPES: Final = "customize_dtypes.cfg"
DEFAULT_TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class CompileJob:
    """One compilation.

    Attributes:
        target: Name of the target.
        graph: The ONNX file as the toolchain reads it; its external data lie beside it.
        forecast: Folder with the files of nodes to keep; None where there was no forecast.
        out: Where the variant's files go; empty.
        work: Private folder for logs; survives attempts.
        cache: Folder for kernels that several compilations share.
        tools: The environment's `tools`.
        tell: Called with elapsed seconds and a line for people.
        model: The recipe's `model`, for torch; empty otherwise.
        recipe_dir: Folder of the user's code, for torch.
        bundle: The unpacked bundle, for torch.
        atc: Further fields of `AtcOptions` that beat all others, from a command line.
    """

    target: str
    soc: str | None
    precision: str
    shapes: Mapping[str, Sequence[int]]
    options: CompileOptions
    graph: Path
    forecast: Path | None
    out: Path
    work: Path
    cache: Path
    tools: Mapping[str, str | None]
    tell: Callable[[float, str], None] = lambda _elapsed, _line: None
    model: Mapping[str, Any] = field(default_factory=dict[str, Any])
    recipe_dir: Path | None = None
    bundle: Path | None = None
    atc: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def timeout_s(self) -> float:
        """Limit of one attempt."""
        return self.options.timeout or DEFAULT_TIMEOUT_S

    def keep_file(self, name: str) -> Path | None:
        """Return a file of the forecast that says something; None where it is absent or empty."""
        path = self.forecast / name if self.forecast is not None else None
        return path if path is not None and path.is_file() and _says_something(path) else None


@dataclass(frozen=True, slots=True)
class Built:
    """What a compiler made; its files lie in the job's `out`."""

    runtime: Runtime
    toolchain: Mapping[str, str]
    gears: Sequence[Mapping[str, int]] = ({},)
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Skipped:
    """Why nothing was compiled; `out` may hold files that go along with the twin."""

    reason: str
    toolchain: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    gears: Sequence[Mapping[str, int]] = ({},)


def copy_files(source: Path, out: Path) -> None:
    """Copy an artifact's files, without its manifest."""
    for path in regular_files(source):
        name = path.relative_to(source)
        if name.as_posix() != MANIFEST_NAME:
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def copy_graph(graph: Path, out: Path) -> None:
    """Copy an ONNX file as `model.onnx`, with its external data and nothing else that lies there."""
    shutil.copyfile(graph, out / MODEL_ONNX)
    for name in inspect_onnx(graph).external_files:
        shutil.copyfile(graph.parent / name, out / name)


def without_paths(command: Sequence[str]) -> list[str]:
    """Return a command whose paths are cut to their last part: a variant must not tell where it was made."""
    return [_cut(word) for word in command]


def _cut(word: str) -> str:
    name, equals, value = word.partition("=")
    if equals and value.startswith("/"):
        return f"{name}={Path(value).name}"
    return Path(word).name if word.startswith("/") else word


def _says_something(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        lists: dict[str, dict[str, list[str]]] = json.loads(text)
        return any(names for change in lists.values() for names in change.values())
    return any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines())
