"""What has become of the requests of one arm, and of one generation over all its arms. Plain counters: they only grow."""

from __future__ import annotations

from typing import Final, Literal

from orchestrator.serving.link.wire import NONFINITE, SATURATED
from orchestrator.serving.observe.arms import Arm
from orchestrator.serving.observe.buckets import bucket_of

SAMPLES_A_TICK: Final = 2
"""Of each generation: 40 a second, with a tick every 50 ms."""

Result = Literal["ok", "error", "refused", "rejected", "gone"]

_ERROR: Final = 4
_SEEN: Final = 8
_SHARED: Final = 16
_OWN: Final = 32
"""Beside NONFINITE, what has happened to a user: the server has failed a request, both generations have, one alone has."""


def result_of(status: int, kind: str) -> Result:
    """Return how a request has ended: `error` is the server's fault, `refused` the load's, `rejected` the client's."""
    if status == 200:
        return "ok"
    if status == 499:
        return "gone"
    if status == 429 or kind in ("loading", "overload"):
        return "refused"
    return "error" if status >= 500 else "rejected"


class Room:
    """How many clients may still be told apart, by all arms together."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


class Users:
    """Distinct clients, each counted once for each thing that has happened to it.

    Args:
        most: So many are told apart; then no new one is counted, and `capped` is set.
        room: Shared with others, likewise.

    Attributes:
        shared: Clients that have met a failure of both generations.
        both: Of these, clients that have met one of this generation alone as well.
    """

    __slots__ = ("_most", "_room", "_seen", "both", "capped", "count", "error", "nonfinite", "requests", "shared")

    def __init__(self, most: int, room: Room) -> None:
        self._most = most
        self._room = room
        self._seen: dict[int, int] = {}
        self.count = self.error = self.shared = self.both = self.nonfinite = self.requests = 0
        self.capped = False

    def __len__(self) -> int:
        """Return how many are held in memory."""
        return len(self._seen)

    def saw(self, user: int, *, error: bool, nonfinite: bool, shared: bool = False) -> None:
        """Count a request of a client."""
        self.requests += 1
        bits = _SEEN | NONFINITE * nonfinite
        if error:
            bits |= _ERROR | (_SHARED if shared else _OWN)
        old = self._seen.get(user)
        if old is None:
            if self.capped or len(self._seen) >= self._most or self._room.left <= 0:
                self.capped = True
                return
            self._room.left -= 1
            self.count += 1
            old = 0
        if fresh := bits & ~old:
            self._seen[user] = now = old | bits
            self.error += bool(fresh & _ERROR)
            self.nonfinite += bool(fresh & NONFINITE)
            self.shared += bool(fresh & _SHARED)
            self.both += bool(fresh & (_SHARED | _OWN)) and now & (_SHARED | _OWN) == _SHARED | _OWN

    def let_go(self) -> None:
        """Forget who they were, for their memory; the counts stay, and end."""
        self.capped = True
        self._room.left += len(self._seen)
        self._seen = {}


class GenerationCounts:
    """One generation, whatever the arm.

    Attributes:
        failed_in_row: Server's faults since the last good answer: of users' requests, and of those that we make ourselves. Good
            answers to golden samples must not hide that users get none. Requests that name their version count in neither: no
            other generation answers them as well, so that one client could end every rollout, or hide that a canary is bad. Nor do
            those that stable has failed as well.
        classes: Of sampled answers, by the class with the highest score.
        samples_left: Answers that may be sampled until the next tick.
    """

    __slots__ = ("classes", "failed_in_row", "samples_left")

    def __init__(self) -> None:
        self.failed_in_row = [0, 0]
        self.samples_left = SAMPLES_A_TICK
        self.classes: dict[int, int] = {}

    @property
    def failures_in_row(self) -> int:
        """The larger of the two."""
        return max(self.failed_in_row)


class ArmCounts:
    """One arm.

    Attributes:
        results: Requests by how they have ended.
        errors: Those that the server has failed, by kind.
        shared: Of a canary's errors, those that stable has failed as well.
        compute: Rows of a batch -> bucket of its device time -> batches.
        total: Bucket of the time from arrival to answer -> good answers.
        seen: Requests of users at the last look of who keeps the memory small.
    """

    __slots__ = (
        "_asked_for", "_last", "_ours", "arm", "compute", "errors", "fell_back", "nonfinite", "own", "results", "saturated", "seen", "shared", "total", "users",
    )  # fmt: skip

    def __init__(self, arm: Arm, own: GenerationCounts, users: Users) -> None:
        self.arm = arm
        self._ours = int(arm.traffic in ("probe", "mirror"))
        self._asked_for = arm.traffic == "version"
        self.own = own
        self.results: dict[Result, int] = dict.fromkeys(("ok", "error", "refused", "rejected", "gone"), 0)
        self.errors: dict[str, int] = {}
        self.fell_back = self.shared = self.nonfinite = self.saturated = self.seen = 0
        self.compute: dict[int, dict[int, int]] = {}
        self.total: dict[int, int] = {}
        self.users = users
        self._last: tuple[str, int, int] = ("", 0, 0)

    def answered(self, ran: tuple[str, int, int], total_s: float) -> None:
        """Count a good answer, and the batch that gave it: requests of one batch share its time, and are no samples of their own."""
        self.results["ok"] += 1
        if not self._asked_for:
            self.own.failed_in_row[self._ours] = 0
        bucket = bucket_of(total_s * 1e6)
        self.total[bucket] = self.total.get(bucket, 0) + 1
        if ran != self._last or ran[1] <= 1:
            self._last = ran
            _, rows, compute_us = ran
            bucket = bucket_of(compute_us)
            times = self.compute.get(rows)
            if times is None:
                times = self.compute[rows] = {}
            times[bucket] = times.get(bucket, 0) + 1

    def failed(self, status: int, kind: str, *, shared: bool = False) -> Result:
        """Count a request that has no good answer; of stable neither, where that is `shared`."""
        result = result_of(status, kind)
        self.results[result] += 1
        if result == "error":
            self.errors[kind] = self.errors.get(kind, 0) + 1
            self.shared += shared
            self.own.failed_in_row[self._ours] += not (self._asked_for or shared)
        return result

    def flagged(self, flags: int) -> None:
        """Count a request whose outputs are not sound."""
        if flags & NONFINITE:
            self.nonfinite += 1
        if flags & SATURATED:
            self.saturated += 1

    def to_json(self) -> dict[str, object]:
        """Return the form that `RouterAdmin.evidence` describes."""
        _, generation, traffic, weight = self.arm
        results = self.results
        found: dict[str, object] = {"generation": generation, "traffic": traffic, "weight": weight}
        found |= {
            "requests": results["ok"] + results["error"],
            "errors": dict(self.errors),
            "shared": self.shared,
            "fell_back": self.fell_back,
        }
        found |= {"refused": results["refused"], "rejected": results["rejected"], "gone": results["gone"]}
        found |= {"nonfinite": self.nonfinite, "saturated": self.saturated}
        found["compute"] = {str(rows): _texts(times) for rows, times in self.compute.items()}
        found["total"] = _texts(self.total)
        users = self.users
        found |= {"users": users.count, "users_error": users.error, "users_nonfinite": users.nonfinite}
        return found | {"users_shared": users.shared, "users_both": users.both, "capped": users.capped}


def _texts(counts: dict[int, int]) -> dict[str, int]:
    return {str(key): count for key, count in counts.items()}
