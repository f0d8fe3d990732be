"""Mirrors the moves of endpoints into MLflow, by the same road as executions: from a process of its own, again and again.

python -m orchestrator.app.rollout_projection PARENT_PID [ENVIRONMENT]     (started by promote, rollback and the rollout verbs)

Nothing here decides, and nothing waits for it: what MLflow does not take now is `pending`, and the next command, a `rollout
watch` or `ui` brings it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from orchestrator.app.wiring import Workplace, open_workplace
from orchestrator.core.digests import sha256_json, short
from orchestrator.core.errors import Conflict
from orchestrator.core.processes import ProcessIdentity
from orchestrator.ledger import Generation, Ledger, Owner

if TYPE_CHECKING:
    from orchestrator.tracking.rollout_snapshot import AliasSnapshot

State = Literal["off", "done", "pending"]

_LEASE_TTL_S: Final = 60.0
_BUDGET_S: Final = 10.0
_PERIOD_S: Final = 2.0
_BEHIND: Final = 10
"""Niceness: the picture waits for whoever serves or operates."""
_RECENT: Final = 50
_ENDED: Final = ("succeeded", "aborted")


def start(workplace: Workplace) -> None:
    """Start mirroring in the background, as long as this process lives and until everything is shown; returns at once."""
    if not workplace.tracking_uri:
        return
    folder = workplace.state / "projection"
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [str(os.getpid()), *([str(workplace.path.absolute())] if workplace.path else [])]
    with (folder / "rollouts.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.app.rollout_projection", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "ORCHESTRATE_FAULT": ""},
        )
    # From here and not by itself: its imports alone take as long as a rollback, and the next command may be one.
    os.setpriority(os.PRIO_PROCESS, process.pid, max(_BEHIND, os.getpriority(os.PRIO_PROCESS, 0)))


def projection_state(workplace: Workplace, ledger: Ledger, endpoint: str, generation: int | None = None) -> State:
    """Tell whether MLflow shows an endpoint as the ledger has it; of one generation, whether it shows that move's end.

    Reads the ledger alone: MLflow is not asked.
    """
    from orchestrator.app.rollout_snapshots import alias_snapshot, move_state

    if not workplace.tracking_uri:
        return "off"
    known = ledger.generations.list(endpoint)
    for each in known[-_RECENT:] if generation is None else [g for g in known if g.number == generation]:
        state = move_state(each, ledger.rollouts.get(endpoint, each.number))
        if ledger.projections.get(_move_mark(workplace, each)) != state:
            return "pending"
    if generation is None and known:
        wanted = alias_snapshot(ledger, endpoint, known, partial(_mirrored, ledger))
        if ledger.projections.get(_alias_mark(workplace, endpoint)) != _content(wanted):
            return "pending"
    return "done"


def project_endpoint(workplace: Workplace, ledger: Ledger, endpoint: str, *, force: bool = False) -> tuple[str, ...]:
    """Bring MLflow to what the ledger says of an endpoint; returns what is pending.

    Raises:
        Conflict: Another process is at it.
    """
    from orchestrator.app.rollout_snapshots import alias_snapshot, move_snapshot, move_state
    from orchestrator.tracking.projector import project_aliases, project_rollout

    to_move = partial(project_rollout, uri=workplace.tracking_uri, artifact_root=workplace.artifact_root)
    to_aliases = partial(project_aliases, uri=workplace.tracking_uri, artifact_root=workplace.artifact_root)
    mirrored = partial(_mirrored, ledger)
    pending: list[str] = []
    owner = Owner.here("projection")
    with ledger.leases.held(f"projection/endpoint/{endpoint}", owner, ttl_s=_LEASE_TTL_S) as lease:
        known = ledger.generations.list(endpoint)
        for each in known[-_RECENT:]:
            state = move_state(each, ledger.rollouts.get(endpoint, each.number))
            if state in _ENDED and ledger.projections.get(_move_mark(workplace, each)) == state:
                continue
            ledger.leases.renew(lease, ttl_s=_LEASE_TTL_S)
            shown = move_snapshot(ledger, each, known, mirrored)
            report = to_move(shown, ledger.projections, budget_s=_BUDGET_S, force=force)
            pending += report.pending
            if not report.done:
                return tuple(pending)
            ledger.projections.put(_move_mark(workplace, each), shown.state)
        if known:
            ledger.leases.renew(lease, ttl_s=_LEASE_TTL_S)
            aliases = alias_snapshot(ledger, endpoint, known, mirrored)
            if ledger.projections.get(_alias_mark(workplace, endpoint)) != _content(aliases):
                report = to_aliases(aliases, ledger.projections, budget_s=_BUDGET_S, force=force)
                pending += report.pending
                if report.done:
                    ledger.projections.put(_alias_mark(workplace, endpoint), _content(aliases))
    return tuple(pending)


def catch_up_rollouts(workplace: Workplace, ledger: Ledger, *, force: bool = False) -> dict[str, tuple[str, ...]]:
    """Mirror every endpoint that MLflow does not show as it is; returns what is pending, by endpoint.

    One that another process is mirroring is left to it.
    """
    pending: dict[str, tuple[str, ...]] = {}
    if not workplace.tracking_uri:
        return pending
    for endpoint in ledger.generations.endpoints():
        shown = projection_state(workplace, ledger, endpoint) == "done"
        if shown and ledger.rollouts.active(endpoint) is None:
            continue
        try:
            found = project_endpoint(workplace, ledger, endpoint, force=force)
        except Conflict:
            found = ("another process is mirroring it",)
        if found:
            pending[endpoint] = found
    return pending


def _content(aliases: AliasSnapshot) -> str:
    return sha256_json(aliases.content())


def _mirrored(ledger: Ledger, execution: str) -> bool:
    """Tell whether MLflow has all that it will ever get of an execution: it was shown, or is too old to be."""
    from orchestrator.app.projection import execution_mark

    if ledger.projections.get(execution_mark(execution)) is not None:
        return True
    return all(row.id != execution for row in ledger.executions.list(limit=_RECENT))


def _scope(workplace: Workplace) -> str:
    return short(sha256_json(workplace.tracking_uri))


def _move_mark(workplace: Workplace, generation: Generation) -> str:
    return f"orchestrate:projected:{_scope(workplace)}:rollout:{generation.endpoint}/{generation.number}"


def _alias_mark(workplace: Workplace, endpoint: str) -> str:
    return f"orchestrate:projected:{_scope(workplace)}:aliases:{endpoint}"


def mirror_all(workplace: Workplace, alive: Callable[[], bool], *, tell: Callable[[str], None] | None = None) -> None:
    """Mirror until the starter is gone, then once more; one process at a time does it."""
    from orchestrator.app.projection import catch_up

    with workplace.open_ledger() as ledger:
        said = ""
        while True:
            going = alive()
            catch_up(workplace, ledger)
            pending = catch_up_rollouts(workplace, ledger)
            text = json.dumps(pending) if pending else ""
            if tell is not None and text != said:
                tell(text or "all is shown")
            said = text
            if not going:
                return
            _sleep(alive)


def _sleep(alive: Callable[[], bool]) -> None:
    until = time.monotonic() + _PERIOD_S
    while time.monotonic() < until and alive():
        time.sleep(0.05)


def main(arguments: list[str]) -> None:
    """Mirror as long as the starter lives, and once after."""
    parent, *environment = arguments
    workplace = open_workplace(Path(environment[0]) if environment else None)
    starter = ProcessIdentity.of(int(parent))
    mirror_all(workplace, lambda: starter is not None and starter.alive(), tell=partial(print, flush=True))


if __name__ == "__main__":
    main(sys.argv[1:])
