"""Conditions on the answer of a query: a small part of Argo's expressions. No names but `result`, no calls but a few tests.

`result >= 0.95`, `result[0] < 0.5 && !isNaN(result)`, `0.9 <= result <= 1.1`, `result > 2 * 3 or isInf(result)`.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Final

from orchestrator.core.errors import UsageError

LONGEST: Final = 300
_DEEPEST: Final = 24
_TESTS: Final[dict[str, Callable[[float], bool]]] = {"isNaN": math.isnan, "isInf": math.isinf}
_SAME: Final = frozenset({"asFloat", "float"})
_COMPARE: Final[dict[type[ast.cmpop], Callable[[float, float], bool]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: Final[dict[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: a / b if b else math.nan,
}


class Condition:
    """A condition that was parsed and checked.

    Args:
        text: The expression; `&&`, `||` and `!` are the same as and, or, not.

    Raises:
        UsageError: It is not an expression of this small language.
    """

    __slots__ = ("_tree", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            if len(text) > LONGEST:
                raise ValueError(f"it has more than {LONGEST} characters")
            words = re.sub(r"!(?!=)", " not ", text.replace("&&", " and ").replace("||", " or "))
            self._tree = ast.parse(words.strip(), mode="eval").body
            kind = _check(self._tree, 0)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            raise UsageError(f"the condition {text[:LONGEST]!r} cannot be read: {reason}", hint=_HINT) from error
        if kind is not bool:
            raise UsageError(f"the condition {text!r} is a number, not true or false", hint=_HINT)

    def holds(self, result: float) -> bool:
        """Tell whether it is true of an answer."""
        return bool(_value(self._tree, result))


_HINT: Final = (
    "compare `result` with numbers, e.g. result >= 0.95; join with && and ||; isNaN(result) and isInf(result) exist"
)


def _check(node: ast.expr, depth: int) -> type[bool] | type[float]:  # noqa: C901 - one case for each kind of node
    """Return whether a part is a truth or a number."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    found: type[bool] | type[float] = float
    parts: list[tuple[ast.expr, type[bool] | type[float]]] = []
    match node:
        case ast.BoolOp(values=values):
            found, parts = bool, [(value, bool) for value in values]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            found, parts = bool, [(operand, bool)]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            parts = [(operand, float)]
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
            found, parts = bool, [(value, float) for value in (left, *others)]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            parts = [(left, float), (right, float)]
        case ast.Call(func=ast.Name(id=name), args=[value], keywords=[]) if name in _TESTS or name in _SAME:
            found, parts = (bool if name in _TESTS else float), [(value, float)]
        case ast.Subscript(value=ast.Name(id="result"), slice=ast.Constant(value=0)) | ast.Name(id="result"):
            pass
        case ast.Constant(value=value) if isinstance(value, int | float):
            found = bool if isinstance(value, bool) else float
        case _:
            raise ValueError(f"`{ast.unparse(node)}` is not part of this language")
    for part, wanted in parts:
        if _check(part, depth + 1) is not wanted:
            raise ValueError(f"`{ast.unparse(part)}` should be {'true or false' if wanted is bool else 'a number'}")
    return found


def _value(node: ast.expr, result: float) -> float:
    match node:
        case ast.BoolOp(op=op, values=values):
            truths = (bool(_value(value, result)) for value in values)
            return all(truths) if isinstance(op, ast.And) else any(truths)
        case ast.UnaryOp(op=op, operand=operand):
            inner = _value(operand, result)
            return not inner if isinstance(op, ast.Not) else -inner if isinstance(op, ast.USub) else inner
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [_value(side, result) for side in (left, *others)]
            return all(_COMPARE[type(op)](a, b) for op, a, b in zip(ops, sides[:-1], sides[1:], strict=True))
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_value(left, result), _value(right, result))
        case ast.Call(func=ast.Name(id=name), args=[value]):
            inner = _value(value, result)
            return _TESTS[name](inner) if name in _TESTS else inner
        case ast.Constant(value=bool() | int() | float() as constant):
            return float(constant)
        case _:
            return result
