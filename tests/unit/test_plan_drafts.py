"""What a recipe asks of its environment before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import PlanError
from orchestrator.environment import load_environment
from orchestrator.plan.drafts import make_drafts
from orchestrator.recipe import load_recipe

DIGITS = Path(__file__).parents[2] / "recipes" / "digits" / "recipe.yaml"


def drafts_with(rehearsal: str, folder: Path) -> list[str]:
    path = folder / "environment.yaml"
    site, pool = (
        "{kind: local, allow_cpu: true}",
        f"{{site: local, soc: Ascend310P3, rehearsal: {rehearsal}, slots: 1}}",
    )
    path.write_text(f"environment: 1\nsites: {{local: {site}}}\npools: {{edge: {pool}}}\n")
    made = make_drafts(load_recipe(DIGITS).recipe, load_environment(path), lambda *_: {}, {})
    return [draft.name for draft in made]


def test_the_main_job_has_its_steps(tmp_path: Path):
    names = [
        "preflight",
        "train",
        "evaluate",
        "export",
        "forecast-npu",
        "bundle",
        "compile-npu",
        "parity",
        "register",
        "deploy",
    ]
    assert drafts_with("true", tmp_path) == names


def test_a_pool_of_real_devices_never_gets_the_cpu_in_their_place(tmp_path: Path):
    with pytest.raises(PlanError, match="nothing is compiled for them") as refused:
        drafts_with("false", tmp_path)
    assert refused.value.exit_code == 2
