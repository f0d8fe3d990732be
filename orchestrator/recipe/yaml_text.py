"""The one entry point for YAML: text -> plain values + the place of every value.

It reads events only (scanner and parser of PyYAML): no constructor, tag or alias exists that could build an object or expand a bomb.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn, cast

from yaml import events as ev
from yaml.error import MarkedYAMLError, YAMLError
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.scanner import Scanner

from orchestrator.core.errors import OrchestratorError
from orchestrator.recipe.problems import Loc, Problem, dotted, raise_problems
from orchestrator.recipe.scalars import Scalar, plain_scalar

LARGEST_BYTES: Final = 1 << 20
DEEPEST: Final = 50
MOST_VALUES: Final = 20_000

Value = Scalar | tuple["Value", ...] | dict[str, "Value"]
"""What a document holds; sequences are tuples, so that nothing downstream can change them."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where one value stands; lines and columns are 1-based, offsets count characters of the text."""

    line: int
    column: int
    key_line: int
    key_column: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document.

    Attributes:
        name: File name as the user wrote it; the first part of every place.
        text: The decoded text.
        sha256: `sha256:<hex>` of the bytes.
        value: The root; a mapping.
        spans: Loc -> where it stands.
        overrides: Loc -> the override that put the value there; such values have no place in the file.
    """

    name: str
    text: str
    sha256: str
    value: dict[str, Value]
    spans: dict[Loc, Span]
    overrides: dict[Loc, str] = field(default_factory=dict[Loc, str])

    def place(self, path: Loc, *, key: bool = False) -> tuple[int, int, str]:
        """Return (line, column, place) of a value, or of its key; of the nearest parent where the path is not there."""
        for size in range(len(path), -1, -1):
            part = path[:size]
            if part in self.overrides:
                return 0, 0, self.overrides[part]
            span = self.spans.get(part)
            if span is not None:
                # A block collection and an empty value have no characters of their own: the eye looks for the key.
                at_key = key or size < len(path) or span.start == span.end
                line, column = (span.key_line, span.key_column) if at_key else (span.line, span.column)
                return line, column, f"{self.name}:{line}:{column}"
        return 1, 1, f"{self.name}:1:1"

    def problem(self, path: Loc, message: str, *, key: bool = False) -> Problem:
        """Return a problem placed at `path`."""
        line, column, place = self.place(path, key=key)
        return Problem(line, column, place, dotted(path), message)

    def raw(self, path: Loc) -> str:
        """Return the characters of a value as written; empty where it is not in the file."""
        span = self.spans.get(path)
        return self.text[span.start : span.end] if span is not None and path not in self.overrides else ""


def read_document(path: Path, family: type[OrchestratorError]) -> Document:
    """Read and parse a file.

    Args:
        path: The file; relative names stay as written in every place.
        family: The error to raise; exit code 2.

    Raises:
        OrchestratorError: Of `family`: unreadable, over 1 MiB, not UTF-8, not YAML of our subset, or not a mapping.
    """
    name = str(path).encode("utf-8", "backslashreplace").decode()
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise family(f"cannot read {name}: {reason.lower()}", place=name, hint="check the path") from error
    except ValueError as error:
        raise family(f"cannot read {name!r}: {error}", hint="check the path") from error
    return parse_bytes(data, name, family)


def parse_bytes(data: bytes, name: str, family: type[OrchestratorError]) -> Document:
    """Parse a document; see `read_document`."""
    if len(data) > LARGEST_BYTES:
        _fail(name, 1, 1, "the file is larger than 1 MiB; keep data out of it", family)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig")
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        _fail(name, line, column, f"the file is not UTF-8: byte 0x{data[error.start]:02x} ({error.reason})", family)
    value, spans, problems = _Builder(text, name, family).build()
    if problems:
        raise_problems(problems, family)
    if not isinstance(value, dict):
        what = "empty" if value is None else "a list" if isinstance(value, tuple) else "a single value"
        _fail(name, 1, 1, f"the document is {what}; a mapping of fields is needed", family)
    return Document(name, text, "sha256:" + hashlib.sha256(data).hexdigest(), value, spans)


def parse_value(text: str, name: str, family: type[OrchestratorError]) -> Value:
    """Parse one value that is not in a file, by the same rules; see `read_document`."""
    value, _, problems = _Builder(text, name, family).build()
    if problems:
        raise_problems(problems, family)
    return value


class _Events(Reader, Scanner, Parser):
    """Text -> events; the three stages of PyYAML that know nothing of objects."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)

    def all(self) -> Iterator[ev.Event]:
        """Yield the events one by one; scanning happens on the way, so a refused event ends the work."""
        while self.check_event():  # pyright: ignore[reportUnknownMemberType]
            yield cast("ev.Event", self.get_event())  # pyright: ignore[reportUnknownMemberType]


