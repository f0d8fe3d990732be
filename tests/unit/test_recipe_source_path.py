"""A recipe's source names a file beside it or one that an installed package holds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.core.errors import RecipeError
from orchestrator.recipe.source_path import is_in_package, source_path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `toy-weights` 1.2 that installed one file; another lies beside it unlisted, and one is listed but gone."""
    site = tmp_path / "site"
    info = site / "toy_weights-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.2\n")
    (info / "RECORD").write_text("toy_weights/models/a.pth,,\ntoy_weights/gone.pth,,\n")
    (site / "toy_weights" / "models").mkdir(parents=True)
    (site / "toy_weights" / "models" / "a.pth").write_bytes(b"weights")
    (site / "toy_weights" / "stray.pth").write_bytes(b"stray")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    return site


def test_a_file_of_a_package(package: Path, tmp_path: Path):
    found = source_path("package:toy-weights/toy_weights/models/a.pth", tmp_path)
    assert found == package / "toy_weights" / "models" / "a.pth"
    assert source_path("package:Toy_Weights/toy_weights/models/a.pth", tmp_path) == found, "as pip compares names"


def test_other_paths_are_the_recipes_own(tmp_path: Path):
    assert not is_in_package("weights/a.pth")
    assert source_path("weights/a.pth", tmp_path) == tmp_path / "weights" / "a.pth"
    assert source_path("/models/a.pth", tmp_path) == Path("/models/a.pth")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "package:toy-weights/toy_weights/stray.pth",
            "the package toy-weights 1.2 has no file 'toy_weights/stray.pth'",
        ),
        ("package:toy-weights/toy_weights/gone.pth", "has no file"),
        ("package:toy-weights/../../etc/passwd", "has no file"),
        ("package:toy-weights/", "has no file ''"),
        ("package:toy-weights", "has no file ''"),
        ("package:no-such-weights/a.pth", "the package 'no-such-weights' is not installed"),
        ("package:", "the package '' is not installed"),
    ],
)
def test_what_is_not_there_is_said(package: Path, tmp_path: Path, where: str, message: str):
    with pytest.raises(RecipeError, match=message) as caught:
        source_path(where, tmp_path)
    assert caught.value.hint
