"""A problem is a place, a path and a sentence; all problems of a file travel in one error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, cast

from orchestrator.core.errors import OrchestratorError

Loc = tuple[str | int, ...]
"""The way from the root of a document to a value: keys and list positions."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        line: 1-based; 0 where the place is not in a file (an override on the command line).
        column: 1-based, in characters.
        place: `file:line:column`, or the override.
        path: Dotted path of the value, e.g. `targets.0.soc`; empty for the whole document.
        message: What is wrong, with the value, and the nearest right word where there is one.
    """

    line: int
    column: int
    place: str
    path: str
    message: str

    @property
    def text(self) -> str:
        """`path: message`, or the message alone where there is no path."""
        return f"{self.path}: {self.message}" if self.path else self.message


def dotted(path: Sequence[str | int]) -> str:
    """Return `a.0.b` for `("a", 0, "b")`."""
    return ".".join(str(part) for part in path)


def raise_problems(problems: Iterable[Problem], family: type[OrchestratorError]) -> NoReturn:
    """Raise one error for all `problems`, in the order of the file; the first one gives place and message.

    Args:
        problems: At least one.
        family: The error to raise; must take `place` and `details`.
    """
    ordered = sorted(set(problems))
    first, more = ordered[0], len(ordered) - 1
    count = f" (and {more} more problem{'s' if more > 1 else ''})" if more else ""
    rows = [{"place": each.place, "path": each.path, "message": each.message} for each in ordered]
    raise family(first.text + count, place=first.place, details={"problems": rows})


def render_problems(error: OrchestratorError) -> str:
    """Return one line per problem, `file:line:column: path: message`; the error itself where it lists none."""
    rows = error.details.get("problems")
    if not isinstance(rows, list) or not rows:
        return str(error)
    listed = cast("list[Mapping[str, object]]", rows)
    return "\n".join(
        ": ".join(str(row[part]) for part in ("place", "path", "message") if row.get(part)) for row in listed
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that `word` most likely means, or an empty text."""
    # Only a failing document pays for the import.
    import difflib

    near = difflib.get_close_matches(word[:100], sorted(set(known)), n=1, cutoff=0.6)
    return near[0] if near else ""


def did_you_mean(word: str, known: Iterable[str], *, listing: bool = True) -> str:
    """Return ` (did you mean `x`?)` for the nearest known word, else a short list of what is known, else nothing."""
    words = sorted(set(known))
    near = nearest(word, words)
    if near:
        return f" (did you mean `{near}`?)"
    return f" (known: {', '.join(words)})" if listing and 0 < len(words) <= 16 else ""


def show(value: object) -> str:
    """Return a short, single-line form of a value for a message."""
    # Messages only; a document without problems never needs it.
    import json

    from orchestrator.core.redact import redact_text

    text = redact_text(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 60 else text[:57] + "..."
