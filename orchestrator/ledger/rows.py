"""What the ledger remembers, as frozen rows. Times are UTC seconds since the epoch; JSON fields are plain Python."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.core.processes import ProcessIdentity
from orchestrator.ledger.rollout_rows import Json, Rollout

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def values_of(row: DataclassInstance) -> dict[str, Any]:
    """Return a row's values by name, as they are (`dataclasses.asdict` would copy every JSON value)."""
    return {field.name: getattr(row, field.name) for field in fields(row)}


def _nothing() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds a lease: a person and the very process.

    Attributes:
        machine: Boot id and pid namespace; equal only where a pid means the same process.
        started_ticks: Start time of the process in clock ticks since boot: a pid alone is reused.
        purpose: What for, shown to those who wait.
    """

    user: str
    host: str
    machine: str
    pid: int
    started_ticks: int
    purpose: str = ""

    @classmethod
    def here(cls, purpose: str = "") -> Owner:
        """Describe the calling process."""
        own = ProcessIdentity.own()
        return cls(
            user=user_name(),
            host=socket.gethostname(),
            machine=machine_id(),
            pid=own.pid,
            started_ticks=own.started_ticks,
            purpose=purpose,
        )

    def surely_dead(self) -> bool:
        """Tell whether this process lived here and is gone; False for every process of another machine."""
        return self.machine == machine_id() and not ProcessIdentity(self.pid, self.started_ticks).alive()


def user_name() -> str:
    """Return the name of this process's user, or `uid:<n>` in a container without a user database; no variable changes it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid:{os.getuid()}"


def machine_id() -> str:
    """Return what makes pids comparable: the kernel's boot id and the pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write, until someone else holds a higher token of the same name."""

    name: str
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds the lease `name` now."""

    name: str
    token: int
    owner: Owner
    acquired_at: float
    renewed_at: float
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRow:
    """One running of a plan; `environment` is its file, `git` the state of the user's repository, `error` what ended it."""

    id: str
    recipe: str
    recipe_sha256: str
    environment: str
    environment_sha256: str
    state: str
    created_at: float
    recipe_text: str = ""
    recipe_path: str = ""
    plan: Json = field(default_factory=_nothing)
    user: str = ""
    host: str = ""
    git: Json | None = None
    error: Json | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionUpdate:
    """The part of an execution that changes."""

    id: str
    state: str
    error: Json | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One step of an execution. `parts` explain the fingerprint; `outputs` name artifacts; metrics may be NaN."""

    execution: str
    name: str
    kind: str
    position: int
    action: str
    state: str
    reason: str = ""
    fingerprint: str | None = None
    parts: Json = field(default_factory=_nothing)
    attempt: int = 0
    outputs: Json = field(default_factory=_nothing)
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    facts: Json = field(default_factory=_nothing)
    verdict: Json | None = None
    error: Json | None = None
    started_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """One try of a step; `number` counts from 1."""

    execution: str
    step: str
    number: int
    state: str
    started_at: float
    retry_class: str | None = None
    error: Json | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """Something that happened; `seq` is given by the ledger and grows in the order of commits."""

    execution: str
    type: str
    t: float
    step: str | None = None
    payload: Json = field(default_factory=_nothing)
    seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One value of a metric at one epoch or iteration (`step_number`); NaN and infinity are kept."""

    execution: str
    step: str
    name: str
    step_number: int
    value: float
    t: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRow:
    """An artifact and where it first came from; no execution when it was carried here."""

    digest: str
    media_type: str
    kind: str
    size_bytes: int
    created_at: float
    execution: str | None = None
    step: str | None = None
    output: str | None = None


class GenerationState(StrEnum):
    """Where a generation stands. `warm` was live and stays loaded; `draining` finishes its requests; `retired` stays on disk."""

    STAGED = "staged"
    LIVE = "live"
    WARM = "warm"
    DRAINING = "draining"
    RETIRED = "retired"
    FAILED = "failed"


GenerationKind = Literal["promote", "rollback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """What a generation serves where, and who asked for it.

    Attributes:
        bundle: Digest that clients see.
        artifact: Digest of the stored artifact that holds the bundle; empty when it was not made here.
        path: Folder of the unpacked bundle on the serve site.
        variant: Digest of the variant that is loaded in place of the bundle's graph; empty without one.
        variant_artifact: Digest of the stored artifact that holds the variant.
        variant_path: The variant's folder on the serve site.
        builds: What each SoC loads where the pool has several: {soc, runtime, device, variant, variant_artifact, variant_path}.
    """

    endpoint: str
    site: str
    pool: str
    bundle: str
    artifact: str
    path: str
    runtime: str
    device: str
    kind: GenerationKind
    request_id: str
    actor: str
    variant: str = ""
    variant_artifact: str = ""
    variant_path: str = ""
    builds: tuple[Json, ...] = ()
    reason: str = ""
    evidence: Json = field(default_factory=_nothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest(_Served):
    """What is asked for; a repeat with the same `request_id` gets the first result. `expected`: the live one, 0 = none."""

    expected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation(_Served):
    """One generation of an endpoint; only `state`, `error` and `changed_at` ever change."""

    number: int
    state: GenerationState
    error: Json | None
    created_at: float
    changed_at: float


@dataclass(frozen=True, slots=True)
class TableStamp:
    """What a site's next routing table must show: `slots` of endpoints that do not take all of their pool, active `rollouts`."""

    site: str
    version: int
    generations: tuple[Generation, ...]
    slots: Mapping[str, int] = field(default_factory=dict[str, int])
    rollouts: Mapping[str, Rollout] = field(default_factory=dict[str, Rollout])


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One link of the audit chain; `hash` covers every other field."""

    seq: int
    t: float
    actor: str
    action: str
    subject: str
    detail: Json
    previous: str
    hash: str


@dataclass(frozen=True, slots=True)
class AuditHead:
    """Length of the verified chain and the hash of its last link."""

    count: int
    hash: str
