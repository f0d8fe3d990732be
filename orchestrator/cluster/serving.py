"""How a local site answers clients: the environment's block `serving`, as the supervisor hands it to its routers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.environment.serving import Serving


@dataclass(frozen=True, slots=True)
class LocalServing:
    """Settings of a site's routers; see `RouterSettings` for those of the same name.

    Attributes:
        routers: Router processes that share the ports.
    """

    host: str = "127.0.0.1"
    port: int = 0
    grpc_port: int = 0
    routers: int = 1
    tokens_file: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    link_port: int = 0
    link_token_file: str = ""
    queue_limit: int = 1024
    request_timeout_s: float = 30.0
    compat: str = "none"
    access_log_sample: float = 0.0
    otlp_endpoint: str = ""
    metrics_port: int = -1

    def check(self) -> None:
        """Look whether routers could start with the tokens and certificates.

        Raises:
            UsageError: They could not.
        """
        from orchestrator.serving.link.remote import read_token
        from orchestrator.serving.router.auth import read_tokens
        from orchestrator.serving.router.tls import Tls

        if self.tokens_file:
            read_tokens(Path(self.tokens_file))
        if self.link_token_file:
            read_token(Path(self.link_token_file))
        if self.tls_cert:
            Tls(self.tls_cert, self.tls_key, self.tls_client_ca)

    def router_json(self) -> dict[str, Any]:
        """Return what every router's settings have in common."""
        found = asdict(self)
        del found["routers"]
        return found


def local_serving(serving: Serving) -> LocalServing:
    """Take over the environment's block; its relative paths count from the current folder."""
    tls = serving.tls
    return LocalServing(
        host=serving.host,
        port=serving.port,
        grpc_port=serving.grpc_port,
        routers=serving.routers,
        tokens_file=_absolute(serving.tokens_file),
        tls_cert=_absolute(tls.cert if tls else None),
        tls_key=_absolute(tls.key if tls else None),
        tls_client_ca=_absolute(tls.client_ca if tls else None),
        link_port=serving.link.port if serving.link else 0,
        link_token_file=_absolute(serving.link.token_file if serving.link else None),
        queue_limit=serving.queue_limit,
        request_timeout_s=serving.request_timeout,
        compat=serving.compat,
        access_log_sample=serving.access_log.sample,
        otlp_endpoint=serving.otlp_endpoint or "",
        metrics_port=serving.metrics_port,
    )


def _absolute(path: str | None) -> str:
    return str(Path(path).expanduser().absolute()) if path else ""
