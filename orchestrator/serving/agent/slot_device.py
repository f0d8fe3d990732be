"""What a slot on a real device is, and the variables that its replicas need: npu-smi's word, and CANN's set_env.sh."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from orchestrator.ascend.atc_install import source_script
from orchestrator.ascend.devices import has_soc, visible_devices
from orchestrator.ascend.npu_smi import query
from orchestrator.core.errors import DeviceError, InternalError

_SOURCED: Final = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH")
"""Set by set_env.sh; sourcing another one over it would mix two versions."""
_HOMES: Final = (
    "/usr/local/Ascend/cann",
    "/usr/local/Ascend/ascend-toolkit",
    "/usr/local/Ascend/ascend-toolkit/latest",
)


def soc_of_slot(allowed: Sequence[str], variables: Mapping[str, str] = os.environ) -> str:
    """Return the SoC of the device that this process was given.

    Without npu-smi a pool of one SoC is believed: each replica asks the device itself, through pyACL, before it serves.

    Args:
        allowed: The pool's SoCs.
        variables: The environment; Ray has put the device's number into `ASCEND_RT_VISIBLE_DEVICES`.

    Raises:
        DeviceError: Ray gave no device, or one that is none of `allowed`; or nobody can tell which one it is.
    """
    visible = visible_devices(variables.get("ASCEND_RT_VISIBLE_DEVICES", "")).devices
    if not visible:
        raise DeviceError(
            f"this slot has no NPU: ASCEND_RT_VISIBLE_DEVICES is {variables.get('ASCEND_RT_VISIBLE_DEVICES')!r}",
            hint="agents of real pools are started by Ray with the resource NPU; a rehearsal needs `rehearsal: true`",
        )
    program = shutil.which("npu-smi", path=variables.get("PATH", ""))
    if program is None:
        if len(allowed) == 1:
            return allowed[0]
        raise DeviceError(
            f"device {visible[0]} may be {' or '.join(allowed)}, and there is no npu-smi to ask",
            hint="put npu-smi on PATH, or give each SoC a pool of its own",
        )
    shown = {chip.logical: chip.soc_name for chip in query(program).chips}
    found = shown.get(visible[0], "")
    fits = [soc for soc in allowed if found and has_soc(soc, {found})]
    if len(fits) != 1:
        raise DeviceError(
            f"the pool has {' and '.join(allowed)}, npu-smi calls device {visible[0]} {found or 'nothing'}",
            hint="correct the pool's `soc` or `devices`, or take the device out of Ray's NPU resource",
        )
    return fits[0]


def cann_variables(script: str, variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return `variables` with what CANN's set_env.sh adds, as a shell of its own leaves them.

    Args:
        script: The environment's `tools.cann_env`; empty takes what is sourced already, else the installed one.
        variables: What to begin with.

    Raises:
        DeviceError: There is no such script, or it fails.
    """
    if not script and (any(variables.get(name) for name in _SOURCED) or find_spec("acl") is not None):
        return dict(variables)  # the site was started in a shell that has it
    places = [Path(script)] if script else [Path(home) / "set_env.sh" for home in _HOMES]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise DeviceError(
            f"no CANN environment: {' and '.join(str(path) for path in places)} "
            f"{'is' if len(places) == 1 else 'are'} not there",
            hint="install CANN's runtime, or name its set_env.sh as `tools.cann_env` in the environment",
            place="tools.cann_env",
        )
    try:
        return source_script(found, variables)
    except InternalError as error:
        raise DeviceError(error.message, place=error.place, hint=error.hint) from error
