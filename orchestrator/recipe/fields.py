"""The types of single fields. Each gives one clear message; none is a union, so that no message comes twice."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Final, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from orchestrator.core.digests import is_digest
from orchestrator.core.ids import is_name
from orchestrator.core.units import parse_duration_s, parse_size_bytes
from orchestrator.recipe.problems import did_you_mean, show
from orchestrator.recipe.rewrite_names import REWRITE_NAMES

_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENTRYPOINT: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_GATE: Final = re.compile(
    r"\s*[A-Za-z_][\w.]*\s*(?:>=|<=|==|>|<)\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII
)
_URI: Final = re.compile(r"[a-z][a-z0-9+.-]*:[^\s]+")
_MLFLOW: Final = re.compile(r"(?:models:/[^\s/@]+(?:@[^\s/@]+|/[^\s/@]+)|runs:/[0-9a-f]+/\S+)")
_SOC: Final = re.compile(r"Ascend[0-9][0-9A-Za-z_]*")
_LARGEST_DIM: Final = 2**31 - 1


class Model(BaseModel):
    """Base of every mapping in our files: unknown fields are refused and nothing changes after loading."""

    # A command builds the validators that it uses, not those of every block: a rollback must be quick.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


def _wrong(message: str) -> PydanticCustomError:
    # The message goes in as a value: braces of the user's text must not be taken for fields of a template.
    return PydanticCustomError("wrong_value", "{text}", {"text": message})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "must be text")
    return value


def _name(value: str) -> str:
    if not is_name(value):
        raise _wrong(f"{show(value)} is not a name (1 to 64 of a-z 0-9 . _ -, first and last a letter or digit)")
    return value


def _word(value: str) -> str:
    if not _WORD.fullmatch(value):
        raise _wrong(f"{show(value)} is not a word (letters, digits and _; no digit first)")
    return value


def _entrypoint(value: str) -> str:
    if not _ENTRYPOINT.fullmatch(value):
        raise _wrong(f"{show(value)} is not an entry point (write `module:function`, e.g. `train:main`)")
    return value


def _gate(value: str) -> str:
    if not _GATE.fullmatch(value):
        raise _wrong(f"{show(value)} is not a gate (write `metric >= number`; one of < <= > >= ==)")
    return value


def _uri(value: str) -> str:
    if not _URI.fullmatch(value):
        raise _wrong(f"{show(value)} is not a URI (write e.g. `file:data/train.npz` or `package:scikit-learn/digits`)")
    if "@" in value.partition("://")[2].partition("/")[0]:
        raise _wrong("a user name or password stands in the URI; keep credentials out of the recipe")
    return value


def _mlflow_uri(value: str) -> str:
    if not _MLFLOW.fullmatch(value):
        raise _wrong(f"{show(value)} is not a model of MLflow (write `models:/name@alias` or `models:/name/version`)")
    return value


def _digest(value: str) -> str:
    if not is_digest(value):
        raise _wrong(f"{show(value)} is not a digest (write `sha256:` and 64 lower-case hex digits)")
    return value


def _soc(value: str) -> str:
    if not _SOC.fullmatch(value):
        raise _wrong(f"{show(value)} is not a SoC name (write e.g. `Ascend310P3` or `Ascend910B4`)")
    return value


def _glob(value: str) -> str:
    if not value or value.startswith("/") or ".." in value.split("/") or "\0" in value:
        raise _wrong(f"{show(value)} is not a pattern below the recipe's folder")
    return value


def serve_file(value: object) -> str:
    """Check a pattern below the recipe's folder, or `package:NAME/path`."""
    text = _text(value)
    return text if re.fullmatch(r"package:[^/\s]+/\S+", text) else _glob(text)


def _path(value: str) -> str:
    if not value or "\0" in value:
        raise _wrong(f"{show(value)} is not a path")
    return value


