"""What a request of an endpoint with a split is counted under: the generation, how it came to it, and the canary's weight then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Traffic = Literal["weighted", "sticky", "header", "probe", "version", "mirror"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison; all requests that were dealt alike share one.

    Attributes:
        generation: Which the requests were dealt to.
        traffic: How they came to it.
        weight: The canary's weight in percent when they were dealt.
    """

    endpoint: str
    generation: int
    traffic: Traffic
    weight: int
