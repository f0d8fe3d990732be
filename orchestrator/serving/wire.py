"""The heads of link frames as typed values. Nothing that a peer sends is used before it is checked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, cast

from orchestrator.serving.errors import RequestError
from orchestrator.serving.link import Frame, LinkError
from orchestrator.serving.runtimes.api import Bucket
from orchestrator.serving.signature import Signature
from orchestrator.serving.tensors import TensorSpec

_MAX_TEXT: Final = 16_384
_MAX_CREDIT: Final = 64
_STATUS: Final[Mapping[str, int]] = {"rejected": 400, "execution": 500}


@dataclass(frozen=True, slots=True)
class ReplicaHello:
    """A replica that is loaded, warm and checked.

    Attributes:
        slot: The device slot that it shares; empty where it shares with nobody.
        depth: Batches that its session takes at once.
        buckets: Shapes of the inputs that it was compiled for; empty: any shape is as good.
        stage: What it computes of a request: `model`, `preprocess` or `postprocess`.
        load: `lazy` where its agent unloads it when room is needed, and loads it again when it is asked for.
    """

    replica: str
    pid: int
    endpoint: str
    bundle: str
    runtime: str
    device: str
    signature: Signature
    variant: str = ""
    slot: str = ""
    depth: int = 1
    buckets: tuple[Bucket, ...] = ()
    stage: str = "model"
    load: str = "always"

    def to_json(self) -> dict[str, object]:
        """Return the head of its hello frame."""
        return {
            "role": "replica",
            "replica": self.replica,
            "pid": self.pid,
            "endpoint": self.endpoint,
            "bundle": self.bundle,
            "runtime": self.runtime,
            "device": self.device,
            "variant": self.variant,
            "stage": self.stage,
            "load": self.load,
            "slot": self.slot,
            "depth": self.depth,
            "buckets": [{name: list(shape) for name, shape in bucket.items()} for bucket in self.buckets],
            "max_batch": self.signature.max_batch,
            "inputs": [spec.to_json() for spec in self.signature.inputs],
            "outputs": [spec.to_json() for spec in self.signature.outputs],
        }


@dataclass(frozen=True, slots=True)
class AgentHello:
    """An agent and the slot it holds; `soc` is what its device is, or what it rehearses."""

    pool: str
    slot: int
    device: str
    pid: int
    host: str
    soc: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the head of its hello frame."""
        names = ("pool", "slot", "device", "pid", "host", "soc")
        return {"role": "agent", **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, slots=True)
class Placement:
    """One replica that an agent must run. The router names models only; the agent adds the stages that their bundles bring."""

    endpoint: str
    bundle: str
    path: str
    runtime: str
    device: str
    variant: str = ""
    variant_path: str = ""
    stage: str = "model"

    @property
    def build(self) -> tuple[str, str]:
        """What its replica loads: bundle and variant."""
        return self.bundle, self.variant

    def to_json(self) -> dict[str, object]:
        """Return its form in a placements frame."""
        return {name: getattr(self, name) for name in _PLACEMENT}


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What an agent says of one replica, or of a model of a lazy pool whether it is loaded or not.

    Attributes:
        state: starting | ready | failed | stopping, and for a lazy model that has been proven: cold | loading.
        memory_bytes: What it holds, or held when it was loaded last.
        load: always | lazy.
        proven: A lazy model that has been loaded and checked before, and can be again.
        loads: How often it was loaded.
        unloads: How often it made room.
        load_s: What its last load took.
        retry_s: Of one that cannot be loaded: after how long it may be tried again.
    """

    endpoint: str
    bundle: str
    state: str
    restarts: int
    pid: int
    error: str
    log_tail: str
    variant: str = ""
    stage: str = "model"
    load: str = "always"
    proven: bool = False
    memory_bytes: int = 0
    loads: int = 0
    unloads: int = 0
    load_s: float = 0.0
    retry_s: float = 0.0

    def to_json(self) -> dict[str, object]:
        """Return its form in a report frame and in the router's status."""
        return {name: getattr(self, name) for name in _REPORT}


