"""TLS of the public ports. With a client CA, a client without a certificate of it does not get as far as HTTP."""

from __future__ import annotations

import logging
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from orchestrator.core.errors import UsageError

_log: Final = logging.getLogger(__name__)
HANDSHAKE_S: Final = 10.0


class Tls:
    """The certificate files, and what HTTP and gRPC make of them.

    Args:
        cert: Certificate chain, PEM.
        key: Private key, PEM, without a passphrase.
        client_ca: CAs whose clients are let in; empty lets in every client.

    Raises:
        UsageError: A file cannot be used.
    """

    def __init__(self, cert: str, key: str, client_ca: str = "") -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._state = self._files()
        self.context = self._load(self._fresh())
        self._good = self._read()

    def _fresh(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        if self._client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        names = (self._cert, self._key)
        try:
            for name in filter(None, (*names, self._client_ca)):
                if not stat.S_ISREG(Path(name).stat().st_mode):
                    raise ValueError(f"{name} is no regular file")  # a pipe would hold the router
            # A passphrase would be asked for on a terminal that is not there.
            context.load_cert_chain(self._cert, self._key, password=lambda: b"")
            if self._client_ca:
                names = (self._client_ca,)
                context.load_verify_locations(self._client_ca)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot use {' and '.join(names)} for TLS: {error}",
                hint="PEM files, the key without a passphrase and belonging to the certificate",
            ) from error
        return context

    def refresh(self, *, force: bool = False) -> None:
        """Read the files again where they have changed: new connections get the new certificate, and who shows a certificate of
        a CA that was removed is refused, sessions that it would resume included. Who is connected stays.
        """
        state = self._files()
        if state == self._state and not force:
            return
        self._state = state
        try:
            # Half of a change must not harm what works.
            self.context, self._good = self._load(self._fresh()), self._read()
        except (UsageError, OSError) as error:
            _log.error("TLS stays as it was: %s", error)
        else:
            _log.info("TLS uses %s as it is now", self._cert)

    def grpc_credentials(self, grpc: Any) -> Any:
        """Return gRPC's credentials; every handshake takes the files as they were last found good."""
        seen: list[Any] = [None, None]

        def fetch() -> Any:
            if seen[0] is not self._good:
                seen[:] = [self._good, self._configuration(grpc)]
            return seen[1]

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(grpc), fetch, require_client_authentication=bool(self._client_ca)
        )

    def _configuration(self, grpc: Any) -> Any:
        key, cert, roots = self._good
        return grpc.ssl_server_certificate_configuration([(key, cert)], roots)

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        """Return key, certificate and client CAs as gRPC wants them; they have just been found good."""
        roots = Path(self._client_ca).read_bytes() if self._client_ca else None
        return Path(self._key).read_bytes(), Path(self._cert).read_bytes(), roots

    def _files(self) -> Sequence[object]:
        return [_stamp(path) for path in (self._cert, self._key, self._client_ca) if path]


def _stamp(path: str) -> object:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
