"""The tables of the target: SoC names, overflow modes, opset ranges."""

from __future__ import annotations

import pytest

from orchestrator.ascend.soc import is_soc, soc, soc_names
from orchestrator.ascend.toolchains import OpsetRange, Target, allowed_opsets, preferred_opset, toolchain
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


def test_no_suggestion_for_something_quite_different() -> None:
    with pytest.raises(PlanError) as caught:
        soc("H100-SXM5-80GB")
    assert "did you mean" not in caught.value.hint


OM, MINDIR = Target("npu", "om", "Ascend310P3"), Target("lite", "mindir", "Ascend310P3")
ONNX, CANN, TORCH = Target("any", "onnx"), Target("ep", "onnx", "Ascend910B3"), Target("native", "torch")


@pytest.mark.parametrize(
    ("targets", "minimum", "maximum", "preferred"),
    [
        ([], 8, None, 18),
        ([OM], 8, 18, 18),
        ([MINDIR], 11, 16, 16),
        ([CANN], 8, 16, 16),
        ([ONNX, TORCH], 8, None, 18),
        ([OM, MINDIR, ONNX], 11, 16, 16),
    ],
)
def test_ranges(targets: list[Target], minimum: int, maximum: int | None, preferred: int) -> None:
    allowed = allowed_opsets(targets)
    assert (allowed.minimum, allowed.maximum) == (minimum, maximum)
    assert preferred_opset(allowed) == preferred
    assert preferred in allowed
    assert minimum - 1 not in allowed
    assert maximum is None or maximum + 1 not in allowed


def test_the_range_names_who_bounds_it() -> None:
    assert allowed_opsets([OM, MINDIR]).bound_by == ("lite",)
    assert str(OpsetRange(8, 18)) == "8 to 18"
    assert str(OpsetRange(8, None)) == "8 or newer"


def test_conflicting_targets_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.ascend import toolchains

    table = dict(toolchains._table())
    table["mindspore-lite"] = toolchains.Toolchain("mindspore-lite", "a newer converter", 19, 22, "", ())
    monkeypatch.setattr(toolchains, "_table", lambda: table)
    with pytest.raises(
        PlanError, match=r"'lite' \(a newer converter\) reads 19 or newer, 'npu' \(ATC\) reads 18 or older"
    ):
        allowed_opsets([OM, MINDIR])


def test_unknown_format() -> None:
    with pytest.raises(PlanError, match="unknown format 'engine'"):
        toolchain(Target("t", "engine"))


def test_every_limit_names_a_source() -> None:
    for target in (OM, MINDIR, CANN, ONNX):
        assert toolchain(target).sources
        assert toolchain(target).why