class _Builder:
    """Builds values and spans from events; nesting is capped before it recurses."""

    def __init__(self, text: str, name: str, family: type[OrchestratorError]) -> None:
        self.text, self.name, self.family = text, name, family
        self.spans: dict[Loc, Span] = {}
        self.problems: list[Problem] = []
        self.source: _Events | None = None

    def build(self) -> tuple[Value, dict[Loc, Span], list[Problem]]:
        try:
            self.source = _Events(self.text)
            return self._document(self.source.all()), self.spans, self.problems
        except ReaderError as error:
            before = self.text[: error.position]
            line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
            code = error.character if isinstance(error.character, int) else ord(error.character[:1] or " ")
            _fail(self.name, line, column, f"the character U+{code:04X} is not allowed in YAML", self.family)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            _fail(self.name, line, column, _explain(error), self.family)
        except (YAMLError, ValueError, OverflowError) as error:
            # PyYAML lets ValueError through for escapes such as "\UFFFFFFFF" and for absurd %YAML versions.
            line, column = (self.source.line + 1, self.source.column + 1) if self.source else (1, 1)
            _fail(self.name, line, column, f"not YAML: {error}", self.family)

    def _document(self, events: Iterator[ev.Event]) -> Value:
        value: Value = None
        documents = 0
        for event in events:
            if isinstance(event, ev.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._fail(event, "a second document starts here; one file holds one document")
                if event.version or event.tags:
                    self._fail(event, "%YAML and %TAG directives are not allowed")
                first = next(events)
                value = self._value(first, events, (), first)
        return value

    def _value(self, event: ev.Event, events: Iterator[ev.Event], path: Loc, key: ev.Event) -> Value:
        self._refuse(event)
        if len(self.spans) >= MOST_VALUES:
            self._fail(event, f"more than {MOST_VALUES} values; keep data out of the file")
        if isinstance(event, ev.ScalarEvent):
            self._remember(path, key, event)
            return self._scalar(event, path)
        if len(path) >= DEEPEST:
            self._fail(event, f"nested deeper than {DEEPEST} levels")
        self._remember(path, key, event)
        if isinstance(event, ev.SequenceStartEvent):
            return self._sequence(events, path)
        return self._mapping(events, path)

    def _sequence(self, events: Iterator[ev.Event], path: Loc) -> Value:
        items: list[Value] = []
        for event in events:
            if isinstance(event, ev.SequenceEndEvent):
                break
            items.append(self._value(event, events, (*path, len(items)), event))
        return tuple(items)

    def _mapping(self, events: Iterator[ev.Event], path: Loc) -> Value:
        found: dict[str, Value] = {}
        first_line: dict[str, int] = {}
        for key in events:
            if isinstance(key, ev.MappingEndEvent):
                break
            name = self._key(key, path)
            if name in found:
                self._note(key, (*path, name), f"duplicate key `{name}`, first on line {first_line[name]}")
            first_line.setdefault(name, key.start_mark.line + 1)
            found[name] = self._value(next(events), events, (*path, name), key)
        return found

    def _key(self, event: ev.Event, path: Loc) -> str:
        self._refuse(event)
        if not isinstance(event, ev.ScalarEvent):
            self._fail(event, "a key must be a single word, not a list or a mapping")
        if event.value == "<<" and event.implicit[0]:
            self._fail(event, "merge keys (<<) are not allowed; write the fields out")
        value = self._scalar(event, path)
        if not isinstance(value, str):
            self._note(event, path, f"the key {event.value or 'null'} is not text; put it in quotes")
        return str(event.value)

    def _scalar(self, event: ev.ScalarEvent, path: Loc) -> Scalar:
        text = str(event.value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._fail(event, "half of a surrogate pair is not a character")
        if not event.implicit[0]:
            return text
        try:
            return plain_scalar(text)
        except ValueError as error:
            self._note(event, path, str(error))
            return None

    def _refuse(self, event: ev.Event) -> None:
        if isinstance(event, ev.AliasEvent):
            self._fail(event, f"aliases (*{event.anchor}) are not allowed; write the value out")
        if getattr(event, "anchor", None) is not None:
            self._fail(event, f"anchors (&{getattr(event, 'anchor', '')}) are not allowed; write the value out")
        if getattr(event, "tag", None) is not None:
            tag = str(getattr(event, "tag", "")).replace("tag:yaml.org,2002:", "!!")[:60]
            self._fail(event, f"tags ({tag}) are not allowed")

    def _remember(self, path: Loc, key: ev.Event, event: ev.Event) -> None:
        at_key, begin, stop = key.start_mark, event.start_mark, event.end_mark
        self.spans[path] = Span(
            begin.line + 1, begin.column + 1, at_key.line + 1, at_key.column + 1, begin.index, stop.index
        )

    def _note(self, event: ev.Event, path: Loc, message: str) -> None:
        mark = event.start_mark
        line, column = mark.line + 1, mark.column + 1
        self.problems.append(Problem(line, column, f"{self.name}:{line}:{column}", dotted(path), message))

    def _fail(self, event: ev.Event, message: str) -> NoReturn:
        mark = event.start_mark
        _fail(self.name, mark.line + 1, mark.column + 1, message, self.family)


def _fail(name: str, line: int, column: int, message: str, family: type[OrchestratorError]) -> NoReturn:
    raise_problems([Problem(line, column, f"{name}:{line}:{column}", "", message)], family)


def _explain(error: MarkedYAMLError) -> str:
    problem = error.problem or "cannot be read"
    if "'\\t'" in problem:
        return "a tab stands here; YAML is indented with spaces"
    context = f" ({error.context})" if error.context else ""
    return f"not YAML: {problem}{context}"
