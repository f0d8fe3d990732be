"""What `promote` was asked for: a name of MLflow's registry or a digest, made into files that this site has and has verified.

MLflow may say which bundle a name stands for; whether there is such a bundle, what is in it and what was compiled from it, the
ledger and the store say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.app.wiring import Workplace
from orchestrator.core.digests import hex_of, is_digest
from orchestrator.core.errors import (
    IntegrityError,
    StoreError,
    TrackingError,
    Unreachable,
    UsageError,
)
from orchestrator.ledger import Ledger

if TYPE_CHECKING:
    from orchestrator.tracking.lookup import VersionView

_MODEL: Final = re.compile(r"(?:models:/)?(?P<name>[^@/:\s]+)(?:@(?P<alias>[^@/\s]+)|/(?P<version>[1-9][0-9]{0,9}))?")
_HINT: Final = "give MODEL, MODEL@alias, MODEL/version or the bundle's sha256 digest"


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, in parts; either a digest or a registered model's name."""

    text: str
    digest: str = ""
    name: str = ""
    alias: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """A bundle that is here and whole.

    Attributes:
        bundle: Digest that clients see.
        artifact: Digest of the stored artifact; empty where only the unpacked bundle is here.
        path: The unpacked bundle.
        source: How it was named: {model, version, alias}; empty for a digest.
    """

    bundle: str
    artifact: str
    path: Path
    source: Mapping[str, str] = field(default_factory=dict[str, str])


def parse_model(text: str) -> Asked:
    """Take a model's name apart.

    Raises:
        UsageError: It is neither a digest nor a name.
    """
    if text.startswith("sha256:"):
        if not is_digest(text):
            raise UsageError(f"{text!r} is no digest", hint="a digest is sha256: and 64 hex digits")
        return Asked(text, digest=text)
    match = _MODEL.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no model", hint=_HINT)
    return Asked(text, name=match["name"], alias=match["alias"] or "", version=match["version"] or "")


def find_release(workplace: Workplace, ledger: Ledger, asked: Asked) -> Release:
    """Return the verified release that was asked for.

    Raises:
        UsageError: MLflow has no such model, or its version names no bundle; or the ledger does not know it.
        IntegrityError: Its files are not what the digest says.
        Unreachable: A name was given and MLflow does not answer; a digest needs no MLflow.
    """
    if asked.digest:
        return open_release(workplace, ledger, asked.digest)
    version = look_up(workplace, asked)
    found = open_release(workplace, ledger, bundle_of(workplace, ledger, version))
    source = {"model": version.name, "version": version.version}
    return replace(found, source=source | ({"alias": asked.alias} if asked.alias else {}))


def look_up(workplace: Workplace, asked: Asked) -> VersionView:
    """Ask MLflow which version a name stands for."""
    from orchestrator.tracking.client import Gone
    from orchestrator.tracking.lookup import Registry

    if not workplace.tracking_uri:
        raise UsageError(f"{asked.text!r} is a name of MLflow, and this environment has none", hint=_HINT)
    try:
        registry = Registry(workplace.tracking_uri, workplace.artifact_root)
        return registry.version(asked.name, version=asked.version, alias=asked.alias)
    except Unreachable as error:
        hint = "a promotion by the bundle's digest needs no MLflow: orchestrate promote sha256:…"
        raise Unreachable(error.message, place=error.place, hint=hint) from error
    except Gone as error:
        raise UsageError(f"MLflow has no {asked.text!r}: {error.message}", hint=_HINT) from error
    except TrackingError as error:
        raise UsageError(f"MLflow refused {asked.text!r}: {error.message}", hint=_HINT) from error


def bundle_of(workplace: Workplace, ledger: Ledger, version: VersionView) -> str:
    """Return the bundle that a version stands for: what its tag says, else the one bundle that was made from its model.

    Raises:
        UsageError: No bundle, or several.
    """
    shown = f"version {version.version} of {version.name}"
    if version.bundle:
        if not is_digest(version.bundle):
            raise UsageError(f"{shown} names {version.bundle[:80]!r}, which is no digest", hint=_HINT)
        return version.bundle
    made = ledger.artifacts.children(version.artifact) if is_digest(version.artifact) else ()
    bundles = {_digest_of(workplace, each) for each in made if _kind(ledger, each) == "bundle"} - {""}
    if len(bundles) == 1:
        return bundles.pop()
    found = f"{len(bundles)} bundles were made from it" if bundles else "no bundle is known to be made from it"
    raise UsageError(f"{shown} has no tag orch.bundle, and {found}", hint="promote the bundle by its sha256 digest")


def open_release(workplace: Workplace, ledger: Ledger, bundle: str) -> Release:
    """Return a bundle of this site, every byte verified.

    Args:
        workplace: Whose store.
        ledger: What knows it.
        bundle: Digest of the bundle, or of the stored artifact that holds it.

    Raises:
        UsageError: Neither the ledger nor the store knows it.
        IntegrityError: Its files are damaged.
    """
    from orchestrator.bundle.oci import open_unpacked, unpack

    artifact = _artifact_of(workplace, ledger, bundle)
    if artifact:
        layout = workplace.store.path(artifact)
        digest = _digest_of(workplace, artifact) if artifact == bundle else bundle
        return Release(digest, artifact, unpack(layout, workplace.bundles, expected=digest))
    folder = workplace.bundles / hex_of(bundle)
    known = any(g.bundle == bundle for name in ledger.generations.endpoints() for g in ledger.generations.list(name))
    if known and folder.is_dir():
        open_unpacked(folder)
        return Release(bundle, "", folder)
    what = "its files are no longer here" if known else "the ledger does not know it"
    raise UsageError(f"bundle {bundle} cannot be served: {what}", hint="run its recipe here, or give another digest")


def _artifact_of(workplace: Workplace, ledger: Ledger, bundle: str) -> str:
    """Return the stored artifact that holds a bundle and whose files are here; empty without one."""
    generations = [g for name in ledger.generations.endpoints() for g in ledger.generations.list(name)]
    known = [g.artifact for g in generations if g.bundle == bundle and g.artifact]
    known += [row.digest for row in ledger.artifacts.list("bundle", limit=10_000) if row.digest not in known]
    for artifact in dict.fromkeys(known):
        if workplace.store.has(artifact) and bundle in {artifact, _digest_of(workplace, artifact)}:
            return artifact
    return ""


def _digest_of(workplace: Workplace, artifact: str) -> str:
    from orchestrator.bundle.oci import bundle_digest

    try:
        return bundle_digest(workplace.store.path(artifact))
    except (StoreError, IntegrityError):
        return ""  # collected or damaged: it stands for nothing that could be served


def _kind(ledger: Ledger, digest: str) -> str:
    row = ledger.artifacts.get(digest)
    return row.kind if row is not None else ""
