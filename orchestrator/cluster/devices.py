"""Which real devices this machine has. Nothing here ever makes one up."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from orchestrator.ascend.devices import devices_for, has_soc
from orchestrator.ascend.npu_smi import query
from orchestrator.cluster.pool import LocalPool
from orchestrator.core.errors import DeviceError

REHEARSAL_DEVICE: Final = "cpu (rehearsal)"
NPU_RESOURCE: Final = "NPU"
"""Ray's own name for Ascend devices: it sets ASCEND_RT_VISIBLE_DEVICES, so a rehearsal must not use it."""
_DEVICE: Final = re.compile(r"davinci\d+")


def npu_devices(dev: Path = Path("/dev")) -> list[Path]:
    """Return the Ascend device files of this machine."""
    return sorted(path for path in dev.glob("davinci*") if _DEVICE.fullmatch(path.name))


def check_devices(pools: Mapping[str, LocalPool], devices: list[Path], npu_smi: str | None = None) -> None:
    """Refuse pools that ask for more NPUs than there are, or for others.

    Args:
        pools: By name; rehearsals need no device.
        devices: Device files of this machine.
        npu_smi: The program; looked for on PATH when None. Without one the replicas alone find out which SoC they got.

    Raises:
        DeviceError: Named pool, number of slots, number of devices; or the SoC that is not here.
    """
    left = len(devices)
    for name, pool in sorted(pools.items()):
        if pool.rehearsal:
            continue
        needed = devices_for(pool.slots, pool.fraction)
        if left < needed:
            raise DeviceError(
                f"pool {name} needs {needed} {' and '.join(dict.fromkeys(pool.socs)) or 'Ascend'} device(s), "
                f"this machine has {left} free of {len(devices)} (/dev/davinci*)",
                hint="install the Ascend driver, pass /dev/davinci* into the container, set `rehearsal: true`, or take the "
                "pool out of this environment: a site comes up with all of its pools",
            )
        left -= needed
    if left < len(devices):
        _check_socs(pools, npu_smi or shutil.which("npu-smi"))


def _check_socs(pools: Mapping[str, LocalPool], npu_smi: str | None) -> None:
    if npu_smi is None:
        return
    shown = {chip.soc_name for chip in query(npu_smi).chips}
    for name, pool in sorted(pools.items()):
        absent = [soc for soc in dict.fromkeys(pool.socs) if soc and not has_soc(soc, shown)]
        if absent and not pool.rehearsal:
            raise DeviceError(
                f"pool {name} wants {' and '.join(absent)}, npu-smi shows {', '.join(sorted(shown))}",
                hint="set the pool's `soc` to what this machine has, and compile for that",
                place=f"pools.{name}",
            )


def pool_resource(name: str, pool: LocalPool) -> str:
    """Return the Ray resource of which each slot of the pool takes `pool_share`."""
    return f"ascend_sim_{name}" if pool.rehearsal else NPU_RESOURCE


def pool_share(pool: LocalPool) -> float:
    """Return how much of the resource a slot takes: a device or a part of it; a rehearsal's slots are its own units."""
    return 1.0 if pool.rehearsal else pool.fraction


def pool_device(pool: LocalPool) -> str:
    """Return what clients are told that the pool runs on; several SoCs are told apart by each slot."""
    return REHEARSAL_DEVICE if pool.rehearsal else ", ".join(dict.fromkeys(pool.socs))
