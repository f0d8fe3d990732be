"""The SoC catalogue: names as ATC takes them, family, memory, and what an fp16 overflow becomes.

Data: `data/soc.json`, which names its sources. A SoC that saturates turns inf into 65504 and NaN into 0, so that a broken
model answers plausible numbers; where no source tells the mode we assume that it saturates, because that check is stricter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Final, Literal

from orchestrator.core.errors import PlanError

FIRST_910B: Final = "Ascend910B"
"""A chip of the first generation, called like the family that came after it."""
_NEWER_910B: Final = ("Ascend910B1", "Ascend910B2", "Ascend910B3", "Ascend910B4")


@dataclass(frozen=True, slots=True)
class Soc:
    """One SoC.

    Attributes:
        name: As in `--soc_version`, e.g. `Ascend310P3`.
        family: Name shared by chips that run the same kernels, e.g. `Ascend310P`.
        npu_arch: Architecture number of the vendor's platform files; None where they give none.
        memory_gib: Device memory of the vendor's platform files; None where they give none.
        overflow: What fp16 overflow becomes; `unknown` where no source says.
        product: Cards and boxes known to carry it, for people.
    """

    name: str
    family: str
    npu_arch: str | None
    memory_gib: float | None
    overflow: Literal["saturates", "inf_nan", "unknown"]
    product: str

    @property
    def saturating(self) -> bool:
        """Whether overflow may hide as |x| = 65504 or as zeros; true also where the mode is unknown."""
        return self.overflow != "inf_nan"


def soc(name: str) -> Soc:
    """Return the SoC called `name`, exactly as ATC spells it.

    Raises:
        PlanError: There is none; the hint names the closest.
    """
    found = _catalogue().get(name)
    if found is not None:
        return found
    close = _close(name.lower())
    suggestion = f"did you mean {' or '.join(close)}?" if close else ""
    raise PlanError(
        f"unknown SoC {name[:80]!r}",
        hint=f"{suggestion} `npu-smi info` shows the name without `Ascend`".strip(),
        details={"known": list(_catalogue())},
    )


def _close(name: str) -> list[str]:
    """Return the names that a mistyped one (in lower case) may mean, the likeliest first."""
    by_lower = {known.lower(): known for known in _catalogue()}
    if name.removeprefix("ascend") in {"910", "910b"}:  # never the old chip first, which has the name of a newer family
        return [*_NEWER_910B, FIRST_910B]
    close = get_close_matches(name, by_lower, n=3, cutoff=0.5)
    if f"ascend{name}" in by_lower:  # npu-smi prints names without the prefix
        close = [f"ascend{name}", *[item for item in close if item != f"ascend{name}"]]
    return [by_lower[item] for item in sorted(close, key=lambda item: by_lower[item] == FIRST_910B)]


def caution(name: str | None) -> str:
    """Return what whoever names this SoC should know, an empty text where there is nothing."""
    if name != FIRST_910B:
        return ""
    return (
        f"{FIRST_910B} is the 910 of the first generation (family Ascend910); the cards called 910B are "
        f"{', '.join(_NEWER_910B)}: `npu-smi info` shows which"
    )


def is_soc(name: str) -> bool:
    """Tell whether `name` is in the catalogue."""
    return name in _catalogue()


def soc_names() -> tuple[str, ...]:
    """Return all names, sorted."""
    return tuple(_catalogue())


@cache
def _catalogue() -> dict[str, Soc]:
    text = files("orchestrator.ascend").joinpath("data/soc.json").read_text(encoding="utf-8")
    return {row["name"]: Soc(**row) for row in json.loads(text)["soc"]}
