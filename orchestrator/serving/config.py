"""Process settings: one JSON file each, checked without pydantic, because router and replica start without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar, cast

import orjson

from orchestrator.core.addresses import is_loopback
from orchestrator.core.errors import UsageError

_MAX_SOCKET_PATH: Final = 100
"""Linux allows 107 bytes in sockaddr_un."""


class Settings(Protocol):
    """What the settings of every process have."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def parent_pid(self) -> int:
        """When not 0, the process dies with this parent."""
        ...

    def check(self) -> None:
        """Raise `UsageError` when a value cannot work."""
        ...


AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Settings of the router.

    Attributes:
        host: Address to listen on; one that others can reach needs `tokens_file` or `tls_client_ca`.
        port: 0 takes a free one, or the one of the last start where that is still free.
        admin: Unix socket of the admin interface.
        link: Unix socket that agents and replicas dial.
        state: Folder for `router.json`, `table.json` and `port`.
        request_timeout_s: From the last byte of a request to its answer; then 504.
        queue_limit: Waiting requests per generation; then 429.
        replica_grace_s: How long requests wait for a replica to come back before 503.
        parent_pid: When not 0, the router dies with this parent.
        compat: `triton` for clients that insist on its name and its habits, else `none`.
        grpc_port: Port of gRPC: 0 as for `port`, and no gRPC where grpcio is not installed; -1 never.
        tokens_file: Bearer tokens, see `auth`; without one nobody needs a token.
        tls_cert: Certificate chain (PEM) of the public ports; without one they speak plain text.
        tls_key: Its private key, PEM.
        tls_client_ca: CAs (PEM) one of which must have signed the certificate that a client then must show.
        access_log_sample: Share of the requests that are written to the access log.
        otlp_endpoint: Address of an OpenTelemetry collector; empty for no spans.
        metrics_port: Loopback port of Prometheus' `GET /metrics`; 0 takes a free one, -1 is none.
        router: Its number among the routers of the site; 0 leads.
        peers: For router 0: admin sockets of the others, router 1 first.
        lead_table: For the others: where router 0 keeps its table.
        link_port: TCP port of the link for other hosts, on `host`; 0 is none.
        link_token_file: The token that those who dial it must know.
    """

    host: str
    port: int
    admin: str
    link: str
    state: str
    request_timeout_s: float = 30.0
    queue_limit: int = 1024
    replica_grace_s: float = 10.0
    parent_pid: int = 0
    grpc_port: int = 0
    compat: str = "none"
    tokens_file: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    access_log_sample: float = 0.0
    otlp_endpoint: str = ""
    metrics_port: int = -1
    router: int = 0
    peers: Sequence[str] = ()
    lead_table: str = ""
    link_port: int = 0
    link_token_file: str = ""

    @property
    def shared(self) -> bool:
        """Whether other routers listen on the same ports."""
        return bool(self.peers or self.lead_table)

    def check(self) -> None:
        """Raise `UsageError` when a value cannot work."""
        self._check_guarded()
        check_socket(self.admin)
        check_socket(self.link)
        if self.compat not in ("none", "triton"):
            raise UsageError(f"bad router settings: compat {self.compat!r}", hint="use none or triton")
        ports_fit = 0 <= self.port < 65536 and min(self.grpc_port, self.metrics_port) >= -1
        ports_fit = ports_fit and max(self.grpc_port, self.metrics_port) < 65536
        if not ports_fit or self.request_timeout_s <= 0 or self.queue_limit < 1:
            raise UsageError(
                f"bad router settings: port {self.port}, grpc_port {self.grpc_port}, queue_limit {self.queue_limit}"
            )

        if bool(self.router) != bool(self.lead_table) or (self.router and (self.peers or not self.port)):
            raise UsageError(
                f"bad router settings: router {self.router}, lead_table {self.lead_table!r}, peers {list(self.peers)}",
                hint="router 0 has peers; every other one has lead_table and a port",
            )

    def _check_link(self) -> None:
        if bool(self.link_port) != bool(self.link_token_file) or not 0 <= self.link_port < 65536:
            raise UsageError(
                f"bad router settings: link_port {self.link_port} needs link_token_file, and the other way"
            )
        if self.link_port and not self.tls_cert and not is_loopback(self.host):
            raise UsageError(
                f"the router refuses links from other hosts on {self.host!r} in plain text",
                hint="set tls_cert and tls_key",
            )

    def _check_guarded(self) -> None:
        self._check_link()
        if bool(self.tls_cert) != bool(self.tls_key) or (self.tls_client_ca and not self.tls_cert):
            raise UsageError(
                f"TLS needs a certificate and its key: tls_cert {self.tls_cert!r}, tls_key {self.tls_key!r}",
                hint="name both, tls_client_ca besides them where clients must show a certificate",
            )
        if not is_loopback(self.host) and not self.tokens_file and not self.tls_client_ca:
            raise UsageError(
                f"the router refuses to listen on {self.host!r}: nothing says who may ask",
                hint="set tokens_file (`orchestrate endpoint token NAME` writes it) or tls.client_ca, or use 127.0.0.1",
            )


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Settings of an agent.

    Attributes:
        pool: The pool its slot belongs to.
        link: The router's link socket.
        state: Folder for slot locks, replica settings and replica logs.
        device: What the slot is; `cpu (rehearsal)` where there is no NPU.
        slots: Slots of the pool on this machine; the agent takes the first free number.
        tools: Programs that runtimes need, by name.
        socs: SoC of each slot, by its number; a slot that is not there takes whatever its device is compiled for.
        models: `always` holds every model of the pool, `lazy` loads one when it is first asked for.
        memory_bytes: What the slot's models may take together; 0 = what is free.
        stall_s: See `ReplicaSettings`.
        load_s: See `ReplicaSettings`.
        quarantine_s: Pause of a replica whose device failed several times in a row.
        parent_pid: When not 0, the agent dies with this parent.
        links: Link sockets of the site's other routers, for the replicas and for what the agent reports; it is placed by `link`.
    """

    pool: str
    link: str
    state: str
    device: str
    slots: int = 1
    parent_pid: int = 0
    tools: Mapping[str, str] = field(default_factory=dict[str, str])
    socs: Mapping[str, str] = field(default_factory=dict[str, str])
    models: str = "always"
    memory_bytes: int = 0
    stall_s: float = 60.0
    load_s: float = 1800.0
    quarantine_s: float = 60.0
    links: Sequence[str] = ()

    def check(self) -> None:
        """Raise `UsageError` when a value cannot work."""
        for path in (self.link, *self.links):
            check_socket(path)
        if self.slots < 1 or not self.pool or not self.device:
            raise UsageError(f"bad agent settings: pool {self.pool!r}, device {self.device!r}, slots {self.slots}")
        if self.models not in ("always", "lazy") or self.memory_bytes < 0:
            raise UsageError(f"bad agent settings: models {self.models!r}, memory_bytes {self.memory_bytes}")


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """Settings of a replica; written by the agent.

    Attributes:
        replica: Its name, unique on the site.
        link: The router's link socket.
        links: Those of the site's other routers.
        endpoint: The endpoint it serves.
        bundle: The bundle's digest.
        path: The bundle's folder.
        runtime: A name of `orchestrator.serving.runtimes.api`.
        device: What the session must say it runs on.
        variant: Digest of the variant to load in place of the bundle's graph; empty without one.
        variant_path: The variant's folder.
        work: Folder of this replica alone, for what its libraries leave behind; empty makes a temporary one.
        tools: Programs that runtimes need, by name.
        stage: What of the bundle this replica computes: its model, or its code before or after it.
        stall_s: A batch that takes longer means a device that will not answer; the kernel then ends the process.
        load_s: Likewise for loading, warm-up and self-check together.
        parent_pid: When not 0, the replica dies with this parent.
        status_fd: When not 0, a pipe to the agent: one JSON object a line.
        slot: The device slot that it shares with other replicas; empty where it shares with nobody.
        load: `lazy` where it may be unloaded and loaded again as requests come.
    """

    replica: str
    link: str
    endpoint: str
    bundle: str
    path: str
    runtime: str
    device: str
    variant: str = ""
    variant_path: str = ""
    stage: str = "model"
    work: str = ""
    tools: Mapping[str, str] = field(default_factory=dict[str, str])
    stall_s: float = 60.0
    load_s: float = 1800.0
    parent_pid: int = 0
    status_fd: int = 0
    links: Sequence[str] = ()
    slot: str = ""
    load: str = "always"

    def check(self) -> None:
        """Raise `UsageError` when a value cannot work."""
        for path in (self.link, *self.links):
            check_socket(path)
        if self.stall_s <= 0 or self.load_s <= 0:
            raise UsageError(f"bad replica settings: stall_s {self.stall_s}, load_s {self.load_s}")
        if self.stage not in ("preprocess", "model", "postprocess"):
            raise UsageError(f"bad replica settings: stage {self.stage!r}")


