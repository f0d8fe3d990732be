"""Replay of golden samples to both generations while a rollout runs, so that a quiet endpoint can be judged.

The routers count them apart from users' requests, and the evidence says which part of it is synthetic.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from orchestrator.core.errors import OrchestratorError
from orchestrator.ledger import Generation
from orchestrator.rollout.site import Site

if TYPE_CHECKING:
    from orchestrator.rollout.smoke import Tensors

_IDLE_S: Final = 0.05


class Prober:
    """A thread that asks both generations at a rate while `active` is set; a `with` block bounds its life.

    Args:
        site: Whose router is asked, past the weights.
        generations: Whom to ask.
        rate: Requests per second to each; 0 = none at all.
    """

    def __init__(self, site: Site, generations: Sequence[Generation], rate: float) -> None:
        self.active = False
        self._site, self._generations, self._rate = site, tuple(generations), rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probes", daemon=True)

    def __enter__(self) -> Self:
        if self._rate > 0:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(1.0)  # a request that hangs holds nobody up

    def _run(self) -> None:
        turns = [(generation, _samples(generation)) for generation in self._generations]
        due = time.monotonic()
        while not self._over.is_set():
            if not self.active:
                self._over.wait(_IDLE_S)
                due = time.monotonic()
                continue
            for generation, samples in turns:
                self._ask(generation, samples)
            due = max(due + 1 / self._rate, time.monotonic() - 1.0)  # late ones are not made up for in one burst
            self._over.wait(max(0.0, due - time.monotonic()))

    def _ask(self, generation: Generation, samples: Iterator[Tensors]) -> None:
        try:
            inputs = next(samples, None)  # none are left where the file could not be read
            if inputs is not None:
                self._site.infer(generation.endpoint, generation.number, inputs)
        except OrchestratorError:
            return  # what a router has answered it has counted; the judge decides what it means


def _samples(generation: Generation) -> Iterator[Tensors]:
    """Yield the bundle's golden samples, over and over."""
    from orchestrator.rollout.smoke import golden_requests

    requests = golden_requests(generation)
    while True:
        yield from requests
