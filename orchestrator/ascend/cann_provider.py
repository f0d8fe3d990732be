"""onnxruntime's CANN provider in its own interpreter: the options that it knows, and proof that it is really in use."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.ascend import cann_session
from orchestrator.ascend.atc_install import find_atc
from orchestrator.ascend.atc_options import V1_BY_WORD
from orchestrator.ascend.atc_process import Ended, Tick, private_environment, run_guarded
from orchestrator.core.errors import GateError, InternalError, PlanError
from orchestrator.core.files import private_folder, write_json
from orchestrator.recipe.compile_options import CannProvider, CompileOptions

PROVIDER: Final = cann_session.CANN
OPTIONS: Final = frozenset(
    {
        "device_id", "npu_mem_limit", "arena_extend_strategy", "enable_cann_graph", "enable_cann_subgraph", "dump_graphs",
        "dump_om_model", "precision_mode", "op_select_impl_mode", "optypelist_for_implmode",
    }
)  # fmt: skip
"""Every option of onnxruntime-cann 1.24.4, read from its binary; any other makes the session fail."""
_SHOWN: Final = 600


@dataclass(frozen=True, slots=True)
class CannAnswer:
    """What the other interpreter found.

    Attributes:
        version: Of onnxruntime-cann.
        active: Providers of the session, as it says itself.
        nodes: Provider -> number of nodes that ran on it.
        runs: Shapes and seconds of each bucket; the first run compiles.
        files: Compiled graphs that it left in its folder.
        log: What onnxruntime said, the end of it.
    """

    version: str
    active: tuple[str, ...]
    nodes: Mapping[str, int]
    runs: Sequence[Mapping[str, Any]]
    files: tuple[Path, ...]
    log: str
    error: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def in_use(self) -> bool:
        """Whether the session and at least one node ran on CANN."""
        return PROVIDER in self.active and self.nodes.get(PROVIDER, 0) > 0

    @property
    def why_not(self) -> str:
        """Why it is not in use, for people."""
        if self.error:
            return self.error
        if PROVIDER not in self.active:
            reason = next((line for line in self.log.splitlines() if "Failed to load library" in line), "")
            cause = f": {reason.rpartition('with error: ')[2]}" if reason else ""
            return f"onnxruntime-cann {self.version} fell back to {', '.join(self.active)} in silence{cause}"[:_SHOWN]
        return f"no node ran on {PROVIDER}: {dict(self.nodes)}"


def provider_options(options: CompileOptions, precision: str, *, device_id: int = 0) -> dict[str, str]:
    """Return the provider's options, as texts.

    Raises:
        PlanError: The provider knows no such precision.
    """
    if precision not in V1_BY_WORD:
        raise PlanError(f"the CANN provider has no precision {precision!r}", hint=f"use one of {', '.join(V1_BY_WORD)}")
    own = options.cann_provider or CannProvider.model_validate({})
    rows: dict[str, object] = {
        "device_id": device_id,
        "npu_mem_limit": own.npu_mem_limit,
        "arena_extend_strategy": own.arena_extend_strategy,
        "enable_cann_graph": int(own.enable_cann_graph),
        "enable_cann_subgraph": int(own.enable_cann_subgraph),
        "dump_om_model": int(own.dump_om_model),
        "precision_mode": V1_BY_WORD[precision],
        "op_select_impl_mode": options.op_select_implmode,
        "optypelist_for_implmode": ",".join(options.optypelist_for_implmode) or None,
    }
    found = {name: str(value) for name, value in rows.items() if value is not None}
    assert set(found) <= OPTIONS
    return found


def open_and_run(
    python: Path,
    model: Path,
    options: Mapping[str, str],
    buckets: Sequence[Mapping[str, Sequence[int]]],
    *,
    work: Path,
    timeout_s: float,
    on_tick: Tick = lambda _elapsed, _line: None,
) -> CannAnswer:
    """Open the model, run it once per bucket, and say which provider did it.

    Raises:
        PlanError: An option that the provider does not know.
        InternalError: The interpreter is not there, died, or took too long.
    """
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise PlanError(
            f"the CANN provider knows no option {unknown[0]!r}", hint=f"it knows {', '.join(sorted(OPTIONS))}"
        )
    if not python.is_file():
        raise InternalError(
            f"tools.onnxruntime_cann_python is {str(python)!r}, which is no program here",
            place="tools.onnxruntime_cann_python",
            hint="correct the path in the environment, or leave it null to rehearse with the twin",
        )
    folder = work.absolute() / "cann"
    cwd = private_folder(folder / "cwd")
    for stale in cwd.iterdir():
        stale.unlink()
    request, answer = folder / "request.json", folder / "answer.json"
    answer.unlink(missing_ok=True)
    write_json(
        request, {"model": str(model.absolute()), "options": dict(options), "buckets": [dict(b) for b in buckets]}
    )
    install = find_atc(None)
    base = install.environment(os.environ) if install is not None else dict(os.environ)
    command = [str(python), str(Path(cann_session.__file__)), str(request), str(answer)]
    ended = run_guarded(
        command, cwd=cwd, environment=private_environment(folder / "private", base), logs=folder / "logs",
        timeout_s=timeout_s, on_tick=on_tick,
    )  # fmt: skip
    return _read(answer, ended, cwd)


def _read(answer: Path, ended: Ended, cwd: Path) -> CannAnswer:
    log = f"{ended.text}\n{ended.error_text}"
    if ended.timed_out or not answer.is_file():
        how = "took too long" if ended.timed_out else f"ended with {ended.code}"
        raise InternalError(
            f"onnxruntime-cann {how} after {ended.elapsed_s:.0f} s",
            place=str(ended.stdout.parent), hint="its log is kept there", details={"log": log[-4000:]},
        )  # fmt: skip
    data = cast("dict[str, Any]", json.loads(answer.read_bytes()))
    error = str(data["error"])
    if "Unknown provider option" in error:
        raise GateError(error, hint=f"the CANN provider knows {', '.join(sorted(OPTIONS))}")
    return CannAnswer(
        str(data["version"]), tuple(data["active"]), dict(data["nodes"]), tuple(data["runs"]),
        tuple(cwd / name for name in data["files"]), log[-8000:], error,
    )  # fmt: skip
