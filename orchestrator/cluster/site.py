"""What a local site is asked to be, where its files lie, and what it last said of itself."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, cast

from orchestrator.cluster.pool import LocalPool
from orchestrator.cluster.serving import LocalServing
from orchestrator.core.errors import InfraError
from orchestrator.core.files import write_json
from orchestrator.core.processes import ProcessIdentity

MARKER: Final = "ORCHESTRATE_SITE"
"""Environment variable that every process of a site inherits; its value is the site's id."""
PARTS: Final = ("ray", "router", "serve", "agents")
"""What `up` can wait for. `ray`: takes drivers; `serve`: applications run; `agents`: every slot has dialled the router."""
_RECORD_VERSION: Final = 1
_MAX_RUNTIME_PATH: Final = 32
"""Ray's longest socket below its temp folder has 68 bytes; Linux allows 107 in all."""

PartState = Literal["down", "starting", "up", "restarting", "failed", "none"]


@dataclass(frozen=True, slots=True)
class LocalSite:
    """Settings of the local site.

    Attributes:
        state: The environment's state folder, absolute.
        tools: Programs by name.
        serving: How clients are answered.
        npus: Ascend devices of the machine, as `up` found them.
    """

    name: str
    state: Path
    pools: Mapping[str, LocalPool] = field(default_factory=dict[str, LocalPool])
    tools: Mapping[str, str] = field(default_factory=dict[str, str])
    serving: LocalServing = field(default_factory=LocalServing)
    npus: int = 0

    @property
    def id(self) -> str:
        """Marker value: made from the place, so that a site is found again even when its files are lost."""
        place = f"{self.state.resolve()}\0{self.name}\0{os.getuid()}"
        return "site-" + hashlib.sha256(place.encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Durable files: record, token, logs, the router's table."""
        return self.state / "site" / self.name

    @property
    def runtime(self) -> Path:
        """Private short folder for sockets and Ray's temp files; its name is made from the id."""
        return Path("/tmp") / f"orc-{self.id.removeprefix('site-')}"  # noqa: S108 (checked by open_runtime)

    @property
    def record_path(self) -> Path:
        """Where the record is kept."""
        return self.folder / "site.json"

    @property
    def lock_path(self) -> Path:
        """Lock of `up` and `down`."""
        return self.folder / "lock"

    @property
    def token_path(self) -> Path:
        """Ray's token; 0600."""
        return self.folder / "ray-token"

    @property
    def logs(self) -> Path:
        """Logs of supervisor, router and Ray's head."""
        return self.folder / "logs"

    def pools_json(self) -> dict[str, Any]:
        """The pools as plain JSON."""
        return {name: asdict(pool) for name, pool in sorted(self.pools.items())}


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool as it is: `agents_ready` of `slots` agents have dialled the router."""

    slots: int
    device: str
    agents_ready: int = 0


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """What a site says of itself. Paths, never secrets.

    Attributes:
        state: `up` when every part that the pools need is up; `degraded` when a part that was up is not.
        router_grpc: `host:port` of gRPC; empty where grpcio is not installed.
        pids: Process ids of supervisor, ray and router, as far as they live.
        error: The last thing that went wrong, or empty.
    """

    name: str
    state: Literal["up", "down", "starting", "degraded"] = "down"
    ray_address: str = ""
    dashboard_url: str = ""
    router_url: str = ""
    router_grpc: str = ""
    router_admin: str = ""
    ray_token_path: str = ""
    pids: Mapping[str, int] = field(default_factory=dict[str, int])
    pools: Mapping[str, PoolStatus] = field(default_factory=dict[str, PoolStatus])
    parts: Mapping[str, PartState] = field(default_factory=dict[str, PartState])
    error: str = ""
    logs: str = ""

    def ready(self, parts: Sequence[str]) -> bool:
        """Tell whether each of `parts` is up, or is not needed."""
        return all(self.parts.get(part, "down") in {"up", "none"} for part in parts)

    def to_json(self) -> dict[str, Any]:
        """Return the status as one JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """The status as the supervisor writes it, with what is needed to prove which processes are meant."""

    id: str
    status: SiteStatus
    wanted: Mapping[str, Any]
    processes: Mapping[str, ProcessIdentity] = field(default_factory=dict[str, ProcessIdentity])
    serving: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def write(self, path: Path) -> None:
        """Replace the record at `path`."""
        write_json(path, {"version": _RECORD_VERSION, **asdict(self)}, mode=0o600)

    def alive(self, part: str) -> bool:
        """Tell whether the very process that was recorded for `part` still runs."""
        process = self.processes.get(part)
        return process is not None and process.alive()


def read_record(path: Path) -> SiteRecord | None:
    """Read a record; one that is absent, damaged or of another version reads as None (the marker finds the processes)."""
    try:
        data = json.loads(path.read_bytes())
        if data["version"] != _RECORD_VERSION:
            return None
        raw = dict(data["status"])
        raw["pools"] = {name: PoolStatus(**pool) for name, pool in raw["pools"].items()}
        processes = {name: ProcessIdentity(**identity) for name, identity in data["processes"].items()}
        return SiteRecord(data["id"], SiteStatus(**raw), data["wanted"], processes, data["serving"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def status(site: LocalSite) -> SiteStatus:
    """Return how the site is, in milliseconds: its record, checked against the processes that live."""
    return live_status(read_record(site.record_path), site)


def live_status(record: SiteRecord | None, site: LocalSite) -> SiteStatus:
    """Return what is true now: the record, corrected by which of its processes still live."""
    if record is None:
        return SiteStatus(site.name, logs=str(site.logs))
    told = record.status
    pids = {name: process.pid for name, process in record.processes.items() if process.alive()}
    if not pids:
        return SiteStatus(site.name, error=told.error, logs=told.logs)
    parts = dict(told.parts)
    for part in ("ray", "router"):
        if parts.get(part) == "up" and part not in pids:
            parts[part] = "down"
    if parts.get("ray") == "down":
        parts = {name: "down" if name in {"serve", "agents"} and old != "none" else old for name, old in parts.items()}
    parts["supervisor"] = "up" if "supervisor" in pids else "down"
    return replace(told, state=_summary(parts), pids=pids, parts=cast("dict[str, PartState]", parts))


def _summary(parts: Mapping[str, str]) -> Literal["up", "down", "starting", "degraded"]:
    states = set(parts.values()) - {"none"}
    if states == {"up"}:
        return "up"
    return "starting" if states <= {"up", "starting"} else "degraded"


def open_runtime(path: Path) -> Path:
    """Make the private runtime folder, or take the one we made before.

    Raises:
        InfraError: Somebody else owns it, or it is no folder.
    """
    if len(str(path)) > _MAX_RUNTIME_PATH:
        raise InfraError(f"{path} is too long for Unix sockets", hint=f"at most {_MAX_RUNTIME_PATH} bytes")
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise InfraError(f"{path} is not our own folder", hint="remove it, or find out who made it") from None
        path.chmod(0o700)
    except OSError as error:
        raise InfraError(f"cannot make {path}: {error}", hint="the site needs a short private folder there") from error
    return path
