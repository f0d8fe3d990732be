"""The aliases `live`, `canary` and `previous` of registered models: pictures of what the ledger says an endpoint serves.

What was shown once is remembered: an alias that somebody moves by hand afterwards stays where they put it (and is reported as
drift) until the endpoint itself moves again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from orchestrator.tracking.call import Call, Record
from orchestrator.tracking.client import Gone
from orchestrator.tracking.pages import registered_page
from orchestrator.tracking.registry import LIVE_AT, registered_name
from orchestrator.tracking.rollout_snapshot import AliasSnapshot, Placed
from orchestrator.tracking.snapshot import ProjectionMapping

OURS: Final = ("live", "canary", "previous")


def aliases_key(endpoint: str) -> str:
    """Return the key under which it is remembered where an endpoint's aliases were put."""
    return f"aliases:{endpoint}"


def mirror_aliases(call: Call, shown: AliasSnapshot) -> None:
    """Bring the aliases of an endpoint's models to the snapshot."""
    record = call.memory.record(aliases_key(shown.endpoint))
    record.id = shown.endpoint
    wanted = _wanted(call, shown)
    with call.keeping(record):
        for place, version in wanted.items():
            name, _, alias = place.rpartition("@")
            if record.sent.get(place) != version:
                _point(call, name, alias, version)
                record.sent[place] = version
            call.urls[f"registered:{name}"] = registered_page(name)
        for place in [place for place in record.sent if "@" in place and place not in wanted]:
            _take_away(call, record, place, keep=bool(call.later))
        _stamp(call, record, shown)


def _wanted(call: Call, shown: AliasSnapshot) -> dict[str, str]:
    """Return `<registered model>@<alias>` -> version; a model that MLflow does not have yet is noted for later."""
    wanted: dict[str, str] = {}
    for alias, placed in shown.places.items():
        for name, version in _versions(call, placed).items():
            wanted[f"{name}@{alias}"] = version
    return wanted


def _versions(call: Call, placed: Placed) -> dict[str, str]:
    found: dict[str, str] = {}
    for model in placed.models:
        name = registered_name(placed.recipe, model.kind)
        version = call.memory.record(f"version:{name}:{model.digest}").id
        if version:
            found[name] = version
        elif placed.expected and not model.optional:
            call.later.append(f"generation {placed.generation}: {name} has no version of its {model.kind} yet")
    return found


def _point(call: Call, name: str, alias: str, version: str) -> None:
    call.session.run(f"alias {name}@{alias}", lambda c: c.set_registered_model_alias(name, alias, version))


def _take_away(call: Call, record: Record, place: str, *, keep: bool) -> None:
    """Remove an alias that stands for nothing any more, unless somebody has moved it or it may come back in this call."""
    if keep:
        return
    name, _, alias = place.rpartition("@")
    with suppress(Gone):
        model: Any = call.session.run(f"look at {name}", lambda c: c.get_registered_model(name))
        if str(model.aliases.get(alias, "")) == str(record.sent[place]):
            call.session.run(f"remove {place}", lambda c: c.delete_registered_model_alias(name, alias))
    del record.sent[place]


def _stamp(call: Call, record: Record, shown: AliasSnapshot) -> None:
    """Say which generation the aliases show, so that an older execution that is mirrored late moves nothing back."""
    live = shown.places.get("live")
    if live is None:
        return
    tags = {f"orch.generation.{shown.endpoint}": str(live.generation), LIVE_AT: str(shown.at_ms)}
    of_version = {f"orch.generation.{shown.endpoint}": str(live.generation), "orch.bundle": live.bundle}
    for name, version in _versions(call, live).items():
        call.once(record, f"stamp {name}", tags, lambda name=name: _tag_model(call, name, tags))
        content = [version, of_version]
        call.once(
            record,
            f"version {name}",
            content,
            lambda name=name, version=version: _tag_version(call, name, version, of_version),
        )


def _tag_model(call: Call, name: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        call.session.run(f"tag {name}", lambda c, k=key, v=value: c.set_registered_model_tag(name, k, v))


def _tag_version(call: Call, name: str, version: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        call.session.run(
            f"tag {name} {version}", lambda c, k=key, v=value: c.set_model_version_tag(name, version, k, v)
        )


def placed_aliases(mapping: ProjectionMapping, uri: str, endpoint: str) -> dict[str, str]:
    """Return where we put an endpoint's aliases last: `<registered model>@<alias>` -> version."""
    from orchestrator.tracking.call import Memory

    sent = Memory(mapping, uri).record(aliases_key(endpoint)).sent
    return {place: str(version) for place, version in sent.items() if "@" in place}


def kinds_of(recipe: str, names: Sequence[str]) -> list[str]:
    """Return which registered models are this recipe's: `<recipe>` and `<recipe>.<kind>`."""
    return [name for name in names if name == recipe or name.startswith(f"{recipe}.")]
