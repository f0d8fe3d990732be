"""Regular expressions that others write and that run on what clients send: only those that end soon.

Python's engine backtracks: `(a+)+$` takes years on thirty letters. So a pattern is short, repeats no group, looks neither back
nor around, and its choices are counted: each open repeat may stand at every one of 256 letters (8 bits), each `?` and each `|`
in a group doubles what may be tried (1 bit); together at most 20 bits, a second or so at the very worst.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST_PATTERN: Final = 128
LONGEST_INPUT: Final = 256
"""Characters of the value that a pattern may be asked about; a longer value does not match."""

_MOST_BITS: Final = 20
_REPEAT_BITS: Final = 8
_CLASS: Final = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]")
_ESCAPE: Final = re.compile(r"\\(.)")
_REPEAT: Final = re.compile(r"[*+]|\{\d*,\d*\}")


def safe_pattern(text: str) -> re.Pattern[str]:
    """Compile a pattern that matches in bounded time; to be used with `fullmatch`.

    Raises:
        ValueError: Not a regular expression, too long, or one that may take for ever.
    """
    if not text or len(text) > LONGEST_PATTERN:
        raise ValueError(f"a pattern has 1 to {LONGEST_PATTERN} characters, not {len(text)}")
    try:
        compiled = re.compile(text)
    except (re.error, OverflowError) as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from error
    if re.search(r"(?<!\\)(?:\\\\)*\\[1-9]", text) or re.search(r"\(\?(?!:)", text):
        raise ValueError(f"{text!r} has a back reference, a look-around or a flag; only groups `(?:...)` are allowed")
    bare = _bare(text)
    if re.search(r"\)(?:[*+]|\{)", bare):
        raise ValueError(f"{text!r} repeats a group, which may take for ever; repeat single characters or classes")
    choices = bare.replace("(?:", "(").count("?") + _bars_in_groups(bare)
    if _REPEAT_BITS * len(_REPEAT.findall(bare)) + choices > _MOST_BITS:
        raise ValueError(
            f"{text!r} may take for ever: at most two of `*` `+` `{{n,m}}`, and few of `?` and of `|` in groups"
        )
    return compiled


def _bare(text: str) -> str:
    """Return the pattern with a letter for each class and each escape."""
    parts: list[str] = []
    at = 0
    while at < len(text):
        match = _CLASS.match(text, at) or _ESCAPE.match(text, at)
        parts.append("c" if match else text[at])
        at = match.end() if match else at + 1
    return "".join(parts)


def _bars_in_groups(bare: str) -> int:
    depth = bars = 0
    for character in bare:
        depth += (character == "(") - (character == ")")
        bars += character == "|" and depth > 0
    return bars