@dataclass(frozen=True, slots=True)
class Statuses:
    """What a reply says besides tensors: per request None or its error, time on the device, new credit, and the share of the
    time that copied to and from the device, -1 where the runtime does not know.
    """

    errors: list[RequestError | None]
    compute_us: int
    credit: int
    copy_us: int = -1


_PLACEMENT: Final = ("endpoint", "bundle", "path", "runtime", "device", "variant", "variant_path")
_REPORT: Final = tuple(field.name for field in fields(ReplicaReport))


def read_hello(frame: Frame) -> ReplicaHello | AgentHello:
    """Parse a hello frame.

    Raises:
        LinkError: A field is missing or of the wrong kind.
    """
    head = frame.head
    if head.get("role") == "agent":
        slot, pid = _int(head, "slot"), _int(head, "pid")
        soc = _text(head, "soc", empty=True) if "soc" in head else ""
        return AgentHello(_text(head, "pool"), slot, _text(head, "device"), pid, _text(head, "host"), soc)
    if head.get("role") != "replica":
        raise LinkError(f"hello with unknown role {str(head.get('role'))[:80]!r}")
    max_batch = _int(head, "max_batch")
    signature = Signature(_specs(head, "inputs"), _specs(head, "outputs"), max_batch)
    if max_batch < 1 or not signature.inputs or not signature.outputs:
        raise LinkError("a replica needs max_batch >= 1, inputs and outputs")
    if max_batch > 1 and not all(spec.dims for spec in (*signature.inputs, *signature.outputs)):
        raise LinkError("max_batch > 1 needs an axis 0 on every input and output")
    names = [_text(head, name) for name in ("replica", "endpoint", "bundle", "runtime", "device")]
    return ReplicaHello(
        names[0],
        _int(head, "pid"),
        names[1],
        names[2],
        names[3],
        names[4],
        signature,
        _text(head, "variant", empty=True),
        _text(head, "slot", empty=True) if "slot" in head else "",
        _int(head, "depth") if "depth" in head else 1,
        _buckets(head, signature) if "buckets" in head else (),
        _stage(head),
        _load(head),
    )


def _buckets(head: Mapping[str, object], signature: Signature) -> tuple[Bucket, ...]:
    rows = _rows(head, "buckets")
    ranks = {spec.name: len(spec.dims) for spec in signature.inputs}
    if any(
        {name: len(cast("list[object]", s)) if isinstance(s, list) else -1 for name, s in r.items()} != ranks
        for r in rows
    ):
        raise LinkError("a bucket must name the shape of every input")
    shapes = [{name: cast("list[object]", shape) for name, shape in row.items()} for row in rows]
    return tuple({n: tuple(_check_int(size, "buckets") for size in s) for n, s in row.items()} for row in shapes)


def read_placements(frame: Frame) -> tuple[int, list[Placement]]:
    """Parse a placements frame into (table version, placements).

    Raises:
        LinkError: A field is missing or of the wrong kind.
    """
    rows = _rows(frame.head, "placements")
    return _int(frame.head, "version"), [
        Placement(*(_text(row, name, empty=name.startswith("variant")) for name in _PLACEMENT)) for row in rows
    ]


def read_elsewhere(frame: Frame) -> frozenset[str]:
    """Return the endpoints of a placements frame that other slots run.

    Raises:
        LinkError: They are no list of texts.
    """
    names = frame.head.get("elsewhere", [])
    if not isinstance(names, list):
        raise LinkError("elsewhere must be a list")
    return frozenset(_text({"elsewhere": name}, "elsewhere") for name in cast("list[object]", names))


