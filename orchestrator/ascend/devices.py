"""Device nodes of Ascend chips, and the variables that choose among them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.ascend.soc import is_soc

MANAGERS: Final = ("davinci_manager", "devmm_svm", "hisi_hdc")
"""Nodes that every program needs beside `davinci<N>`; a container must be given all of them."""

_RUNTIME_TOKEN: Final = re.compile(r"\d+|\d+-\d+|npu-\d+|[Aa]scend\w*-\d+")


@dataclass(frozen=True, slots=True)
class Nodes:
    """What is below `/dev`.

    Attributes:
        chips: Numbers of the `davinci<N>` nodes, ascending.
        missing: Managers that are not there.
        closed: Nodes that we may not read and write.
    """

    chips: tuple[int, ...]
    missing: tuple[str, ...]
    closed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Visible:
    """What `ASCEND_RT_VISIBLE_DEVICES` really means.

    Attributes:
        devices: The devices that a program gets, renumbered from 0 in this order.
        ignored: What the runtime drops: from the first bad token on, everything.
        problem: Why; empty when the value is fine.
    """

    devices: tuple[int, ...]
    ignored: str
    problem: str


def device_nodes(root: Path = Path("/"), *, access: Callable[[Path, int], bool] = os.access) -> Nodes:
    """Look at the device nodes below `root`."""
    folder = root / "dev"
    chips = sorted(int(path.name[7:]) for path in folder.glob("davinci[0-9]*") if path.name[7:].isdigit())
    names = [f"davinci{number}" for number in chips]
    there = [name for name in MANAGERS if (folder / name).exists()]
    closed = [name for name in (*names, *there) if not access(folder / name, os.R_OK | os.W_OK)]
    return Nodes(tuple(chips), tuple(name for name in MANAGERS if name not in there) if chips else (), tuple(closed))


def visible_devices(text: str, count: int | None = None) -> Visible:
    """Read `ASCEND_RT_VISIBLE_DEVICES` as CANN's runtime does: ascending numbers, commas, no spaces.

    The list ends in silence at the first token that is none of that.

    Args:
        text: The variable's value.
        count: Devices that there are; a number beyond them makes the runtime fail with 207004.
    """
    found: list[int] = []
    tokens = text.split(",")
    for position, token in enumerate(tokens):
        problem = _token_problem(token, found, count)
        if problem:
            return Visible(tuple(found), ",".join(tokens[position:]), problem)
        found.append(int(token))
    return Visible(tuple(found), "", "")


def _token_problem(token: str, before: list[int], count: int | None) -> str:
    if token != token.strip():
        return f"{token!r} has a space"
    if not (token.isascii() and token.isdigit()):
        return f"{token!r} is no device number" if token else "a number is missing"
    number = int(token)
    if before and number <= before[-1]:
        return f"{number} after {before[-1]}: numbers must ascend"
    if count is not None and number >= count:
        return f"device {number} of {count}: the runtime fails with error 207004"
    return ""


def has_soc(name: str, shown: Collection[str]) -> bool:
    """Tell whether a SoC may be among the names that npu-smi shows; A3 and older tables name only a family."""
    return name in shown or any(name.startswith(found) for found in shown if not is_soc(found))


def devices_for(slots: int, fraction: float) -> int:
    """Return how many devices hold so many slots that each take `fraction` of one; no slot lies on two."""
    per_device = int(1 / fraction + 1e-9)
    return -(-slots // per_device)


def runtime_selection_problem(text: str) -> str:
    """Return what is wrong with `ASCEND_VISIBLE_DEVICES`, the container runtime's variable; empty when it is fine.

    It names physical devices, as `0`, `0,2`, `0-2`, `npu-1`, `Ascend910-1` or `void`, and is read when the container starts.
    """
    if text == "void":
        return ""
    bad = [token for token in text.split(",") if not _RUNTIME_TOKEN.fullmatch(token)]
    return f"{bad[0]!r} is no device of the container runtime" if bad else ""
