"""The heads of link frames as typed values. Nothing that a peer sends is used before it is checked here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from orchestrator.serving.errors import RequestError
from orchestrator.serving.link.frames import Frame, LinkError
from orchestrator.serving.link.wire_fields import (
    buckets_of,
    check_whole,
    load_of,
    rows_of,
    specs_of,
    stage_of,
    text_of,
    whole_of,
)
from orchestrator.serving.protocol.signature import Signature
from orchestrator.serving.runtimes.api import Bucket

NONFINITE: Final = 1
SATURATED: Final = 2
"""Bits of a reply's `flags`: outputs of a request hold infinities or NaN; values as large as fp16 can be, where an overflow may
hide there.
"""
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
class Statuses:
    """What a reply says besides tensors: per request None or its error, time on the device, new credit, the share of the
    time that copied to and from the device, -1 where the runtime does not know, and per request what its outputs hold besides
    numbers (`NONFINITE`, `SATURATED`), None where nothing was found.
    """

    errors: list[RequestError | None]
    compute_us: int
    credit: int
    copy_us: int = -1
    flags: Sequence[int] | None = None


_PLACEMENT: Final = ("endpoint", "bundle", "path", "runtime", "device", "variant", "variant_path")


def read_hello(frame: Frame) -> ReplicaHello | AgentHello:
    """Parse a hello frame.

    Raises:
        LinkError: A field is missing or of the wrong kind.
    """
    head = frame.head
    if head.get("role") == "agent":
        slot, pid = whole_of(head, "slot"), whole_of(head, "pid")
        soc = text_of(head, "soc", empty=True) if "soc" in head else ""
        return AgentHello(text_of(head, "pool"), slot, text_of(head, "device"), pid, text_of(head, "host"), soc)
    if head.get("role") != "replica":
        raise LinkError(f"hello with unknown role {str(head.get('role'))[:80]!r}")
    max_batch = whole_of(head, "max_batch")
    signature = Signature(specs_of(head, "inputs"), specs_of(head, "outputs"), max_batch)
    if max_batch < 1 or not signature.inputs or not signature.outputs:
        raise LinkError("a replica needs max_batch >= 1, inputs and outputs")
    if max_batch > 1 and not all(spec.dims for spec in (*signature.inputs, *signature.outputs)):
        raise LinkError("max_batch > 1 needs an axis 0 on every input and output")
    names = [text_of(head, name) for name in ("replica", "endpoint", "bundle", "runtime", "device")]
    return ReplicaHello(
        names[0],
        whole_of(head, "pid"),
        names[1],
        names[2],
        names[3],
        names[4],
        signature,
        text_of(head, "variant", empty=True),
        text_of(head, "slot", empty=True) if "slot" in head else "",
        whole_of(head, "depth") if "depth" in head else 1,
        buckets_of(head, signature) if "buckets" in head else (),
        stage_of(head),
        load_of(head),
    )


def read_placements(frame: Frame) -> tuple[int, list[Placement]]:
    """Parse a placements frame into (table version, placements).

    Raises:
        LinkError: A field is missing or of the wrong kind.
    """
    rows = rows_of(frame.head, "placements")
    return whole_of(frame.head, "version"), [
        Placement(*(text_of(row, name, empty=name.startswith("variant")) for name in _PLACEMENT)) for row in rows
    ]


def read_elsewhere(frame: Frame) -> frozenset[str]:
    """Return the endpoints of a placements frame that other slots run.

    Raises:
        LinkError: They are no list of texts.
    """
    names = frame.head.get("elsewhere", [])
    if not isinstance(names, list):
        raise LinkError("elsewhere must be a list")
    return frozenset(text_of({"elsewhere": name}, "elsewhere") for name in cast("list[object]", names))


def read_credit(frame: Frame) -> int:
    """Parse a credit frame.

    Raises:
        LinkError: The credit is out of range.
    """
    credit = whole_of(frame.head, "credit")
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
    return [check_whole(row, "rows") for row in cast("list[object]", rows)]


def read_statuses(frame: Frame, count: int) -> Statuses:
    """Parse the head of a reply to a batch of `count` requests.

    Raises:
        LinkError: A field is missing, of the wrong kind or of the wrong length.
    """
    status = frame.head.get("status")
    if not isinstance(status, list) or len(cast("list[object]", status)) != count:
        raise LinkError(f"a reply needs {count} statuses")
    errors = [None if row is None else _error(row) for row in cast("list[object]", status)]
    copy_us = whole_of(frame.head, "copy_us") if "copy_us" in frame.head else -1
    flags = _flags(frame.head["flags"], count) if "flags" in frame.head else None
    return Statuses(errors, whole_of(frame.head, "compute_us"), read_credit(frame), copy_us, flags)


def _flags(value: object, count: int) -> list[int]:
    if not isinstance(value, list) or len(cast("list[object]", value)) != count:
        raise LinkError(f"a reply needs {count} flags, or none")
    return [check_whole(row, "flags") for row in cast("list[object]", value)]


def _error(value: object) -> RequestError:
    if not isinstance(value, dict):
        raise LinkError("a status must be null or an object")
    row = cast("dict[str, object]", value)
    kind = text_of(row, "kind")
    if kind not in _STATUS:
        raise LinkError(f"unknown status kind {kind!r}")
    return RequestError(text_of(row, "error"), status=_STATUS[kind], kind=kind)


def read_build(frame: Frame) -> tuple[str, str, str]:
    """Return which model a wake or unload frame names: endpoint, bundle, variant.

    Raises:
        LinkError: A field is missing or of the wrong kind.
    """
    head = frame.head
    return text_of(head, "endpoint"), text_of(head, "bundle"), text_of(head, "variant", empty=True)
