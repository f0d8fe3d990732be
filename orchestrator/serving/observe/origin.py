"""Where a request came from, asked of its caller only for the few that are logged or traced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, cast

from orchestrator.serving.protocol.exchange import Exchange

if TYPE_CHECKING:
    from orchestrator.serving.dispatch.lanes import Caller

_TEXT: Final = 200

NameToken = Callable[[bytes], str]
"""From an `Authorization` header to the token's name; empty where there is none."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a client sent besides tensors; -1 for sizes that are not known.

    Attributes:
        request_id: The header `x-request-id`.
        traceparent: The W3C header, as it came.
    """

    protocol: str
    method: str
    path: str
    request_id: str = ""
    traceparent: str = ""
    authorization: bytes = b""
    bytes_in: int = -1
    bytes_out: int = -1


class _Remote(Protocol):
    """A caller of gRPC."""

    metadata: Sequence[tuple[str, str | bytes]]
    size: int
    answer_bytes: int


def trace_header(caller: Caller) -> str:
    """Return the `traceparent` of a request, or nothing."""
    outer = outermost(caller)
    if isinstance(outer, Exchange):
        return outer.headers.get(b"traceparent", b"").decode("latin-1")
    for key, value in getattr(outer, "metadata", ()):
        if key == "traceparent":
            return str(value)
    return ""


def origin_of(caller: Caller) -> Origin:
    """Return where the request came from."""
    outer = outermost(caller)
    if isinstance(outer, Exchange):
        headers = outer.headers
        return Origin(
            "http",
            _short(outer.method),
            _short(outer.target.partition(b"?")[0]),
            _short(headers.get(b"x-request-id", b"")),
            _short(headers.get(b"traceparent", b"")),
            headers.get(b"authorization", b""),
            len(outer.body),
            outer.answer_bytes,
        )
    if not hasattr(outer, "metadata"):
        return Origin("", "", "")
    remote = cast("_Remote", outer)
    found = {key: value if isinstance(value, bytes) else value.encode() for key, value in remote.metadata}
    return Origin(
        "grpc",
        "ModelInfer",
        "",
        _short(found.get("x-request-id", b"")),
        _short(found.get("traceparent", b"")),
        found.get("authorization", b""),
        remote.size,
        remote.answer_bytes,
    )


def outermost(caller: Caller) -> object:
    """Return the caller of the client: one that chains stages names the one it works for as `outer`."""
    found: object = caller
    while (outer := getattr(found, "outer", None)) is not None:
        found = outer
    return found


def _short(text: bytes) -> str:
    return text[:_TEXT].decode("latin-1")
