"""A pool of real devices where there is no NPU: refused before anything runs, and never a CPU in its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.runtime_variants import SOC, om_variant

from orchestrator.app.control_steps import PoolControl
from orchestrator.app.run import RunRequest, Watch, run
from orchestrator.app.wiring import open_workplace
from orchestrator.bundle.variant import VARIANT, write_variant
from orchestrator.core.errors import DeviceError
from orchestrator.plan.model import Draft

ROOT = Path(__file__).parents[2]
POOL = "{site: local, soc: Ascend310P3}"


def environment(folder: Path, pool: str = POOL, tools: str = "") -> Path:
    path = folder / "e.yaml"
    path.write_text(
        f"environment: 1\nstate: {folder}/state\nsites: {{local: {{kind: local}}}}\npools: {{edge: {pool}}}\n"
        f"tools: {{{tools}}}\n"
    )
    return path


def nothing(*_: Any) -> None:
    pytest.fail("something ran")


def test_a_run_is_refused_before_its_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cluster.devices.npu_devices", list[Path])
    atc = tmp_path / "atc"
    atc.touch(mode=0o755)
    recipe = ROOT / "recipes" / "digits" / "recipe.yaml"
    with pytest.raises(DeviceError, match=r"pool edge needs 1 Ascend310P3 device\(s\), this machine has 0") as refused:
        run(RunRequest(recipe, environment(tmp_path, tools=f"atc: {atc}")), Watch(nothing, nothing, nothing))
    assert "rehearsal: true" in refused.value.hint
    assert not (tmp_path / "state" / "ledger.db").exists()


def test_what_stands_in_for_the_device_is_not_deployed_to_it(tmp_path: Path) -> None:
    workplace = open_workplace(environment(tmp_path))
    made = om_variant(tmp_path / "om")
    real = workplace.store.commit(made.folder, VARIANT).digest
    control = PoolControl(workplace, None, "x1")  # type: ignore[arg-type]
    draft = Draft("deploy", "deploy", "local", {"endpoint": "digits", "pool": "edge", "device": SOC})
    assert control._variant(draft, real).soc == SOC  # type: ignore[union-attr]
    with pytest.raises(DeviceError, match="gets no stand-in: nothing was compiled"):
        control._variant(draft, "")
    twin = replace(om_variant(tmp_path / "twin"), runtime="twin", rehearsal=True, compiled=False, skipped="no ATC here")
    stand_in = workplace.store.commit(write_variant(twin).folder, VARIANT).digest
    with pytest.raises(DeviceError, match="gets no stand-in: no ATC here"):
        control._variant(draft, stand_in)
