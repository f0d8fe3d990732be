"""Which real devices this machine has. Nothing here ever makes one up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from orchestrator.cluster.site import LocalPool
from orchestrator.core.errors import DeviceError

REHEARSAL_DEVICE: Final = "cpu (rehearsal)"
NPU_RESOURCE: Final = "NPU"
"""Ray's own name for Ascend devices: it sets ASCEND_RT_VISIBLE_DEVICES, so a rehearsal must not use it."""
_DEVICE: Final = re.compile(r"davinci\d+")


def npu_devices(dev: Path = Path("/dev")) -> list[Path]:
    """Return the Ascend device files of this machine."""
    return sorted(path for path in dev.glob("davinci*") if _DEVICE.fullmatch(path.name))


def check_devices(pools: Mapping[str, LocalPool], devices: list[Path]) -> None:
    """Refuse pools that ask for more NPUs than there are.

    Raises:
        DeviceError: Named pool, number of slots, number of devices.
    """
    left = len(devices)
    for name, pool in sorted(pools.items()):
        if pool.rehearsal:
            continue
        if left < pool.slots:
            raise DeviceError(
                f"pool {name} needs {pool.slots} {pool.soc or 'Ascend'} device(s), this machine has {left} free "
                f"of {len(devices)} (/dev/davinci*)",
                hint="install the Ascend driver, pass /dev/davinci* into the container, or set `rehearsal: true`",
            )
        left -= pool.slots


def pool_resource(name: str, pool: LocalPool) -> str:
    """Return the Ray resource of which each slot of the pool is one unit."""
    return f"ascend_sim_{name}" if pool.rehearsal else NPU_RESOURCE


def pool_device(pool: LocalPool) -> str:
    """Return what clients are told that the pool runs on."""
    return REHEARSAL_DEVICE if pool.rehearsal else pool.soc
