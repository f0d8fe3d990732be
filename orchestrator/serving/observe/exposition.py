"""Prometheus' text format: families of samples, written down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]
Labels = Mapping[str, object]

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass(slots=True)
class Family:
    """One metric: its help, its kind, and one line per set of labels."""

    name: str
    kind: Kind
    about: str
    lines: list[str] = field(default_factory=list[str])

    def add(self, labels: Labels, value: float, suffix: str = "") -> None:
        """Add one sample."""
        self.lines.append(f"{self.name}{suffix}{{{label_text(labels)}}} {_number(value)}")

    def add_histogram(self, labels: Labels, edges: Sequence[float], counts: Sequence[int], total: float) -> None:
        """Add a histogram: `counts[i]` values were at most `edges[i]` and above the edge before; the last has no edge."""
        text, below, name = label_text(labels), 0, self.name
        begin = f'{name}_bucket{{{text},le="'
        for edge, count in zip(edge_texts(tuple(edges)), counts, strict=True):
            below += count
            self.lines.append(f'{begin}{edge}"}} {below}')
        self.lines.append(f"{name}_sum{{{text}}} {_number(total)}")
        self.lines.append(f"{name}_count{{{text}}} {below}")


@cache
def edge_texts(edges: tuple[float, ...]) -> tuple[str, ...]:
    """Return the values of the label `le`."""
    return (*map(_number, edges), "+Inf")


def label_text(labels: Labels) -> str:
    """Return `a="1",b="x"`."""
    return ",".join(f'{name}="{str(value).translate(_ESCAPES)}"' for name, value in labels.items())


def write(families: Iterable[Family]) -> bytes:
    """Return the exposition; families without a sample are left out."""
    lines: list[str] = []
    for family in families:
        if family.lines:
            lines += (f"# HELP {family.name} {family.about}", f"# TYPE {family.name} {family.kind}", *family.lines)
    return "".join(f"{line}\n" for line in lines).encode()


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
