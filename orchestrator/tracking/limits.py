"""What MLflow takes: names, lengths, and no secret. Nothing is truncated: what is too long goes to a file, with a pointer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from orchestrator.core.digests import sha256_bytes, short
from orchestrator.core.redact import redact, redact_text

T = TypeVar("T")

PARAM_MAX_CHARS: Final = 6000
TAG_MAX_CHARS: Final = 8000
INPUT_TAG_MAX_CHARS: Final = 500
DATASET_DIGEST_MAX_CHARS: Final = 36
KEY_MAX_CHARS: Final = 250
METRICS_PER_BATCH: Final = 1000
PAIRS_PER_BATCH: Final = 100
NOTE: Final = "mlflow.note.content"

_BAD_IN_KEY: Final = re.compile(r"[^/\w.\- ]", re.ASCII)
_BAD_IN_MODEL: Final = re.compile(r"[^\w\-]", re.ASCII)
_NUMBER: Final = re.compile(r"[-+]?[\d.]+([eE][-+]?\d+)?|true|false|none|null", re.IGNORECASE)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield consecutive pieces of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def safe_key(name: str) -> str:
    """Return a name that MLflow takes for a metric, param or tag; a changed name gets a digest, so that none collide."""
    parts = [part for part in _BAD_IN_KEY.sub("_", name).split("/") if part not in {"", ".", ".."}]
    safe = "/".join(parts)
    if safe == name and 0 < len(name) <= KEY_MAX_CHARS:
        return name
    return f"{safe[: KEY_MAX_CHARS - 10]}-{short(sha256_bytes(name.encode()))[:8]}"


def safe_model_name(name: str) -> str:
    """Return a name that MLflow takes for a LoggedModel: no dots, slashes, colons, quotes."""
    return _BAD_IN_MODEL.sub("-", name)


def safe_value(key: str, value: str) -> str:
    """Return `value` without secrets; numbers stay, because `max_tokens=512` is none."""
    return value if _NUMBER.fullmatch(value.strip()) else str(redact(value, key))


@dataclass(slots=True)
class Pairs:
    """Key-value pairs that fit MLflow, and the files that hold what did not.

    Attributes:
        values: What to send.
        files: Artifact path -> text, to upload beside.
    """

    values: dict[str, str] = field(default_factory=dict[str, str])
    files: dict[str, str] = field(default_factory=dict[str, str])


def fit(pairs: Mapping[str, str], max_chars: int, folder: str) -> Pairs:
    """Redact, make names safe, and move what is longer than `max_chars` into files below `folder`."""
    fitted = Pairs()
    for name, raw in pairs.items():
        key, value = safe_key(name), safe_value(name, raw)
        if len(value) > max_chars:
            path = f"{folder}/{key.replace('/', '_')}.txt"
            fitted.files[path] = value
            digest = sha256_bytes(value.encode())
            value = f"{len(value)} characters, too long for MLflow: artifact {path} ({digest})"
        fitted.values[key] = value
    return fitted


def fit_note(text: str) -> Pairs:
    """Return the page's note; what is too long for a tag keeps its head and points at the whole."""
    text = redact_text(text)
    if len(text) <= TAG_MAX_CHARS:
        return Pairs({NOTE: text})
    pointer = "\n\n(the whole note: artifact `note.md`)\n"
    head = text[: TAG_MAX_CHARS - len(pointer)].rpartition("\n")[0]
    return Pairs({NOTE: head + pointer}, {"note.md": text})