def _dim(value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _wrong(f"a size is a positive whole number or a name, not {show(value)}")
    if isinstance(value, str):
        return _word(value)
    return _positive(value)


def _positive(value: int) -> int:
    if value < 1:
        raise _wrong(f"a size must be at least 1, not {value}; one that varies has a name, e.g. batch")
    if value > _LARGEST_DIM:
        raise _wrong(f"a size must be at most {_LARGEST_DIM}, not {value}")
    return value


def _duration(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong(f"{show(value)} is not a duration (write 90s, 5m or 1h30m)")
    try:
        seconds = parse_duration_s(value)
    except ValueError as error:
        raise _wrong(str(error)) from error
    if not 0 < seconds <= 366 * 86400:
        raise _wrong(f"a time limit must be more than 0 and at most a year, not {show(value)}")
    return seconds


def _byte_size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _wrong(f"{show(value)} is not a size (write 512MiB or 2GiB)")
    try:
        size = parse_size_bytes(value)
    except ValueError as error:
        raise _wrong(str(error)) from error
    if not 0 < size <= 1 << 50:
        raise _wrong(f"a size must be more than 0 and at most 1024TiB, not {show(value)}")
    return size


def _command(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            words: tuple[object, ...] = tuple(shlex.split(value))
        except ValueError as error:
            raise _wrong(f"{show(value)} is not a command ({error})") from error
    elif isinstance(value, list | tuple):
        words = tuple(cast("list[object]", value))
    else:
        raise _wrong(f"a command is text or a list of words, not {show(value)}")
    if not words or not all(isinstance(word, str) and "\0" not in word for word in words) or not words[0]:
        raise _wrong(f"a command needs at least a program, and only text: {show(words)}")
    return cast("tuple[str, ...]", words)


def _keep(value: object) -> object:
    shown = show(value)
    if isinstance(value, str) and value in {"auto", "none"}:
        return value
    names = cast("list[object]", value if isinstance(value, list | tuple) else [])
    if names and all(isinstance(name, str) and 0 < len(name) <= 1024 for name in names):
        return tuple(names)
    raise _wrong(f"{shown} is not `auto`, `none` or a list of node names of the ONNX graph")


def _rewrite(value: str) -> str:
    if value not in REWRITE_NAMES:
        raise _wrong(f"there is no rewrite {show(value)}{did_you_mean(value, REWRITE_NAMES)}")
    return value


def _scalar(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise _wrong(f"a parameter is one value, not {show(value)}")


def _json(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list | tuple):
        return tuple(_json(item) for item in cast("tuple[object, ...]", value))
    return _scalar(value)


Text = Annotated[str, BeforeValidator(_text)]
Name = Annotated[
    str,
    BeforeValidator(_text),
    AfterValidator(_name),
    Field(json_schema_extra={"pattern": r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"}),
]
Word = Annotated[str, BeforeValidator(_text), AfterValidator(_word)]
EntryPoint = Annotated[str, BeforeValidator(_text), AfterValidator(_entrypoint), Field(examples=["train:main"])]
Gate = Annotated[str, BeforeValidator(_text), AfterValidator(_gate), Field(examples=["accuracy >= 0.95"])]
Uri = Annotated[str, BeforeValidator(_text), AfterValidator(_uri)]
MlflowUri = Annotated[str, BeforeValidator(_text), AfterValidator(_mlflow_uri)]
DigestText = Annotated[str, BeforeValidator(_text), AfterValidator(_digest)]
Soc = Annotated[str, BeforeValidator(_text), AfterValidator(_soc), Field(examples=["Ascend310P3"])]
Glob = Annotated[str, BeforeValidator(_text), AfterValidator(_glob)]
FilePath = Annotated[str, BeforeValidator(_text), AfterValidator(_path)]
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Size = Annotated[int, Field(strict=True), AfterValidator(_positive), Field(json_schema_extra={"minimum": 1})]
Dim = Annotated[int | str, PlainValidator(_dim), WithJsonSchema({"type": ["integer", "string"], "minimum": 1})]
Duration = Annotated[
    float, PlainValidator(_duration), WithJsonSchema({"type": ["number", "string"], "examples": ["90s", "1h30m"]})
]
ByteSize = Annotated[
    int, PlainValidator(_byte_size), WithJsonSchema({"type": ["integer", "string"], "examples": ["512MiB", "8GiB"]})
]
Keep = Annotated[
    Any,
    PlainValidator(_keep),
    WithJsonSchema(
        {"anyOf": [{"enum": ["auto", "none"]}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    ),
]
Rewrite = Annotated[str, BeforeValidator(_text), AfterValidator(_rewrite)]
Command = Annotated[
    tuple[str, ...],
    BeforeValidator(_command),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}, "minItems": 1}),
]
ParamValue = Annotated[
    str | int | float | bool | None,
    PlainValidator(_scalar),
    WithJsonSchema({"type": ["string", "number", "boolean", "null"]}),
]
JsonValue = Annotated[Any, PlainValidator(_json), WithJsonSchema({})]


def _version(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value != 1:
        raise _wrong(f"this program reads version 1 of the format, not {show(value)}")
    return value


Version = Annotated[int, PlainValidator(_version), WithJsonSchema({"const": 1, "type": "integer"})]
