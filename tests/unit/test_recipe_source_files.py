"""The closure of local imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.recipe.source_files import source_files

FILES = {
    "train.py": "import torch, os\nimport helper\nfrom pkg import one\nfrom pkg.deep.leaf import x\n",
    "helper.py": "def f():\n    import late\n",
    "late.py": "import train\n",
    "alone.py": "",
    "pkg/__init__.py": "from .setup import *\n",
    "pkg/setup.py": "",
    "pkg/one.py": "from . import two\nfrom .three import y\n",
    "pkg/two.py": "from .. import outside\n",
    "pkg/three.py": "",
    "pkg/never.py": "",
    "pkg/deep/__init__.py": "",
    "pkg/deep/leaf.py": "from ..four import z\nimport importlib\nimportlib.import_module('named')\n",
    "pkg/four.py": "",
    "named.py": "",
    "space/inner.py": "from . import sibling\n",
    "space/sibling.py": "",
    "broken.py": "def f(:\n",
    "uses_broken.py": "import broken, space.inner\n",
    "vocab/a.txt": "a",
    "vocab/__pycache__/b.txt": "b",
    "scripts/run.sh": "python3 train.py\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def names(found: dict[str, Path]) -> list[str]:
    return list(found)


def test_the_closure_of_an_entry_point(folder: Path) -> None:
    found = source_files(folder, ["train:main"])
    assert names(found) == [
        "helper.py",
        "late.py",
        "named.py",
        "pkg/__init__.py",
        "pkg/deep/__init__.py",
        "pkg/deep/leaf.py",
        "pkg/four.py",
        "pkg/one.py",
        "pkg/setup.py",
        "pkg/three.py",
        "pkg/two.py",
        "train.py",
    ]
    assert all(path == folder / name for name, path in found.items())


def test_an_entry_point_in_a_package(folder: Path) -> None:
    assert names(source_files(folder, ["pkg.three:f"])) == ["pkg/__init__.py", "pkg/setup.py", "pkg/three.py"]


def test_folders_without_init_and_files_that_cannot_be_parsed(folder: Path) -> None:
    found = source_files(folder, ["uses_broken:f"])
    assert names(found) == ["broken.py", "space/inner.py", "space/sibling.py", "uses_broken.py"]


def test_several_entry_points_and_extra_files(folder: Path) -> None:
    found = source_files(folder, ["alone:f", "alone:g"], ["vocab/**/*", "*.md"])
    assert names(found) == ["alone.py", "vocab/a.txt"]


def test_modules_from_elsewhere_are_not_ours(folder: Path) -> None:
    assert source_files(folder, ["torchvision.models:resnet18", "os:path"]) == {}


def test_what_a_command_names(folder: Path) -> None:
    assert names(source_files(folder, [], command=("python", "alone.py", "--epochs", "3"))) == ["alone.py"]
    assert names(source_files(folder, [], command=("torchrun", "-m", "pkg.three"))) == [
        "pkg/__init__.py",
        "pkg/setup.py",
        "pkg/three.py",
    ]
    assert names(source_files(folder, [], command=("bash", "scripts/run.sh"))) == ["scripts/run.sh"]
    assert source_files(folder, [], command=("cat", "/etc/passwd", "../x", "-", "pkg", "x" * 5000)) == {}


def test_one_more_import_is_one_more_file(folder: Path) -> None:
    (folder / "alone.py").write_text("from pkg.three import y as z\n")
    assert "pkg/three.py" in source_files(folder, ["alone:f"])
