"""A `.proto` file to message classes at run time: no protoc, no generated code, and a pool of its own that meets no client's copy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TOKEN: Final = re.compile(r'//[^\n]*|\s+|("[^"\n]*"|[A-Za-z_][\w.]*|\d+|[{}()<>=;,])')
_SCALARS: Final = {
    "double": 1,
    "float": 2,
    "int64": 3,
    "uint64": 4,
    "int32": 5,
    "bool": 8,
    "string": 9,
    "bytes": 12,
    "uint32": 13,
}
_OPTIONAL, _REPEATED = 1, 3


class ProtoError(ValueError):
    """The text is outside the part of proto3 that this module reads."""


def load_messages(path: Path) -> dict[str, Any]:
    """Return the message classes of a file by their name within the package, nested ones as `Outer.Inner`.

    The part of proto3 that is read: package, message, enum, oneof, map, repeated, service.

    Raises:
        ProtoError: Anything else in it.
    """
    file = parse_proto(path.read_text(encoding="utf-8"), path.name)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # pyright: ignore[reportUnknownMemberType] - the stub of protobuf leaves the argument open
    found: dict[str, Any] = {}
    for name in _names(file):
        descriptor = pool.FindMessageTypeByName(f"{file.package}.{name}")
        found[name] = message_factory.GetMessageClass(descriptor)
    return found


def _names(file: Any) -> Iterator[str]:
    for message in file.message_type:
        yield message.name
        for nested in message.nested_type:
            if not nested.options.map_entry:
                yield f"{message.name}.{nested.name}"


def parse_proto(text: str, name: str) -> Any:
    """Return the text as a `FileDescriptorProto` called `name`.

    Raises:
        ProtoError: See `load_messages`.
    """
    return _Parser(text, name).file()


class _Parser:
    def __init__(self, text: str, name: str) -> None:
        self._file: Any = descriptor_pb2.FileDescriptorProto(name=name, syntax="proto3")
        self._tokens = list(_tokens(text))
        self._place = 0

    def file(self) -> Any:
        while self._place < len(self._tokens):
            word = self._next()
            if word == "syntax":
                self._expect("=", '"proto3"', ";")
            elif word == "package":
                self._file.package = self._next()
                self._expect(";")
            elif word == "message":
                self._message(self._file.message_type.add())
            elif word == "enum":
                self._enum(self._file.enum_type.add())
            elif word == "service":
                self._service(self._file.service.add())
            else:
                raise ProtoError(f"unexpected {word!r}")
        return self._file

    def _next(self) -> str:
        if self._place >= len(self._tokens):
            raise ProtoError("the file ends too early")
        self._place += 1
        return self._tokens[self._place - 1]

    def _expect(self, *words: str) -> None:
        for word in words:
            if (found := self._next()) != word:
                raise ProtoError(f"{found!r} where {word!r} is due")

    def _message(self, message: Any) -> None:
        message.name = self._next()
        self._expect("{")
        while (word := self._next()) != "}":
            if word == "message":
                self._message(message.nested_type.add())
            elif word == "enum":
                self._enum(message.enum_type.add())
            elif word == "oneof":
                self._oneof(message)
            elif word == "map":
                self._map(message)
            elif word == "repeated":
                self._field(message.field.add(), self._next(), _REPEATED)
            else:
                self._field(message.field.add(), word, _OPTIONAL)

    def _field(self, field: Any, kind: str, label: int) -> None:
        field.label = label
        if kind in _SCALARS:
            field.type = _SCALARS[kind]
        else:
            field.type_name = kind
        field.name = self._next()
        self._expect("=")
        field.number = int(self._next())
        self._expect(";")

    def _oneof(self, message: Any) -> None:
        index = len(message.oneof_decl)
        message.oneof_decl.add().name = self._next()
        self._expect("{")
        while (kind := self._next()) != "}":
            field = message.field.add()
            self._field(field, kind, _OPTIONAL)
            field.oneof_index = index

    def _map(self, message: Any) -> None:
        self._expect("<")
        key = self._next()
        self._expect(",")
        value = self._next()
        self._expect(">")
        field = message.field.add()
        self._field(field, key, _REPEATED)
        entry = message.nested_type.add()
        entry.name = "".join(part.capitalize() for part in field.name.split("_")) + "Entry"
        entry.options.map_entry = True
        for number, (name, kind) in enumerate((("key", key), ("value", value)), 1):
            part = entry.field.add(name=name, number=number, label=_OPTIONAL)
            if kind in _SCALARS:
                part.type = _SCALARS[kind]
            else:
                part.type_name = kind
        field.ClearField("type")
        field.type_name = entry.name

    def _enum(self, enum: Any) -> None:
        enum.name = self._next()
        self._expect("{")
        while (name := self._next()) != "}":
            self._expect("=")
            enum.value.add(name=name, number=int(self._next()))
            self._expect(";")

    def _service(self, service: Any) -> None:
        service.name = self._next()
        self._expect("{")
        while self._next() != "}":
            method = service.method.add(name=self._next())
            method.input_type, method.client_streaming = self._argument()
            self._expect("returns")
            method.output_type, method.server_streaming = self._argument()
            self._expect(";")

    def _argument(self) -> tuple[str, bool]:
        self._expect("(")
        word = self._next()
        streams = word == "stream"
        if streams:
            word = self._next()
        self._expect(")")
        return word, streams


def _tokens(text: str) -> Iterator[str]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ProtoError(f"cannot read {text[place : place + 20]!r}")
        place = match.end()
        if match[1]:
            yield match[1]
