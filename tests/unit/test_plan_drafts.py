"""What a recipe asks of its environment before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import PlanError
from orchestrator.environment import load_environment
from orchestrator.plan.drafts import make_drafts
from orchestrator.plan.model import Draft
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
    with pytest.raises(PlanError, match="has no compiler for target 'npu'") as refused:
        drafts_with("false", tmp_path)
    assert (refused.value.exit_code, refused.value.place) == (2, "rollout.pool")
    assert "set tools.atc" in refused.value.hint


def deploy_with(pool: str, folder: Path, *changes: str) -> Draft:
    path = folder / "environment.yaml"
    path.write_text(f"environment: 1\nsites: {{local: {{kind: local}}}}\npools: {{edge: {{site: local, {pool}}}}}\n")
    recipe = load_recipe(DIGITS, set_=changes).recipe
    return make_drafts(recipe, load_environment(path), lambda *_: {}, {}, {}, {"om": "an ATC", "mindir": "a Lite"})[-1]


def variants(draft: Draft) -> dict[str, tuple[str, str]]:
    return {i.name: (i.step, i.output) for i in draft.inputs if i.name != "bundle"}


def test_a_pool_of_real_devices_gets_what_was_compiled_for_its_soc(tmp_path: Path):
    draft = deploy_with("soc: Ascend310P3", tmp_path)
    assert draft.spec["device"] == "Ascend310P3"
    assert variants(draft) == {"variant": ("compile-npu", "variant")}
    rehearsal = deploy_with("soc: Ascend310P3, rehearsal: true", tmp_path)
    assert "device" not in rehearsal.spec
    assert variants(rehearsal) == {"variant": ("compile-npu", "rehearsal")}
    with pytest.raises(PlanError, match="pool 'edge' has Ascend910B4 devices, and no target is made for them"):
        deploy_with("soc: Ascend910B4", tmp_path)


def test_a_pool_of_two_socs_gets_a_variant_for_each(tmp_path: Path):
    npu = "{name: npu, format: om, soc: Ascend310P3, precision: fp16, shapes: {batch: [1]}}"
    second = f"targets=[{npu}, {{name: big, format: mindir, soc: Ascend910B4, shapes: {{batch: [1]}}}}]"
    parts = "devices: [{soc: Ascend310P3, slots: 2}, {soc: Ascend910B4}]"
    draft = deploy_with(parts, tmp_path, second)
    wanted = {"variant": ("compile-npu", "variant"), "variant-Ascend910B4": ("compile-big", "variant")}
    assert variants(draft) == wanted
    assert draft.spec["builds"] == [["Ascend310P3", "npu"], ["Ascend910B4", "big"]]
    with pytest.raises(PlanError, match="Ascend910B4 devices, and no target"):
        deploy_with(f"{parts}, rehearsal: true", tmp_path)


@pytest.mark.parametrize(
    ("change", "place", "says"),
    [
        ("targets.0.soc=Ascend310P", "targets.npu.soc", "unknown SoC 'Ascend310P'"),
        ("targets.0={name: npu, format: onnx, soc: Ascend311P}", "targets.npu.soc", "unknown SoC 'Ascend311P'"),
        ("targets.0.precision=mixed_bfloat16", "targets.npu.precision", "Ascend310P3 has no bfloat16"),
    ],
)
def test_what_the_chip_lacks_is_said_before_anything_runs(tmp_path: Path, change: str, place: str, says: str):
    path = tmp_path / "environment.yaml"
    path.write_text(
        "environment: 1\nsites: {local: {kind: local}}\n"
        "pools: {edge: {site: local, soc: Ascend310P3, rehearsal: true, slots: 1}}\n"
    )
    with pytest.raises(PlanError, match=says) as refused:
        make_drafts(load_recipe(DIGITS, set_=[change]).recipe, load_environment(path), lambda *_: {}, {})
    assert refused.value.place == place