def read_report(frame: Frame) -> tuple[int, list[ReplicaReport]]:
    """Parse a report frame into (table version that the agent works on, replicas).

    Raises:
        LinkError: A field is missing or of the wrong kind.
    """
    reports = [
        ReplicaReport(
            _text(row, "endpoint"),
            _text(row, "bundle"),
            _text(row, "state"),
            _int(row, "restarts"),
            _int(row, "pid"),
            _text(row, "error", empty=True),
            _text(row, "log_tail", empty=True),
            _text(row, "variant", empty=True),
            _stage(row),
            _load(row),
            row.get("proven") is True,
            *(_int({name: row.get(name, 0)}, name) for name in ("memory_bytes", "loads", "unloads")),
            *(_seconds(row, name) for name in ("load_s", "retry_s")),
        )
        for row in _rows(frame.head, "replicas")
    ]
    return _int(frame.head, "version"), reports


def read_credit(frame: Frame) -> int:
    """Parse a credit frame.

    Raises:
        LinkError: The credit is out of range.
    """
    credit = _int(frame.head, "credit")
    if credit > _MAX_CREDIT:
        raise LinkError(f"a credit of {credit} is over {_MAX_CREDIT}")
    return credit


def read_rows(frame: Frame) -> list[int]:
    """Parse the `rows` of a batch frame.

    Raises:
        LinkError: Missing, empty or not sizes.
    """
    rows = frame.head.get("rows")
    if not isinstance(rows, list) or not rows:
        raise LinkError("a batch needs rows")
    return [_check_int(row, "rows") for row in cast("list[object]", rows)]


def read_statuses(frame: Frame, count: int) -> Statuses:
    """Parse the head of a reply to a batch of `count` requests.

    Raises:
        LinkError: A field is missing, of the wrong kind or of the wrong length.
    """
    status = frame.head.get("status")
    if not isinstance(status, list) or len(cast("list[object]", status)) != count:
        raise LinkError(f"a reply needs {count} statuses")
    errors = [None if row is None else _error(row) for row in cast("list[object]", status)]
    copy_us = _int(frame.head, "copy_us") if "copy_us" in frame.head else -1
    return Statuses(errors, _int(frame.head, "compute_us"), read_credit(frame), copy_us)


def _error(value: object) -> RequestError:
    if not isinstance(value, dict):
        raise LinkError("a status must be null or an object")
    row = cast("dict[str, object]", value)
    kind = _text(row, "kind")
    if kind not in _STATUS:
        raise LinkError(f"unknown status kind {kind!r}")
    return RequestError(_text(row, "error"), status=_STATUS[kind], kind=kind)


def read_build(frame: Frame) -> tuple[str, str, str]:
    """Return which model a wake or unload frame names: endpoint, bundle, variant.

    Raises:
        LinkError: A field is missing or of the wrong kind.
    """
    head = frame.head
    return _text(head, "endpoint"), _text(head, "bundle"), _text(head, "variant", empty=True)


def _seconds(head: Mapping[str, object], key: str) -> float:
    value = head.get(key, 0.0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e9:
        raise LinkError(f"{key} must be seconds")
    return float(value)


def _load(head: Mapping[str, object]) -> str:
    load = head.get("load", "always")
    if load not in ("always", "lazy"):
        raise LinkError(f"unknown load {str(load)[:80]!r}")
    return str(load)


def _stage(head: Mapping[str, object]) -> str:
    stage = head.get("stage", "model")
    if stage not in ("preprocess", "model", "postprocess"):
        raise LinkError(f"unknown stage {str(stage)[:80]!r}")
    return str(stage)


def _specs(head: Mapping[str, object], key: str) -> tuple[TensorSpec, ...]:
    try:
        return tuple(TensorSpec.from_json(row) for row in _rows(head, key))
    except ValueError as error:
        raise LinkError(str(error)) from error


def _rows(head: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    rows = head.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in cast("list[object]", rows)):
        raise LinkError(f"{key} must be a list of objects")
    return cast("list[Mapping[str, object]]", rows)


def _text(head: Mapping[str, object], key: str, *, empty: bool = False) -> str:
    value = head.get(key)
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not (value or empty):
        raise LinkError(f"{key} must be a text")
    return value


def _int(head: Mapping[str, object], key: str) -> int:
    return _check_int(head.get(key), key)


def _check_int(value: object, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LinkError(f"{key} must be a whole number of 0 or more")
    return value
