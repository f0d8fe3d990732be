"""One number from a Prometheus server: the only part of this folder that uses a network; the controller calls it, judges never do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, cast

import httpx

from orchestrator.core.errors import OrchestratorError
from orchestrator.rollout.evidence.rows import Sample, mapping

_LARGEST: Final = 1 << 20


class QueryError(OrchestratorError):
    """A Prometheus server could not be asked, or refused the query."""


def filled(query: str, names: Mapping[str, object]) -> str:
    """Return a query with `{{name}}` replaced by values; braces with other names stay."""
    for name, value in names.items():
        query = query.replace("{{" + name + "}}", str(value))
    return query


def query(address: str, query: str, timeout_s: float) -> float | None:
    """Ask for the value of a query now: the first element of a vector, or a scalar. None where the answer is empty.

    Args:
        address: http:// or https:// address of the server, a path prefix is kept.
        query: PromQL, already filled in.
        timeout_s: For the whole request.

    Raises:
        QueryError: No answer in time, an error, or an answer of another form.
    """
    url = f"{address.rstrip('/')}/api/v1/query"
    try:
        body = _get(url, {"query": query, "timeout": f"{timeout_s:g}s"}, timeout_s)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise QueryError(f"cannot ask {url}: {error or type(error).__name__}", hint="is the server up?") from error
    if body.get("status") != "success":
        raise QueryError(
            f"{url} refused the query: {str(body.get('error', body))[:300]}", hint="try it in Prometheus' own page"
        )
    data = mapping(body.get("data"))
    kind, result = data.get("resultType"), cast("Sequence[Any]", data.get("result") or ())
    try:
        if kind == "scalar":
            return float(result[1])
        if kind == "vector":
            return float(cast("Mapping[str, Any]", result[0])["value"][1]) if result else None
    except (LookupError, TypeError, ValueError) as error:
        raise QueryError(f"{url} answered with {str(result)[:100]}", hint="is it a Prometheus server?") from error
    raise QueryError(f"the query gives a {kind}, not one number", hint="use an instant vector or a scalar")


def _get(url: str, params: Mapping[str, str], timeout_s: float) -> Mapping[str, Any]:
    """Fetch in a thread of its own: httpx times each read alone, and who drips a byte a second would hold the controller for ever."""
    with httpx.Client(timeout=timeout_s) as client:  # closed at the deadline, which ends the thread at its next byte
        thread = ThreadPoolExecutor(max_workers=1)
        asked = thread.submit(_fetch, client, url, params)
        thread.shutdown(wait=False)
        try:
            status, content = asked.result(timeout_s)
        except TimeoutError:
            raise QueryError(f"{url} did not answer within {timeout_s:g} s", hint="is the server up?") from None
    if len(content) > _LARGEST:
        raise QueryError(f"{url} answers with over {_LARGEST} bytes", hint="aggregate in the query, to one number")
    try:
        return mapping(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise QueryError(f"{url} answered with status {status}, not with JSON", hint="check the address") from error


def _fetch(client: httpx.Client, url: str, params: Mapping[str, str]) -> tuple[int, bytes]:
    content = b""
    with client.stream("GET", url, params=dict(params)) as answer:
        for part in answer.iter_bytes():
            content += part
            if len(content) > _LARGEST:
                break
        return answer.status_code, content


def sample(metric: str, address: str, text: str, timeout_s: float, t: float) -> Sample:
    """Ask, and return a row for the judge whatever comes of it."""
    try:
        value = query(address, text, timeout_s)
    except QueryError as error:
        return Sample(t=t, metric=metric, error=error.message)
    return Sample(t=t, metric=metric, value=None if value is not None and math.isnan(value) else value)
