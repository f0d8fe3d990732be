"""A small REST client for one Ray dashboard.

Ray's own client has no time-out and is redirected by RAY_ADDRESS; this one talks to the URL it was given, with that
cluster's token, and each call has a deadline. "Unreachable" never means that the cluster's work failed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import httpx

from orchestrator.cluster.capacity import NodeCapacity
from orchestrator.core.errors import InfraError, RetryClass, Unreachable
from orchestrator.core.redact import redact_text, redact_url, remember_secret

_MAX_ANSWER_BYTES: Final = 16 * 2**20
_CONNECT_S: Final = 3.0
_OLDEST: Final = (2, 52)
"""Token authentication came with Ray 2.52."""
_APPLICATIONS: Final = "/api/serve/applications/"


class TokenRefused(InfraError):
    """The cluster wants a token, or another one. Trying again does not help."""

    retry = RetryClass.NEVER


@dataclass(frozen=True, slots=True)
class RayVersion:
    """Who answers: a changed `session` means that the cluster was started anew and forgot everything."""

    ray: str
    session: str


class RayRest:
    """One cluster's dashboard.

    Args:
        url: `http://host:port`.
        token_path: File with the token, read at each call so that it can be replaced; None for a cluster without one.
        timeout_s: Deadline of each call as a whole.
    """

    def __init__(self, url: str, token_path: Path | None, *, timeout_s: float = 10.0) -> None:
        self.url = url.rstrip("/")
        self._token_path = token_path
        self._timeout_s = timeout_s
        # trust_env: no proxy and no .netrc decides where our token goes.
        self._http = httpx.Client(base_url=self.url, trust_env=False, follow_redirects=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def version(self, *, timeout_s: float | None = None) -> RayVersion:
        """Shake hands.

        Raises:
            Unreachable: No answer in time.
            TokenRefused: 401 or 403.
            InfraError: It is no Ray dashboard, or a Ray that is too old.
        """
        data = self._json("GET", "/api/version", timeout_s=timeout_s)
        found, session = str(data.get("ray_version", "")), str(data.get("session_name", ""))
        try:
            numbers = tuple(int(part) for part in found.split(".")[:2])
        except ValueError:
            numbers = ()
        if len(numbers) < 2 or not session:
            raise self._odd("/api/version", json.dumps(data))
        if numbers < _OLDEST:
            raise InfraError(f"{self.url} runs Ray {found}", hint=f"Ray {_OLDEST[0]}.{_OLDEST[1]} or newer is needed")
        return RayVersion(found, session)

    def nodes(self) -> list[NodeCapacity]:
        """Return the live nodes and all they have, free or not."""
        data = self._json("GET", "/api/v0/nodes?detail=1&limit=10000")
        try:
            rows = cast("list[dict[str, Any]]", data["data"]["result"]["result"])
            return [
                NodeCapacity(str(row["node_name"]), {str(k): float(v) for k, v in row["resources_total"].items()})
                for row in rows
                if row["state"] == "ALIVE"
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._odd("/api/v0/nodes", json.dumps(data)) from error

    def serve_applications(self) -> dict[str, Any]:
        """Return Serve's details, by application name."""
        found = self._json("GET", _APPLICATIONS).get("applications")
        if not isinstance(found, dict):
            raise self._odd(_APPLICATIONS, repr(found))
        return cast("dict[str, Any]", found)

    def put_serve_applications(self, document: Mapping[str, Any], *, timeout_s: float | None = None) -> None:
        """Replace Serve's whole desired state; applications that are left out are deleted."""
        self._call("PUT", _APPLICATIONS, document, timeout_s)

    def scale_deployment(self, application: str, deployment: str, replicas: int) -> None:
        """Change how many replicas a deployment has; Serve starts and ends them in its own time.

        Raises:
            InfraError: No such deployment, or its application was not put with `external_scaler_enabled`.
        """
        path = f"/api/v1/applications/{application}/deployments/{deployment}/scale"
        self._call("POST", path, {"target_num_replicas": replicas}, None)

    def delete_serve_applications(self) -> None:
        """Shut Serve down."""
        self._call("DELETE", _APPLICATIONS, None, None)

    def _json(self, method: str, path: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        body = self._call(method, path, None, timeout_s)
        try:
            data = json.loads(body)
        except ValueError as error:
            raise self._odd(path, body.decode(errors="replace")) from error
        if not isinstance(data, dict):
            raise self._odd(path, body.decode(errors="replace"))
        return cast("dict[str, Any]", data)

    def _call(self, method: str, path: str, document: Mapping[str, Any] | None, timeout_s: float | None) -> bytes:
        limit_s = timeout_s or self._timeout_s
        deadline = time.monotonic() + limit_s
        timeout = httpx.Timeout(limit_s, connect=min(_CONNECT_S, limit_s))
        request = self._http.build_request(method, path, json=document, headers=self._headers(), timeout=timeout)
        try:
            response = self._http.send(request, stream=True)
            try:
                body = self._read(response, deadline)
            finally:
                response.close()
        except httpx.ConnectError as error:
            raise Unreachable(
                f"cannot connect to {redact_url(self.url)} for {method} {path}: {error}",
                hint="is the cluster up, and can this machine reach it?",
            ) from error
        except httpx.HTTPError as error:
            raise Unreachable(
                f"{redact_url(self.url)} did not answer {method} {path} in {limit_s:g} s ({type(error).__name__})",
                hint="is the cluster up, and can this machine reach it?",
            ) from error
        self._check(response.status_code, method, path, body)
        return body

    def _read(self, response: httpx.Response, deadline: float) -> bytes:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MAX_ANSWER_BYTES:
                raise InfraError(f"{redact_url(self.url)} answers with more than {_MAX_ANSWER_BYTES} bytes")
            if time.monotonic() > deadline:
                # A server that drips bytes never trips the time-out of a single read.
                raise httpx.ReadTimeout("deadline of the whole call is over")
        return bytes(body)

    def _check(self, status: int, method: str, path: str, body: bytes) -> None:
        where = redact_url(self.url)
        if status in {401, 403}:
            told = "no token" if self._token_path is None else f"the token in {self._token_path}"
            raise TokenRefused(
                f"{where} refuses {told} ({status} on {method} {path})",
                hint="name the file that holds this cluster's token (`ray get-auth-token` on its head prints it)",
            )
        if status >= 300:
            text = redact_text(body[:500].decode(errors="replace"))
            raise InfraError(f"{where} answers {status} to {method} {path}: {text}", details={"status": status})

    def _headers(self) -> dict[str, str]:
        if self._token_path is None:
            return {}
        try:
            token = self._token_path.read_text().strip()
        except OSError as error:
            raise TokenRefused(
                f"cannot read the token of {redact_url(self.url)}: {error}", hint="the file must be readable by you"
            ) from error
        remember_secret(token)
        return {"Authorization": f"Bearer {token}"}

    def _odd(self, path: str, text: str) -> InfraError:
        return InfraError(
            f"{redact_url(self.url)}{path} does not answer as a Ray dashboard does: {redact_text(text[:200])}",
            hint="is this the dashboard's address?",
        )
