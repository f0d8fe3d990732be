"""The block `sites.<site>.serving`: where a site's routers listen, and for whom."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from orchestrator.recipe.fields import Duration, FilePath, Model, Number, Text, Whole

_OTLP: Final = re.compile(r"https?://[^\s/@]+\S*")


def _host(value: str) -> str:
    if value != "localhost":
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise _wrong(
                f"{value!r} is no address to listen on (write 127.0.0.1, 0.0.0.0, :: or one of this machine's)"
            ) from None
    return value


def _otlp(value: str) -> str:
    if not _OTLP.fullmatch(value):
        raise _wrong(f"{value!r} is no http:// or https:// address of a collector")
    return value


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("wrong_value", "{text}", {"text": message})


class Tls(Model):
    """TLS of the public HTTP and gRPC ports. Routers read the files again within a second of a change."""

    cert: FilePath = Field(description="Certificate chain, PEM.")
    key: FilePath = Field(description="Its private key, PEM, readable by the owner alone.")
    client_ca: FilePath | None = Field(
        None,
        description="Certificates of the CAs whose clients are let in, PEM; every client must then show one (mTLS).",
    )


class RemoteLink(Model):
    """The routers' link for agents and replicas on other hosts, in TLS where `host` is no loopback address."""

    port: Whole = Field(ge=1, le=65000, description="TCP port of router 0's link; router N has the Nth after it.")
    token_file: FilePath = Field(
        description="Secret of 32 or more characters that both ends know (`openssl rand -hex 32`); mode 0600."
    )


class AccessLog(Model):
    """The access log."""

    sample: Number = Field(0.0, ge=0, le=1, description="Share of the requests that are written down: 0 none, 1 all.")


class Serving(Model):
    """How a site answers clients."""

    host: Annotated[Text, AfterValidator(_host)] = Field(
        "127.0.0.1",
        description="Address to listen on; one that others can reach needs `tokens_file` or `tls.client_ca`.",
    )
    port: Whole = Field(0, ge=0, le=65535, description="Port of HTTP; 0 takes a free one and keeps it.")
    grpc_port: Whole = Field(0, ge=-1, le=65535, description="Port of gRPC; 0 takes a free one, -1 is no gRPC.")
    routers: Whole = Field(
        1, ge=1, le=64, description="Router processes that share the ports; one uses about one core."
    )
    tokens_file: FilePath | None = Field(
        None, description="Bearer tokens, one `name:sha256[:rate_per_s[:burst]]` a line; `endpoint token` writes it."
    )
    tls: Tls | None = Field(None, description="TLS; none when absent.")
    link: RemoteLink | None = Field(None, description="Link for other hosts; none when absent.")
    queue_limit: Whole = Field(1024, ge=1, description="Requests that may wait per generation and router; then 429.")
    request_timeout: Duration = Field(30.0, description="From a request's last byte to its answer; then 504.")
    compat: Literal["none", "triton"] = Field(
        "none",
        description="triton: the router names itself so and always answers gRPC in raw form, for clients that insist on it.",
    )
    access_log: AccessLog = Field(AccessLog(), description="The access log.")  # pyright: ignore[reportCallIssue]
    otlp_endpoint: Annotated[Text, AfterValidator(_otlp)] | None = Field(
        None, description="Where spans go: the http(s) address of an OpenTelemetry collector; no spans when absent."
    )
    metrics_port: Whole = Field(
        -1,
        ge=-1,
        le=65535,
        description="Loopback port of `GET /metrics` for Prometheus; 0 takes a free one, -1 is none.",
    )

    @property
    def guarded(self) -> bool:
        """Whether a client must show who it is."""
        return self.tokens_file is not None or (self.tls is not None and self.tls.client_ca is not None)
