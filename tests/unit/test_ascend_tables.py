"""The tables of the target: SoC names, overflow modes, opset ranges."""

from __future__ import annotations

import pytest

from orchestrator.ascend.soc import caution, is_soc, soc, soc_names
from orchestrator.ascend.toolchains import Target, toolchain
from orchestrator.core.errors import PlanError


@pytest.mark.parametrize(
    ("name", "family", "saturating", "memory_gib"),
    [
        ("Ascend310P3", "Ascend310P", True, 22.4),
        ("Ascend310B4", "Ascend310B", True, None),
        ("Ascend910A", "Ascend910", True, None),
        ("Ascend910B", "Ascend910", True, None),  # first generation, whatever its name suggests
        ("Ascend910B3", "Ascend910B", False, 64.0),
        ("Ascend910_9391", "Ascend910_93", False, 64.0),
        ("Ascend950PR_9599", "Ascend950", False, 128.0),
        ("Ascend610", "Ascend610", True, None),  # no source: assumed to saturate
    ],
)
def test_known_socs(name: str, family: str, saturating: bool, memory_gib: float | None) -> None:
    found = soc(name)
    assert (found.family, found.saturating, found.memory_gib) == (family, saturating, memory_gib)


def test_the_catalogue_is_whole_and_sorted() -> None:
    assert len(soc_names()) == len(set(soc_names())) > 60
    assert list(soc_names()) == sorted(soc_names())
    assert {soc(name).overflow for name in soc_names()} == {"saturates", "inf_nan", "unknown"}


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("Ascend310P", "Ascend310P3"), ("ascend310p3", "Ascend310P3"), ("310P3", "Ascend310P3"), ("910B3", "Ascend910B3")],
)
def test_an_unknown_soc_names_the_closest(typo: str, meant: str) -> None:
    assert not is_soc(typo)
    with pytest.raises(PlanError, match="unknown SoC") as caught:
        soc(typo)
    assert meant in caught.value.hint


@pytest.mark.parametrize("typed", ["ascend910b", "910B", "Ascend910", "Ascend910BB"])
def test_the_910b_of_the_first_generation_is_suggested_last_and_explained(typed: str) -> None:
    with pytest.raises(PlanError) as caught:
        soc(typed)
    suggested = caught.value.hint.partition("?")[0].removeprefix("did you mean ").split(" or ")
    assert suggested[0] != "Ascend910B"
    assert "Ascend910B1, Ascend910B2" in caution("Ascend910B")
    assert caution("Ascend910B4") == caution(None) == ""


def test_no_suggestion_for_something_quite_different() -> None:
    with pytest.raises(PlanError) as caught:
        soc("H100-SXM5-80GB")
    assert "did you mean" not in caught.value.hint


OM, MINDIR = Target("npu", "om", "Ascend310P3"), Target("lite", "mindir", "Ascend310P3")
ONNX, CANN, TORCH = Target("any", "onnx"), Target("ep", "onnx", "Ascend910B3"), Target("native", "torch")


@pytest.mark.parametrize(
    ("target", "minimum", "maximum"),
    [(OM, 8, 18), (MINDIR, 11, 16), (CANN, 8, 16), (ONNX, 8, None), (TORCH, 8, None)],
)
def test_the_opsets_that_a_toolchain_reads(target: Target, minimum: int, maximum: int | None) -> None:
    assert (toolchain(target).minimum, toolchain(target).maximum) == (minimum, maximum)


def test_a_mistyped_soc_is_no_plain_target() -> None:
    with pytest.raises(PlanError, match="unknown SoC 'Ascend310P'"):
        toolchain(Target("t", "onnx", "Ascend310P"))


def test_unknown_format() -> None:
    with pytest.raises(PlanError, match="unknown format 'engine'"):
        toolchain(Target("t", "engine"))


def test_every_limit_names_a_source() -> None:
    for target in (OM, MINDIR, CANN, ONNX):
        assert toolchain(target).sources
        assert toolchain(target).why
