from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from orchestrator.core.errors import Conflict
from orchestrator.ledger import Holder, Lease, Ledger, Owner

FAR = replace(Owner.here("train on another machine"), machine="elsewhere", host="gpu-7", pid=1)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with Ledger.open(ledger_url) as opened:
        yield opened


def test_tokens_only_grow_across_release(ledger: Ledger) -> None:
    tokens: list[int] = []
    for _ in range(3):
        with ledger.leases.held("recipe/a", Owner.here()) as lease:
            tokens.append(lease.token)
    assert tokens == [1, 2, 3]
    assert ledger.leases.acquire("recipe/b", Owner.here()) == Lease("recipe/b", 1)
    assert ledger.leases.holder("recipe/a") is None


def test_a_held_lease_is_refused_with_who_and_why(ledger: Ledger) -> None:
    ledger.leases.acquire("recipe/a", FAR)
    with pytest.raises(
        Conflict, match=r"'recipe/a' is held by .*@gpu-7 \(pid 1\) for train on another machine"
    ) as caught:
        ledger.leases.acquire("recipe/a", Owner.here())
    assert caught.value.exit_code == 4
    holder = ledger.leases.holder("recipe/a")
    assert holder is not None
    assert (holder.owner, holder.token) == (FAR, 1)


def test_an_expired_lease_is_taken_over_and_the_old_holder_is_fenced(ledger: Ledger) -> None:
    old = ledger.leases.acquire("recipe/a", FAR, ttl_s=0.05)
    ledger.leases.check(old)
    time.sleep(0.06)
    ledger.leases.check(old)  # late, but nobody took over
    new = ledger.leases.acquire("recipe/a", Owner.here())
    assert new.token == old.token + 1
    for call in (ledger.leases.check, ledger.leases.renew):
        with pytest.raises(Conflict, match="we hold token 1, the ledger is at 2"):
            call(old)
    ledger.leases.release(old)  # must not take the new one away
    ledger.leases.check(new)


def test_renewing_keeps_it(ledger: Ledger) -> None:
    lease = ledger.leases.acquire("recipe/a", FAR, ttl_s=0.05)
    ledger.leases.renew(lease, ttl_s=60)
    time.sleep(0.06)
    with pytest.raises(Conflict):
        ledger.leases.acquire("recipe/a", Owner.here())


def test_a_released_lease_writes_no_more(ledger: Ledger) -> None:
    lease = ledger.leases.acquire("recipe/a", Owner.here())
    ledger.leases.release(lease)
    ledger.leases.release(lease)
    with pytest.raises(Conflict, match="nobody"):
        ledger.leases.check(lease)


def test_a_dead_process_of_this_machine_is_replaced_at_once(ledger: Ledger, ledger_url: str) -> None:
    script = (
        "import os, signal, sys\n"
        "from orchestrator.ledger import Ledger, Owner\n"
        "Ledger.open(sys.argv[1]).leases.acquire('recipe/a', Owner.here(), ttl_s=3600)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, ledger_url], timeout=60)
    assert ended.returncode == -9
    assert ledger.leases.holder("recipe/a") is not None
    assert ledger.leases.acquire("recipe/a", Owner.here()).token == 2


def test_a_reused_pid_is_not_taken_for_the_holder(ledger: Ledger) -> None:
    ghost = replace(Owner.here(), started_ticks=1)  # our pid, but it started at another time
    ledger.leases.acquire("recipe/a", ghost, ttl_s=3600)
    assert ledger.leases.acquire("recipe/a", Owner.here()).token == 2


def test_waiting_tells_each_holder_once_and_ends_when_it_is_released(ledger: Ledger) -> None:
    first = ledger.leases.acquire("recipe/a", FAR)
    seen: list[Holder] = []
    timer = threading.Timer(0.35, ledger.leases.release, [first])
    timer.start()
    lease = ledger.leases.acquire("recipe/a", Owner.here(), wait_s=20, on_wait=seen.append)
    timer.join()
    assert lease.token == 2
    assert [holder.token for holder in seen] == [1]


def test_waiting_ends_in_conflict_on_time(ledger: Ledger) -> None:
    ledger.leases.acquire("recipe/a", FAR)
    started = time.monotonic()
    with pytest.raises(Conflict):
        ledger.leases.acquire("recipe/a", Owner.here(), wait_s=0.3)
    assert 0.3 <= time.monotonic() - started < 3
