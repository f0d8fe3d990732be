"""Nothing secret leaves the process: by key name, by URL part and by known value."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Final, cast
from urllib.parse import urlsplit, urlunsplit

_KEY: Final = re.compile(
    r"(?i:(?:^|[^a-z])(?:authorization|token|password|passwd|secret|api[-_]?key|access[-_]?key|signature|credential)s?"
    r"(?:$|[^a-z]))|[a-z](?:Token|Password|Secret|Key)$"
)
"""Whole words only: `hf_token` and `authToken`, but not `tokenizer`."""
_NAMES: Final = r"(?:token|password|passwd|secret|api[-_]?key|access[-_]?key)"
_INLINE: Final = re.compile(
    rf"(?i)\b(bearer\s+|(?<=--){_NAMES}\s+|{_NAMES}[\"']?\s*[=:]\s*[\"']?)([^\s,;&\"']{{6,}})"
)  # `token=…`, `"api_key": "…"`, `--password …`, `Authorization: Bearer …`; prose such as `token expired` stays
_URL: Final = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]+")
_MASK: Final = "***"
_values: set[str] = set()


def remember_secret(value: str) -> None:
    """Mask this exact value wherever it appears from now on; values under 6 characters are ignored."""
    if len(value) >= 6:
        _values.add(value)


def redact_url(url: str) -> str:
    """Strip user info and query values from a URL."""
    parts = urlsplit(url)
    if not parts.netloc:
        return url  # a path such as sqlite:////folder/file; nothing in it can be a credential
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{_MASK}@{host}" if "@" in parts.netloc else host
    return urlunsplit((parts.scheme, netloc, parts.path, _MASK if parts.query else "", parts.fragment))


def redact_text(text: str) -> str:
    """Return `text` with remembered values, URL credentials and `token=…` forms masked."""
    for value in _values:
        text = text.replace(value, _MASK)
    text = _URL.sub(lambda m: redact_url(m[0]) if "@" in m[0] or "?" in m[0] else m[0], text)
    return _INLINE.sub(lambda m: f"{m[1]}{_MASK}", text)


def is_secret_name(name: str) -> bool:
    """Tell whether a value of this name must not be shown; where a secret lies (`token_path`) may be."""
    return _KEY.search(name) is not None and not name.endswith(("_path", "_file"))


def redact(value: object, key: str = "") -> object:
    """Return a JSON-like value with secrets masked, by key name and by content."""
    if key and isinstance(value, str) and is_secret_name(key):
        return _MASK
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {str(k): redact(v, str(k)) for k, v in cast("Mapping[object, object]", value).items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [redact(item) for item in cast("Sequence[object]", value)]
    return value


class RedactingFilter(logging.Filter):
    """Masks secrets in every log record; put it on the root handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the message in place; never drops a record."""
        record.msg, record.args = redact_text(record.getMessage()), None
        return True
