"""Texts of others on one line: what they hold ends up on terminals, in logs and in tables."""

from __future__ import annotations


def one_line(text: str, most: int = 600) -> str:
    """Return at most `most` characters of a text, with what is not printable (ends of lines, escapes) written out."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    return line.encode("utf-8", "replace").decode()
