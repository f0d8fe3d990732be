"""The checked-in JSON Schemas are current, describe every field, and agree with the loader."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orchestrator.core.errors import RecipeError
from orchestrator.environment.schema import environment_schema
from orchestrator.recipe.schema import recipe_schema, schema_text
from orchestrator.recipe.yaml_text import parse_bytes, read_document

ROOT = Path(__file__).parents[2]
SCHEMAS = {
    "orchestrator/recipe/recipe.schema.json": recipe_schema,
    "orchestrator/environment/environment.schema.json": environment_schema,
}
FILES = [*sorted((ROOT / "recipes").glob("*/*.yaml")), *sorted((ROOT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_checked_in_schema_is_current(name: str) -> None:
    assert (ROOT / name).read_text() == schema_text(SCHEMAS[name]()), "run: python -m orchestrator.environment.schema"


def objects(node: object) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "properties" in node:
            yield node
        for item in node.values():
            yield from objects(item)
    elif isinstance(node, list):
        for item in node:
            yield from objects(item)


@pytest.mark.parametrize("make", SCHEMAS.values(), ids=["recipe", "environment"])
def test_every_field_is_described_and_nothing_else_is_allowed(make: Any) -> None:
    schema = make()
    jsonschema.Draft202012Validator.check_schema(schema)
    for node in objects(schema):
        assert node["additionalProperties"] is False
        for name, field in node["properties"].items():
            reference = schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
            assert field.get("description") or reference.get("description"), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_our_files_name_their_schema_and_fit_it(path: Path) -> None:
    header = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text())
    assert header, "the first line names the schema"
    schema = (path.parent / header[1]).resolve()
    assert str(schema.relative_to(ROOT)) in SCHEMAS
    value = json.loads(json.dumps(read_document(path, RecipeError).value))
    jsonschema.validate(value, json.loads(schema.read_text()))


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('train: {entrypoint: "t:main", workers: "${{ params.w }}"}', True),
        ('train: {entrypoint: "t:main", workers: "two"}', False),
        ('train: {entrypoint: "t:main", worker: 2}', False),
        ('train: {command: "python x.py", timeout: 5m}', True),
        ('targets: [{name: npu, format: "${{ params.f }}"}]', True),
        ("targets: [{name: npu, format: omm}]", False),
    ],
)
def test_editors_see_what_the_loader_sees(text: str, fits: bool) -> None:
    value = json.loads(json.dumps(parse_bytes(f"recipe: 1\nname: t\n{text}\n".encode(), "t", RecipeError).value))
    assert jsonschema.Draft202012Validator(recipe_schema()).is_valid(value) is fits
