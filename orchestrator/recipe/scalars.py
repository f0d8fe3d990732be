"""What an unquoted YAML word means: the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema).

`no`, `on`, `1:30` and `1_000` are text. Two words of the core schema are narrowed on purpose: a decimal with a leading zero (`010`)
is text, because YAML 1.1 readers take it for octal, and numbers that a double or a 64-bit integer cannot hold are refused.
"""

from __future__ import annotations

import re
from typing import Final

Scalar = str | int | float | bool | None

_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_OCTAL: Final = re.compile(r"0o[0-7]+")
_HEX: Final = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_ENDLESS: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_LONGEST_NUMBER: Final = 40
_LARGEST_INT: Final = 2**63 - 1


def plain_scalar(text: str) -> Scalar:
    """Return the value of an unquoted word.

    Raises:
        ValueError: A number that is infinite, not a number, or outside 64 bits.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "-+.0123456789":
        return text
    if _ENDLESS.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    for pattern, base in ((_INT, 10), (_OCTAL, 8), (_HEX, 16)):
        if pattern.fullmatch(text):
            return _whole(text, base)
    return _decimal(text) if _FLOAT.fullmatch(text) else text


def _whole(text: str, base: int) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"{text[:20]}... is too long for a number; put it in quotes if it is text")
    number = int(text[2:], base) if base != 10 else int(text)
    if abs(number) > _LARGEST_INT:
        raise ValueError(f"{text} does not fit 64 bits; put it in quotes if it is text")
    return number


def _decimal(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number
