"""schemathesis against the live router: what `fixtures/oip.openapi.json` says is what it does; no 500, every error typed."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks
from support.serving_site import ServingSite

EXAMPLES = int(os.environ.get("ORCHESTRATE_TEST_OPENAPI_EXAMPLES", "8"))
CONFIG = schemathesis.Config.from_dict({"phases": {"coverage": {"enabled": EXAMPLES > 100}}})
SCHEMA = schemathesis.openapi.from_path(Path(__file__).parents[1] / "fixtures" / "oip.openapi.json", config=CONFIG)
CHECKS = checks.CHECKS.get_by_names(
    ["status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)
"""The first fails on every 500: no path has one in the document; 503 and 504 are answers where they are there."""


@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_the_router_does_what_its_document_says(case: schemathesis.Case, echo_site: ServingSite) -> None:
    case.call_and_validate(base_url=echo_site.url, checks=CHECKS)


def test_the_document_has_every_path(echo_site: ServingSite) -> None:
    """Each documented path answers, and the examples that are meant to work do."""
    with httpx.Client(base_url=echo_site.url) as client:
        for path, methods in SCHEMA.raw_schema["paths"].items():
            place = path.format(model="int32", version="1")
            if "get" in methods:
                assert client.get(place).status_code == 200, place
            else:
                examples = methods["post"]["requestBody"]["content"]["application/json"].get("examples", {})
                body = examples["whole numbers"]["value"] if examples else {"ready": True}
                assert client.post(place, json=body).status_code == 200, place
