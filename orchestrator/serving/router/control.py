"""Load and unload of models, as Triton's repository extension has them; the admin socket alone takes them."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import orjson

from orchestrator.serving.dispatch.lanes import Lane
from orchestrator.serving.errors import RequestError

if TYPE_CHECKING:
    from orchestrator.serving.router.process import Router

CONTROL: Final = re.compile(r"/v2/repository/models/([^/]*)/(load|unload)")
_POLL_S: Final = 0.02


async def control(router: Router, path: str) -> bytes:
    """Load a model of a lazy pool, or unload it, and return the answer's body once that is done.

    Raises:
        RequestError: 404 for an unknown model, 400 where its pool holds every model always, 503 where it cannot be loaded.
    """
    match = CONTROL.fullmatch(path)
    assert match is not None
    name, load = unquote(match[1]), match[2] == "load"
    route, _ = router.routes.find(name, None)
    lanes = [lane for lane in router.dispatcher.lanes if lane.endpoint == route.name and not lane.retired]
    deadline = time.monotonic() + router.settings.request_timeout_s
    for lane in lanes:
        if not load and lane.replicas:
            _unload(router, lane)
        while bool(lane.replicas) != load:
            if load:
                _load(router, lane)
            if time.monotonic() > deadline:
                text = f"model {name} is not {match[2]}ed after {router.settings.request_timeout_s:g} s"
                raise RequestError(text, status=503, kind="no_replica", retry_after_s=1)
            await asyncio.sleep(_POLL_S)
    return orjson.dumps({"name": name, "load": load})


def _load(router: Router, lane: Lane) -> None:
    waking = router.dispatcher.waking
    if waking is None or not waking.wake(lane, time.monotonic()):
        why = lane.trouble or "no agent runs it"
        raise RequestError(
            f"model {lane.endpoint} cannot be loaded: {why}", status=503, kind="no_replica", retry_after_s=1
        )


def _unload(router: Router, lane: Lane) -> None:
    waking = router.dispatcher.waking
    if waking is None or not waking.unload(lane):
        raise RequestError(
            f"model {lane.endpoint} stays loaded: its pool holds every model always (`models: lazy` changes that); "
            "`orchestrate endpoint delete` takes it out of service",
            kind="not_lazy",
        )
