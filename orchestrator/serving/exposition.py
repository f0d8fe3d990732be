"""Prometheus' text format: families of samples, written down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
        for edge, count in zip((*edges, None), counts, strict=True):
            below += count
            le = "+Inf" if edge is None else _number(edge)
            self.lines.append(f'{name}_bucket{{{text},le="{le}"}} {below}')
        self.lines.append(f"{name}_sum{{{text}}} {_number(total)}")
        self.lines.append(f"{name}_count{{{text}}} {below}")


def label_text(labels: Labels) -> str:
    """Return `a="1",b="x"`."""
    return ",".join(f'{name}="{str(value).translate(_ESCAPES)}"' for name, value in labels.items())


def write(families: Iterable[Family]) -> bytes:
    """Return the exposition; families without a sample are left out."""
    lines: list[str] = []
    for family in families:
        if family.lines:
            lines += (f"# HELP {family.name} {family.about}", f"# TYPE {family.name} {family.kind}", *family.lines)
    return ("\n".join(lines) + "\n").encode()


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
