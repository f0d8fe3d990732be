"""Start the console: who may reach it, and the server."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn

from orchestrator.app.tokens import open_identities
from orchestrator.app.wiring import Workplace
from orchestrator.console.actions import Actions
from orchestrator.console.gather import Gather
from orchestrator.console.patience import MOST_CONNECTIONS, PatientProtocol
from orchestrator.console.server import Console, Door
from orchestrator.console.sessions import Sessions
from orchestrator.console.traffic import Sites
from orchestrator.core.errors import InfraError, UsageError
from orchestrator.rollout.identity import Identities

_GRACE_S: Final = 2
_ANY: Final = ("0.0.0.0", "::")  # noqa: S104 (compared with, not bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleSettings:
    """How the console is started.

    Attributes:
        port: 0 = any free one.
        token_file: Who may sign in; None = the `approvers` of `site`.
        site: Empty = the first one.
        tls: Certificate chain and key; both or neither.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token_file: Path | None = None
    site: str = ""
    tls: tuple[Path | None, Path | None] = (None, None)


def run_console(workplace: Workplace, settings: ConsoleSettings, announce: Callable[[str, list[str]], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        workplace: Whose endpoints.
        settings: How.
        announce: Told the address, and what the operator should know, once the console listens.

    Raises:
        UsageError: Others could reach it and nobody has a token; or a file cannot be used.
        InfraError: The address cannot be listened on.
    """
    with open_console(workplace, settings) as (server, listener, url, warnings):
        announce(url, warnings)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn hands the signal on after an orderly end
            server.run(sockets=[listener])


@contextlib.contextmanager
def open_console(
    workplace: Workplace, settings: ConsoleSettings
) -> Generator[tuple[uvicorn.Server, socket.socket, str, list[str]]]:
    """Listen; returns the server that is not started yet, its socket, its address and what to warn of."""
    identities = _identities(workplace, settings)
    loopback, secure = is_loopback(settings.host), _secure(settings)
    if not loopback and identities is None:
        raise UsageError(
            f"others can reach {settings.host}, and nobody has a token: the console does not start",
            hint="name a file with --token-file, or set sites.<site>.approvers (`orchestrate rollout token` writes it)",
        )
    with workplace.open_ledger() as ledger, _listen(settings) as listener:
        door = Door(port=listener.getsockname()[1], loopback=loopback, secure=secure)
        gather = Gather(workplace, ledger, Sites(workplace))
        app = Console(gather, Actions(workplace, ledger), Sessions(identities), door).app()
        cert, key = settings.tls
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            http=PatientProtocol,
            limit_concurrency=MOST_CONNECTIONS + 1,  # who is one too many is not let in at all
            timeout_graceful_shutdown=_GRACE_S,
            ssl_certfile=None if cert is None else str(cert),
            ssl_keyfile=None if key is None else str(key),
        )
        try:
            config.load()
        except OSError as error:  # ssl.SSLError is one
            raise UsageError(f"TLS cannot be served: {error}", hint="name a PEM chain and the key that fits") from error
        yield uvicorn.Server(config), listener, _url(settings.host, door), _warnings(door, identities)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _identities(workplace: Workplace, settings: ConsoleSettings) -> Identities | None:
    if settings.token_file is not None:
        return Identities(settings.token_file.absolute())
    return open_identities(workplace, settings.site)


def _secure(settings: ConsoleSettings) -> bool:
    cert, key = settings.tls
    if (cert is None) != (key is None):
        raise UsageError("TLS needs a certificate and its key", hint="give both --tls-cert and --tls-key")
    for path in (cert, key):
        if path is not None and not path.is_file():
            raise UsageError(f"{path} is no file", hint="name a PEM file")
    return cert is not None


@contextlib.contextmanager
def _listen(settings: ConsoleSettings) -> Generator[socket.socket]:
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        raise InfraError(f"cannot listen on {place}: {error}", hint="choose another --port or --host") from error
    with listener:
        yield listener


def _url(host: str, door: Door) -> str:
    host = socket.gethostname() if host in _ANY else host  # an address that a browser can open
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if door.secure else 'http'}://{shown}:{door.port}/"


def _warnings(door: Door, identities: Identities | None) -> list[str]:
    found: list[str] = []
    if identities is None:
        found.append("read only: nobody has a token (--token-file, or sites.<site>.approvers in the environment)")
    if not door.loopback and not door.secure:
        found.append(
            "tokens and cookies cross the network in clear: give --tls-cert and --tls-key, or put TLS in front"
        )
    return found