def read_settings(kind: type[AnySettings], path: Path) -> AnySettings:
    """Read and check a settings file.

    Raises:
        UsageError: Unreadable, or a key is missing, unknown or of the wrong type.
    """
    try:
        data: Any = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise UsageError(f"cannot read settings: {error}", place=str(path)) from error
    return parse_settings(kind, data, str(path))


def parse_settings(kind: type[AnySettings], data: object, place: str) -> AnySettings:
    """Check settings that are parsed JSON already.

    Raises:
        UsageError: A key is missing, unknown or of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if not isinstance(data, dict):
        raise UsageError("settings must be one JSON object", place=place)
    values = cast("dict[str, Any]", data)
    missing = dataclasses.MISSING
    required = {name for name, f in fields.items() if f.default is missing and f.default_factory is missing}
    if not required <= set(values) <= set(fields):
        raise UsageError(
            f"settings have {sorted(values)}, need {sorted(required)}, may have {sorted(fields)}", place=place
        )
    for name, value in values.items():
        if not _fits(value, str(fields[name].type)):
            raise UsageError(f"{name}: {value!r} is no {fields[name].type}", place=place)
    settings = kind(**values)
    settings.check()
    return settings


def _fits(value: object, kind: str) -> bool:
    if kind == "Mapping[str, str]":
        rows = cast("dict[object, object]", value) if isinstance(value, dict) else {None: None}
        return all(isinstance(text, str) for pair in rows.items() for text in pair)
    if kind == "Sequence[str]":
        return isinstance(value, list | tuple) and all(isinstance(text, str) for text in cast("list[object]", value))
    types = {"str": (str,), "int": (int,), "float": (int, float)}[kind]
    return isinstance(value, types) and not isinstance(value, bool)


def check_socket(path: str) -> None:
    """Raise `UsageError` when no Unix socket can have this path."""
    if not path or len(path.encode()) > _MAX_SOCKET_PATH:
        raise UsageError(f"socket path {path!r} must have 1 to {_MAX_SOCKET_PATH} bytes", hint="use a short folder")
