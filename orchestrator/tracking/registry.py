"""Registered models: `<recipe>` holds checkpoints, `<recipe>.<kind>` the others; aliases point at what is where.

An alias is a picture of what the ledgers decided. It moves forward only: MLflow has no compare-and-set, so the registered
model's tags say which generation (and which moment) its aliases show, and an older execution that is mirrored again, or
late, changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from orchestrator.tracking.call import KEY_TAG, Call, Record
from orchestrator.tracking.client import Exists
from orchestrator.tracking.limits import TAG_MAX_CHARS, fit
from orchestrator.tracking.models import put_model_tags
from orchestrator.tracking.pages import registered_page
from orchestrator.tracking.snapshot import ArtifactRef, Deployment

CANDIDATE: Final = "candidate"
LIVE: Final = "live"
PREVIOUS: Final = "previous"
_CANDIDATE_AT: Final = "orch.candidate_at_ms"
LIVE_AT: Final = "orch.live_at_ms"


def registered_name(recipe: str, kind: str) -> str:
    """Return the registered model that holds versions of this kind."""
    return recipe if kind == "checkpoint" else f"{recipe}.{kind}"


def ensure_version(call: Call, ref: ArtifactRef, model: Record, run_id: str | None) -> Record:
    """Return the record (its id is the version's number) of the registered version of a LoggedModel."""
    name = registered_name(call.snapshot.recipe, ref.kind)
    _ensure_registered(call, name)

    def find() -> list[str]:
        query = f"name = '{name}' and source_path = 'models:/{model.id}'"
        versions = call.session.run(f"find version {name}", lambda c: c.search_model_versions(query, max_results=50))
        return sorted((str(version.version) for version in versions), key=int)

    def create() -> str:
        tags = {KEY_TAG: f"version:{ref.digest}", "orch.sha256": ref.digest, "orch.exec": call.snapshot.id}
        version = call.session.run(
            f"create version {name}",
            lambda c: c.create_model_version(
                name, f"models:/{model.id}", run_id=run_id, tags=tags, model_id=model.id, await_creation_for=0
            ),
        )
        return str(version.version)

    def delete(version: str) -> None:
        call.session.run(f"delete the double {name} {version}", lambda c: c.delete_model_version(name, version))

    record = call.ensure(f"version:{name}:{ref.digest}", find=find, create=create, delete=delete)
    call.urls[f"registered:{name}"] = registered_page(name, record.id)
    link = json.dumps([{"name": name, "version": int(record.id)}])
    with call.keeping(model):
        put_model_tags(call, model, {"mlflow.modelVersions": link}, "version link")
    return record


def _ensure_registered(call: Call, name: str) -> None:
    record = call.memory.record(f"registered:{name}")
    if record.id:
        return
    with suppress(Exists):
        call.session.run(f"register {name}", lambda c: c.create_registered_model(name, tags={"orch.kind": "recipe"}))
    record.id = name
    call.memory.save(record)


def mark_candidate(call: Call, ref: ArtifactRef, version: Record, run: Record, at_ms: int, bundle: str = "") -> None:
    """Let `candidate` point at this version, unless a later registration has it; `run` remembers that it was done.

    `bundle` is the digest of the release that it is in: `orchestrate promote` finds it by that tag.
    """
    name = registered_name(call.snapshot.recipe, ref.kind)
    _put_version_tags(call, name, version, run, {"orch.bundle": bundle})

    def send() -> None:
        shown = _shown(call, name)
        if at_ms < int(shown.tags.get(_CANDIDATE_AT, 0)):
            return
        _point(call, name, CANDIDATE, version.id)
        _tag(call, name, {_CANDIDATE_AT: str(at_ms)})

    call.once(run, f"candidate {name}", [version.id, at_ms], send)


def mark_live(call: Call, ref: ArtifactRef, version: Record, run: Record, deployment: Deployment, at_ms: int) -> None:
    """Let `live` point at this version and `previous` at the one before, unless a later generation has them.

    `run` remembers that it was done: whoever moves an alias by hand afterwards is not overruled.
    """
    name = registered_name(call.snapshot.recipe, ref.kind)
    generation_tag = f"orch.generation.{deployment.endpoint}"

    def send() -> None:
        shown = _shown(call, name)
        newer = int(shown.tags.get(generation_tag, 0)) >= deployment.generation
        if newer or at_ms < int(shown.tags.get(LIVE_AT, 0)):
            return
        before = shown.aliases.get(LIVE)
        if before is not None and str(before) != version.id:
            _point(call, name, PREVIOUS, str(before))
        _point(call, name, LIVE, version.id)
        _tag(call, name, {LIVE_AT: str(at_ms), generation_tag: str(deployment.generation)})

    tags = {
        generation_tag: str(deployment.generation),
        "orch.bundle": deployment.bundle,
        "orch.endpoint": deployment.endpoint,
        "orch.pool": deployment.pool,
        "orch.device": deployment.device,
    }
    _put_version_tags(call, name, version, run, tags)
    call.once(run, f"live {name}", [version.id, deployment.generation, at_ms], send)


def _put_version_tags(call: Call, name: str, version: Record, run: Record, tags: Mapping[str, str]) -> None:

    def send() -> None:
        for key, value in fit({k: v for k, v in tags.items() if v}, TAG_MAX_CHARS, "tags").values.items():
            call.session.run(
                f"tag {name} {version.id}", lambda c, k=key, v=value: c.set_model_version_tag(name, version.id, k, v)
            )

    call.once(run, f"version tags {name}", [version.id, dict(tags)], send)


def _shown(call: Call, name: str) -> Any:
    return call.session.run(f"look at {name}", lambda c: c.get_registered_model(name))


def _point(call: Call, name: str, alias: str, version: str) -> None:
    call.session.run(f"alias {name}@{alias}", lambda c: c.set_registered_model_alias(name, alias, version))


def _tag(call: Call, name: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        call.session.run(f"tag {name}", lambda c, k=key, v=value: c.set_registered_model_tag(name, k, v))
