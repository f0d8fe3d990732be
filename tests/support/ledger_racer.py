"""One of several processes that race for the same lease or generation. argv: url, what, name, rounds. Prints JSON."""

from __future__ import annotations

import json
import sys
import time

from orchestrator.core.errors import Conflict
from orchestrator.ledger import GenerationState, Ledger, Owner
from support.ledger_samples import request


def race_leases(ledger: Ledger, name: str, rounds: int) -> list[int]:
    tokens: list[int] = []
    for _ in range(rounds):
        lease = ledger.leases.acquire("shared", Owner.here(name), ttl_s=60, wait_s=60)
        tokens.append(lease.token)
        ledger.projections.put("inside", name)  # a second holder at the same time would be seen here
        time.sleep(0.005)
        assert ledger.projections.get("inside") == name
        ledger.leases.release(lease)
    return tokens


def race_generations(ledger: Ledger, name: str, rounds: int) -> list[int]:
    """All expect the same live generation; who wins makes its own live, which starts the next round."""
    lease = ledger.leases.acquire(f"race/{name}", Owner.here(name))
    won: list[int] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        live = ledger.generations.live("digits")
        expected = live.number if live else 0
        if expected >= rounds:
            break
        try:
            made = ledger.generations.append(
                request(expected=expected, request_id=f"{name}/{expected}", actor=name), lease
            )
        except Conflict:
            time.sleep(0.002)
            continue
        won.append(made.number)
        ledger.generations.set_state("digits", made.number, GenerationState.LIVE, lease, actor=name)
        if live:
            ledger.generations.set_state("digits", live.number, GenerationState.RETIRED, lease, actor=name)
    return won


def main() -> None:
    url, what, name, rounds = sys.argv[1:]
    with Ledger.open(url) as ledger:
        work = race_leases if what == "leases" else race_generations
        print(json.dumps(work(ledger, name, int(rounds))))


if __name__ == "__main__":
    main()
