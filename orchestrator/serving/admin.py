"""A client of the router's admin socket. It imports nothing that is slow to import: a rollback must be quick."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast
from urllib.parse import quote

from orchestrator.core.errors import Conflict, ServingError, Unreachable
from orchestrator.serving.table import RoutingTable

_POLL_S: Final = 0.05


class RouterAdmin:
    """Talks to one router.

    Args:
        socket_path: The admin Unix socket.
        timeout_s: Of each call.
    """

    def __init__(self, socket_path: Path | str, timeout_s: float = 5.0) -> None:
        self._socket_path = str(socket_path)
        self._timeout_s = timeout_s

    def close(self) -> None:
        """End; nothing is held between calls."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put_table(self, table: RoutingTable | Mapping[str, object]) -> int:
        """Replace the routing table; returns its version.

        Raises:
            Conflict: The router has a newer table, or this version with another content.
            ServingError: The table is against the rules.
            Unreachable: No answer.
        """
        body = table.to_json() if isinstance(table, RoutingTable) else dict(table)
        return int(cast("int", self._call("PUT", "/table", body)["version"]))

    def table(self) -> RoutingTable:
        """Return the router's table."""
        return RoutingTable.from_json(self._call("GET", "/table"))

    def status(self) -> dict[str, Any]:
        """Return generations, replicas and agents."""
        return self._call("GET", "/status")

    def events(self, after: int | str = 0, limit: int = 1000) -> dict[str, Any]:
        """Return completion events: `{"boot", "events", "last", "lost"}`; `after` is 0, or the `last` of an earlier answer."""
        return self._call("GET", f"/events?after={after}&limit={limit}")

    def evidence(self, endpoint: str) -> dict[str, Any]:
        """Return what every router process has counted of an endpoint with a split; times are in buckets of `serving.observe.buckets`.

        Counts grow from the start of each process, whose `boot` then changes; they are never summed over processes, and one that
        does not answer in time is told as it was told before, and `stale`::

            {"routers": [{
                "router": 0, "boot": "1f0c…", "version": 7,                   # version of the table that it routes by
                "split": {"stable": 3, "canary": 4, …} | None,                # as in the table
                "arms": [{
                    "generation": 4, "traffic": "weighted", "weight": 10,     # weight: the canary's, when they were dealt
                    "requests": 120,                                          # ended well, or by a fault of the server
                    "errors": {"execution": 3}, "fell_back": 3,               # server's faults by kind; stable was asked instead
                    "shared": 1,                                              # of the errors, those that stable has failed as well
                    "refused": 2, "rejected": 1, "gone": 0,                   # for load (429, loading), client's mistakes, clients gone
                    "nonfinite": 0, "saturated": 0,                           # requests with such an output
                    "compute": {"1": {"140": 7}},                             # batches: rows -> bucket of device time in us -> count
                    "total": {"180": 7},                                      # good answers: bucket of arrival to answer in us -> count
                    "users": 40, "users_error": 1, "users_nonfinite": 0,      # sticky only: distinct clients
                    "users_shared": 1, "users_both": 0,                       # met a shared error; and one of the canary alone as well
                    "capped": False,                                          # clients were no longer counted: there were too many
                }],
                "failures_in_row": {"4": 0},                                  # server's faults since the last good answer: of users'
                                                                              # requests, or of probes and copies, whichever are more
                "pairs": {"canary": 4, "stable": 3, "n": 50, "agree": 50, "top1": 50, "flips": 0, "nonfinite": 0, "misfit": 0,
                          "max_abs": 1e-6, "dropped": 0, "failed": 0, "faster": 20, "slower": 30} | None,
                "classes": {"3": {"0": 12}, "4": {"0": 11, "7": 1}},          # of sampled answers: class with the highest score
            }]}

        Raises:
            ServingError: There is no such endpoint in the table.
            Unreachable: No answer.
        """
        return self._call("GET", f"/evidence?endpoint={quote(endpoint, safe='')}")

    def metrics(self) -> str:
        """Return the Prometheus text."""
        return self._send("GET", "/metrics").decode()

    def wait_ready(self, endpoint: str, generation: int, timeout_s: float) -> dict[str, Any]:
        """Wait until a replica serves the generation; returns its row of the status.

        Raises:
            ServingError: Its replica fails again and again (with the replica's own words), or time is up.
            Unreachable: No answer.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            row = _row(status, endpoint, generation)
            if row["ready"] or row.get("cold"):
                return row
            report = _report(status, row)
            if report is not None and report["state"] == "failed" and report["failures"] > 1:
                raise _failed(endpoint, generation, report)
            if time.monotonic() > deadline:
                raise _late(endpoint, generation, timeout_s, report, status)
            time.sleep(_POLL_S)

    def _call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self._send(method, path, body)))

    def _send(self, method: str, path: str, body: object = None) -> bytes:
        connection = _Connection(self._socket_path, self._timeout_s)
        try:
            headers = {} if body is None else {"content-type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
            response = connection.getresponse()
            status, answer = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                f"the router does not answer: {error}", place=self._socket_path, hint="orchestrate site status"
            ) from error
        finally:
            connection.close()
        if status == http.HTTPStatus.OK:
            return answer
        family = Conflict if status == http.HTTPStatus.CONFLICT else ServingError
        raise family(_reason(answer), place=self._socket_path, details={"status": status})


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket. The standard library's client: a rollback must be quick, and larger ones take long to import."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("router", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _reason(answer: bytes) -> str:
    text = answer.decode("utf-8", "replace")
    try:
        found: object = json.loads(text)
    except ValueError:
        return text
    return str(cast("dict[str, object]", found).get("error", text)) if isinstance(found, dict) else text


def _row(status: Mapping[str, Any], endpoint: str, generation: int) -> dict[str, Any]:
    for row in status["generations"]:
        if row["endpoint"] == endpoint and row["generation"] == generation:
            return row
    raise ServingError(f"endpoint {endpoint} has no generation {generation} in the routing table")


def _report(status: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any] | None:
    reports = [
        report
        for agent in status["agents"]
        for report in agent["replicas"]
        if all(report[key] == row[key] for key in ("endpoint", "bundle", "variant"))
    ]
    failed = [report for report in reports if report["state"] == "failed"]
    return failed[0] if failed else reports[0] if reports else None


def _failed(endpoint: str, generation: int, report: Mapping[str, Any]) -> ServingError:
    return ServingError(
        f"generation {generation} of {endpoint} cannot start: {report['error']}",
        hint="the log of the replica is in details.log_tail",
        details={"log_tail": report["log_tail"], "restarts": report["restarts"]},
    )


def _late(
    endpoint: str, generation: int, timeout_s: float, report: Mapping[str, Any] | None, status: Mapping[str, Any]
) -> ServingError:
    why = "no agent runs it" if report is None else f"its replica is {report['state']} {report['error']}".strip()
    pools = sorted({agent["pool"] for agent in status["agents"]})
    return ServingError(
        f"generation {generation} of {endpoint} is not ready after {timeout_s:g} s: {why}",
        hint=f"agents are connected for pools {pools}; orchestrate site status shows them",
        details={"log_tail": report["log_tail"]} if report else {},
    )
