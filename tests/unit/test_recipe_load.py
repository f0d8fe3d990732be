"""A good recipe, what its model says, and what loading costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.core.digests import canonical_json, sha256_bytes
from orchestrator.core.errors import RecipeError
from orchestrator.plan.gates import Gate
from orchestrator.recipe import Recipe, load_recipe, render_problems

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))

MINIMAL = "recipe: 1\nname: own\nsteps: [{name: a, command: echo 'two words'}]\n"


def test_a_recipe_of_own_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(MINIMAL)
    loaded = load_recipe(Path("r.yaml"))
    assert loaded.recipe.steps[0].command == ("echo", "two words")
    assert loaded.recipe.steps[0].timeout is None
    assert loaded.folder == tmp_path
    assert loaded.path == Path("r.yaml")
    assert loaded.sha256 == sha256_bytes(MINIMAL.encode())
    assert loaded.text == MINIMAL


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_our_own_recipes_are_valid(path: Path) -> None:
    recipe = load_recipe(path).recipe
    assert recipe.name
    # The plan stores it, and another process reads it back.
    assert Recipe.model_validate(json.loads(canonical_json(recipe.model_dump(mode="json")))) == recipe


def test_the_model_cannot_be_changed(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(MINIMAL)
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("text", ["accuracy >= 0.95", "a.b<1e-3", " x == .5 ", "x>-1", "loss <= +2."])
def test_a_gate_that_the_recipe_takes_can_be_judged(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("def f(): ...\n")
    body = f"recipe: 1\nname: t\nsource: {{onnx: m.onnx}}\nevaluate: {{entrypoint: t:f, gates: ['{text}']}}\n"
    (tmp_path / "r.yaml").write_text(body)
    (tmp_path / "m.onnx").touch()
    evaluate = load_recipe(tmp_path / "r.yaml").recipe.evaluate
    assert evaluate is not None
    Gate.parse(evaluate.gates[0])


NAMES = {
    "def f(): ...": True,
    "async def f(): ...": True,
    "class f: ...": True,
    "f = 1": True,
    "a, (f, b) = x": True,
    "f: int = 1": True,
    "import f": True,
    "import f.g": True,
    "from a import b as f": True,
    "from a import *": True,
    "try:\n    import a\nexcept ImportError:\n    f = None": True,
    "if x:\n    pass\nelse:\n    def f(): ...": True,
    "with x:\n    f = 1": True,
    "def g():\n    f = 1": False,
    "class g:\n    f = 1": False,
    "import a.f": False,
    "import f as g": False,
    "": False,
}


@pytest.mark.parametrize("source", NAMES, ids=lambda text: text.replace("\n", "; "))
def test_what_defines_a_name(source: str, tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "mod.py").write_text(source)
    (tmp_path / "r.yaml").write_text("recipe: 1\nname: own\nsteps: [{name: a, entrypoint: 'pkg.mod:f'}]\n")
    if NAMES[source]:
        load_recipe(tmp_path / "r.yaml")
    else:
        with pytest.raises(RecipeError, match="does not define `f`"):
            load_recipe(tmp_path / "r.yaml")


def test_a_package_is_a_module(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("def f(): ...")
    (tmp_path / "r.yaml").write_text("recipe: 1\nname: own\nsteps: [{name: a, entrypoint: 'pkg:f'}]\n")
    load_recipe(tmp_path / "r.yaml")


def test_the_users_code_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("raise SystemExit(3)\ndef f(): ...\n")
    (tmp_path / "r.yaml").write_text("recipe: 1\nname: own\nsteps: [{name: a, entrypoint: 'code:f'}]\n")
    load_recipe(tmp_path / "r.yaml")


def test_render_problems_of_an_error_without_a_list() -> None:
    assert render_problems(RecipeError("no", place="here", hint="do")) == "here: no\n  fix: do"


def test_several_cycles_are_each_told_once(tmp_path: Path) -> None:
    steps = "".join(
        f"  - {{name: {name}, command: x, needs: [{need}]}}\n" for name, need in ["ab", "ba", "cd", "dc", "ea"]
    )
    (tmp_path / "r.yaml").write_text("recipe: 1\nname: own\nsteps:\n" + steps)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert [line.rsplit(": ", 1)[1] for line in render_problems(caught.value).splitlines()] == [
        "a → b → a",
        "c → d → c",
    ]


def test_a_long_chain_of_steps(tmp_path: Path) -> None:
    steps = "".join(f"  - {{name: s{n}, command: x, needs: [{f's{n - 1}' if n else ''}]}}\n" for n in range(1500))
    (tmp_path / "r.yaml").write_text("recipe: 1\nname: own\nsteps:\n" + steps)
    assert len(load_recipe(tmp_path / "r.yaml").recipe.steps) == 1500


IMPORTS = """
import sys
import orchestrator.recipe, orchestrator.environment, orchestrator.recipe.problems, orchestrator.recipe.source_files
light = sorted(name for name in ("pydantic", "yaml", "difflib", "rich") if name in sys.modules)
from orchestrator.recipe import load_recipe
from orchestrator.environment import load_environment
from pathlib import Path
load_recipe(Path(sys.argv[1])); load_environment()
heavy = sorted(name for name in ("ray", "torch", "onnx", "mlflow", "numpy", "rich", "typer", "difflib") if name in sys.modules)
print(light, heavy)
"""


def test_what_loading_imports(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(MINIMAL)
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(tmp_path / "r.yaml")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[] []"
