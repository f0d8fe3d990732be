"""JSON Schema for editors: completion, descriptions, and red lines before anything runs."""

from __future__ import annotations

import json
from typing import Any, cast

from pydantic import BaseModel

from orchestrator.recipe.model import Recipe

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEMPLATE: dict[str, Any] = {"type": "string", "pattern": r"^\s*\$\{\{\s*params\.[A-Za-z_][A-Za-z0-9_]*\s*\}\}\s*$"}


def recipe_schema() -> dict[str, Any]:
    """Return the schema of a recipe; every value may also be a `${{ params.NAME }}`."""
    return cast("dict[str, Any]", _allow_templates(model_schema(Recipe, "orchestrate recipe")))


def model_schema(model: type[BaseModel], title: str) -> dict[str, Any]:
    """Return the schema of any of our files."""
    schema = cast("dict[str, Any]", _without_titles(model.model_json_schema()))
    return {"$schema": _DIALECT, "title": title, **schema}


def schema_text(schema: dict[str, Any]) -> str:
    """Return the checked-in form: indented JSON with a final newline."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _without_titles(node: object) -> object:
    """Drop the titles that pydantic makes from names; editors would show them in place of the descriptions."""
    if isinstance(node, dict):
        pairs = cast("dict[str, object]", node).items()
        return {key: _without_titles(item) for key, item in pairs if not (key == "title" and isinstance(item, str))}
    if isinstance(node, list):
        return [_without_titles(item) for item in cast("list[object]", node)]
    return node


def _allow_templates(node: object) -> object:
    if isinstance(node, list):
        return [_allow_templates(item) for item in cast("list[object]", node)]
    if not isinstance(node, dict):
        return node
    schema = {key: _allow_templates(item) for key, item in cast("dict[str, object]", node).items()}
    if schema.get("type") not in ("integer", "number", "boolean") and not ("enum" in schema and "type" in schema):
        return schema
    if "const" in schema:
        return schema
    kept = {key: schema.pop(key) for key in ("description", "default", "examples") if key in schema}
    return {"anyOf": [schema, _TEMPLATE], **kept}
