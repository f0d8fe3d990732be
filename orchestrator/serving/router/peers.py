"""Several routers on one port: router 0 leads. It hands the table to the others, and speaks for all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import orjson

_log: Final = logging.getLogger(__name__)
_HAND_OVER_S: Final = 2.0
_ASK_S: Final = 0.5

Status = dict[str, Any]


class Peers:
    """The other routers, by their admin sockets; the first one is router 1."""

    def __init__(self, sockets: Sequence[str]) -> None:
        self._sockets = sockets

    def __bool__(self) -> bool:
        return bool(self._sockets)

    async def hand_over(self, table: bytes) -> None:
        """Give every router the table. One that does not answer has ended, and finds the table when it starts, or is held
        up, and finds it within a second of going on.
        """
        answers = await asyncio.gather(*(_call(path, b"PUT", "/peer/table", table) for path in self._sockets))
        for number, found in enumerate(answers, 1):
            if found is None or found[0] != 200:
                _log.warning("router %d has not taken the table yet: %s", number, found)

    async def ask(self, paths: Sequence[str]) -> dict[int, bytes]:
        """Return what the routers that live answer to `GET`, by their number.

        Args:
            paths: For each router, in order.
        """
        calls = (_call(socket, b"GET", path, b"") for socket, path in zip(self._sockets, paths, strict=True))
        answers = await asyncio.gather(*calls)
        return {number: found[1] for number, found in enumerate(answers, 1) if found is not None and found[0] == 200}

    async def ask_all(self, path: str) -> dict[int, bytes]:
        """Ask all the same."""
        return await self.ask([path] * len(self._sockets))

    def cursors(self, after: str) -> list[int]:
        """Return the event number to go on from of each router; a single one stands for all.

        Raises:
            ValueError: It is no cursor.
        """
        found = [max(0, int(text)) for text in after.split(".")]
        return found if len(found) == len(self._sockets) + 1 else found[:1] * (len(self._sockets) + 1)


async def _call(socket: str, method: bytes, path: str, body: bytes) -> tuple[int, bytes] | None:
    """Return status and body; None where nobody answers."""
    head = b"%b %b HTTP/1.1\r\nhost: router\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    try:
        async with asyncio.timeout(_HAND_OVER_S if body else _ASK_S):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(head % (method, path.encode(), len(body)) + body)
                answer = await reader.read(-1)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    first, _, rest = answer.partition(b"\r\n\r\n")
    words = first.split(b" ", 2)
    return (int(words[1]), rest) if len(words) > 1 and words[1].isdigit() else None


def merge_status(own: Status, others: Mapping[int, bytes]) -> Status:
    """Return the status of all routers as one: a generation is as ready as it is at the router where it is least so."""
    told = {0: own, **{number: cast("Status", orjson.loads(text)) for number, text in others.items()}}
    rows: dict[int, dict[tuple[str, int], Status]] = {
        number: {(row["endpoint"], row["generation"]): row for row in status["generations"]}
        for number, status in told.items()
    }
    generations: list[Status] = []
    for key, row in rows[0].items():
        same = [table.get(key, {"ready": 0, "queued": 0, "in_flight": 0}) for table in rows.values()]
        sums = {field: sum(other[field] for other in same) for field in ("queued", "in_flight")}
        generations.append({**row, **sums, "ready": min(other["ready"] for other in same)})
    replicas: dict[str, Status] = {}
    for number, status in told.items():
        for row in status["replicas"]:
            seen = replicas.get(row["replica"])
            if seen is None:
                replicas[row["replica"]] = {**row, "routers": [number]}
            else:
                seen["in_flight"] += row["in_flight"]
                seen["routers"].append(number)
    routers = [
        {"router": number, **{field: status[field] for field in ("pid", "boot", "version")}}
        for number, status in told.items()
    ]
    return {**own, "generations": generations, "replicas": list(replicas.values()), "routers": routers}


def merge_events(own: Status, others: Mapping[int, bytes], cursors: Sequence[int]) -> Status:
    """Return the events of all routers by the time of their end; `last` is where to go on, as `after` takes it."""
    told = {0: own, **{number: cast("Status", orjson.loads(text)) for number, text in others.items()}}
    events = [{**event, "router": number} for number, found in told.items() for event in found["events"]]
    lasts = [told[number]["last"] if number in told else old for number, old in enumerate(cursors)]
    return {
        "boot": ".".join(str(found["boot"]) for found in told.values()),
        "events": sorted(events, key=lambda event: event["t"]),
        "last": ".".join(map(str, lasts)),
        "lost": sum(found["lost"] for found in told.values()),
    }


def merge_evidence(own: Status, others: Mapping[int, bytes], told: Mapping[int, Status]) -> dict[int, Status]:
    """Return what each router has counted, side by side: sums would hide that one has begun anew.

    Args:
        own: The row of the router that leads.
        others: What the others have answered.
        told: What was told before: who does not answer in time is told as it was then, marked `stale`. Left out, it would seem to
            begin anew when it answers again.
    """
    rows = {row["router"]: row for text in others.values() for row in orjson.loads(text)["routers"]}
    missed = {number: {**row, "stale": True} for number, row in told.items() if number not in rows}
    return dict(sorted({**missed, **rows, own["router"]: {**own}}.items()))


def merge_metrics(own: bytes, others: Mapping[int, bytes]) -> bytes:
    """Return the expositions as one: each family once, with the rows of all routers; the label `router` keeps them apart."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for text in (own, *others.values()):
        current: tuple[list[str], list[str]] = families.setdefault("", ([], []))
        for line in text.decode().splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                current = families.setdefault(line.split(" ", 3)[2], ([], []))
                if line not in current[0]:
                    current[0].append(line)
            elif line:
                current[1].append(line)
    return "".join(f"{line}\n" for heads, rows in families.values() for line in (*heads, *rows)).encode()
