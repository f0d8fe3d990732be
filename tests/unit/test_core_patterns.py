"""Patterns for headers: what is taken matches as Python's do, and what may take for ever is refused."""

from __future__ import annotations

import pytest

from orchestrator.core.patterns import LONGEST_INPUT, LONGEST_PATTERN, safe_pattern


@pytest.mark.parametrize(
    ("pattern", "value", "matches"),
    [
        ("1", "1", True),
        ("user-[0-9]+", "user-42", True),
        ("user-[0-9]+", "user-42x", False),
        ("(?:eu|us)-.*", "eu-west", True),
        ("[0-9a-f]{8}-[0-9a-f]{4}", "0123abcd-0123", True),
        (r"a\+b\(c\)", "a+b(c)", True),
        (r"[\]+*(]+", "](+", True),
        ("[]a]+", "]a", True),
        ("a|b|c|d|e|f|g|h|i|j", "j", True),
    ],
)
def test_ordinary_patterns_are_taken(pattern: str, value: str, matches: bool) -> None:
    assert bool(safe_pattern(pattern).fullmatch(value)) is matches


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "1 to 128"),
        ("a" * (LONGEST_PATTERN + 1), "1 to 128"),
        ("[", "not a regular expression"),
        ("(a+)+", "repeats a group"),
        ("(?:a|aa)*b", "repeats a group"),
        ("(?:ab){2}", "repeats a group"),
        (r"(a)\1", "back reference"),
        ("(?=a)a", "look-around"),
        ("(?i)a", "flag"),
        (".*.*.*x", "for ever"),
        ("a?" * 30 + "a" * 30, "for ever"),
        ("(a|a)" * 25, "for ever"),
        ("a{1,200}a{1,200}a{1,200}b", "for ever"),
    ],
)
def test_what_may_take_for_ever_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        safe_pattern(pattern)


@pytest.mark.parametrize("pattern", [".*.*a?a?a?a?x", "(?:a|a)(?:a|a)(?:a|a)(?:a|a).*.*x", ".*" + "(?:a|a)" * 12 + "x"])
def test_the_worst_that_is_taken_ends(pattern: str) -> None:
    assert safe_pattern(pattern).fullmatch("a" * LONGEST_INPUT) is None
