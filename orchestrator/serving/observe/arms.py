"""What a request of an endpoint with a split is counted under: the generation, how it came to it, and the canary's weight then."""

from __future__ import annotations

from typing import Literal, NamedTuple

Traffic = Literal["weighted", "sticky", "header", "probe", "version", "mirror", "fallback"]
"""`weighted`, `sticky` and `header`: users, as the split deals them. `version`: who asked for the generation by number. `probe`:
golden samples that the controller sends. `mirror`: copies that nobody sees. `fallback`: what the canary has failed, answered by
the stable generation; apart, because it is no fair sample of the requests.
"""


class Arm(NamedTuple):
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
