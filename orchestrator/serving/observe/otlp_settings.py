"""Where spans go: the setting, or the variables of the OpenTelemetry specification.

Read are OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, the same with _HEADERS, OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER_ARG, OTEL_TRACES_EXPORTER and OTEL_SDK_DISABLED.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from orchestrator import __version__

_RATIO: Final = 0.01


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """Where spans go and what they say of this process.

    Attributes:
        url: Of the collector's `/v1/traces`.
        ratio: Share of the requests without a `traceparent` that are sampled.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    resource: Mapping[str, str] = field(default_factory=dict[str, str])
    ratio: float = _RATIO


def otlp_settings(endpoint: str, variables: Mapping[str, str] = os.environ) -> OtlpSettings | None:
    """Return the settings; None where neither `endpoint` nor the variables name a collector."""
    if variables.get("OTEL_SDK_DISABLED", "").lower() == "true" or variables.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    exact = "" if endpoint else variables.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    base = endpoint or variables.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    if not exact and not base:
        return None
    url = exact or (base if base.endswith("/v1/traces") else f"{base.rstrip('/')}/v1/traces")
    raw = variables.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or variables.get("OTEL_EXPORTER_OTLP_HEADERS", "")
    resource = _pairs(variables.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    resource["service.name"] = variables.get("OTEL_SERVICE_NAME") or resource.get("service.name", "orchestrate-router")
    resource["service.version"] = __version__
    try:
        ratio = min(1.0, max(0.0, float(variables.get("OTEL_TRACES_SAMPLER_ARG", _RATIO))))
    except ValueError:
        ratio = _RATIO
    return OtlpSettings(url, _pairs(raw), resource, ratio)


def _pairs(text: str) -> dict[str, str]:
    found = (pair.partition("=") for pair in text.split(",") if "=" in pair)
    return {key.strip(): unquote(value.strip()) for key, _, value in found}
