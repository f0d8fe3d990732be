"""Which kernels a SoC family has per Ascend-IR operator: dtypes, the list of the mixed precision modes, the AI CPU.

Data: `data/kernels.json` (CANN 8.1.RC1), which names its source. A CANN installed on the machine knows better: see
`installed.py`, which fills the same table from it. A row that says nothing of an input's dtypes means that the kernel
decides when it is compiled; only for the matrix unit we know more, since its dtypes are the hardware's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

Mixed = Literal["white", "black", "grey"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One AI Core kernel.

    Attributes:
        inputs: Dtypes per input (numpy's names, `bfloat16` besides); None where the kernel decides at compile time.
        mixed: List of the mixed precision modes: white = fp16, black = keeps its dtype, grey = follows its producer.
        dynamic: Whether it runs on shapes not known when it is compiled.
        cube: Whether the matrix unit computes it.
    """

    ir_type: str
    inputs: tuple[frozenset[str] | None, ...]
    mixed: Mixed
    dynamic: bool
    cube: bool = False

    def takes(self, dtype: str, index: int = 0) -> bool | None:
        """Tell whether input `index` may have `dtype`; None where the table does not say. The last row repeats."""
        if not self.inputs:
            return None
        row = self.inputs[min(index, len(self.inputs) - 1)]
        return None if row is None else dtype in row


@dataclass(frozen=True, slots=True)
class KernelTable:
    """All kernels known from one source.

    Attributes:
        name: For people and reports, e.g. `CANN 8.1.RC1` or `CANN 8.2.RC1 at /usr/local/Ascend/cann`.
        core: Family -> Ascend-IR operator -> kernel. A family that is missing is not known; an operator missing has none.
        cpu: Ascend-IR operator -> dtypes per input of its AI CPU kernel.
    """

    name: str
    core: Mapping[str, Mapping[str, Kernel]]
    cpu: Mapping[str, tuple[frozenset[str] | None, ...]]

    def knows(self, soc_family: str) -> bool:
        """Tell whether the table has kernels of that family at all."""
        return soc_family.lower() in self.core

    def kernel(self, ir_type: str, soc_family: str) -> Kernel | None:
        """Return the AI Core kernel, None where the family has none (or is not known: ask `knows`)."""
        return self.core.get(soc_family.lower(), {}).get(ir_type)

    def ai_cpu(self, ir_type: str) -> tuple[frozenset[str] | None, ...] | None:
        """Return the dtypes per input of the AI CPU kernel, None where there is none. It is slow."""
        return self.cpu.get(ir_type)


def kernel(ir_type: str, soc_family: str) -> Kernel | None:
    """Return the AI Core kernel of the shipped table; `soc_family` as `Soc.family` says it, in any case."""
    return shipped().kernel(ir_type, soc_family)


def ai_cpu(ir_type: str) -> tuple[frozenset[str] | None, ...] | None:
    """Return the AI CPU kernel's dtypes of the shipped table, None where there is none."""
    return shipped().ai_cpu(ir_type)


def cube_dtypes(soc_family: str) -> frozenset[str] | None:
    """Return what the matrix unit of that family multiplies, None for a family that no source describes."""
    found = _raw()["cube"]["dtypes"].get(soc_family.lower())
    return None if found is None else frozenset(found)


def make_kernel(ir_type: str, family: str, inputs: Sequence[Any], mixed: Mixed, *, dynamic: bool) -> Kernel:
    """Return a kernel; dtypes left unstated are those of the matrix unit, or those that its program checks for.

    Args:
        ir_type: Ascend-IR operator.
        family: SoC family, lower case.
        inputs: Per input a sequence of dtype names, or `any`.
        mixed: Its list.
        dynamic: Whether it takes unknown shapes.
    """
    cube = ir_type in _raw()["cube"]["operators"]
    unstated = cube_dtypes(family) if cube else _checked(ir_type, family)
    filled = 2 if cube or ir_type in _raw()["checked"]["pairs"] else 1
    rows = [None if row == "any" else frozenset(row) for row in inputs]
    rows = [unstated if row is None and number < filled else row for number, row in enumerate(rows)]
    return Kernel(ir_type, tuple(rows), mixed, dynamic, cube)


def _checked(ir_type: str, family: str) -> frozenset[str] | None:
    table = _raw()["checked"]
    found = table["operators"].get(ir_type)
    if found is None:
        return None
    bfloat16 = ir_type in table["bfloat16"] and "bfloat16" in (cube_dtypes(family) or ())
    return frozenset(found) | ({"bfloat16"} if bfloat16 else set[str]())


@cache
def shipped() -> KernelTable:
    """Return the table that comes with this package."""
    raw = _raw()
    core: dict[str, dict[str, Kernel]] = {family: {} for family in raw["families"]}
    for ir_type, rows in raw["ai_core"].items():
        for row in rows:
            for family in row["on"]:
                core[family][ir_type] = make_kernel(
                    ir_type, family, row["inputs"], row["mixed"], dynamic=row["dynamic"]
                )
    cpu = {ir: tuple(None if row == "any" else frozenset(row) for row in rows) for ir, rows in raw["ai_cpu"].items()}
    return KernelTable(raw["version"], core, cpu)


@cache
def _raw() -> dict[str, Any]:
    return json.loads(files("orchestrator.ascend").joinpath("data/kernels.json").read_text(encoding="utf-8"))
