"""Looking at MLflow's registry: what a name, a version or an alias stands for. A reading, never the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from orchestrator.core.errors import Unreachable
from orchestrator.tracking.aliases import kinds_of
from orchestrator.tracking.client import Session, session_for
from orchestrator.tracking.projector import artifacts_at

T = TypeVar("T")

BUDGET_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version of a registered model.

    Attributes:
        name: The registered model.
        version: Its number, as a text.
        bundle: Digest of the bundle that its tag `orch.bundle` names; empty without one.
        artifact: Digest of the model itself, of its tag `orch.sha256`; empty without one.
    """

    name: str
    version: str
    bundle: str
    artifact: str


class Registry:
    """MLflow's registry at one address; every call ends within the budget.

    Raises:
        Unreachable: It does not answer, or did not a moment ago.
        Gone: There is no such model, version or alias.
        TrackingError: It refused.
    """

    def __init__(self, uri: str, artifact_root: Path | None, budget_s: float = BUDGET_S) -> None:
        self._session = session_for(uri, artifacts_at(uri, artifact_root))
        self._budget_s = budget_s

    def version(self, name: str, *, version: str = "", alias: str = "") -> VersionView:
        """Return a version by its number or by an alias; the newest when neither is given."""

        def ask(client: Any) -> Any:
            if alias:
                return client.get_model_version_by_alias(name, alias)
            return client.get_model_version(name, version or _newest(client, name))

        return self._ask(f"look up {name}", lambda session: _view(session.run(f"look up {name}", ask)))

    def aliases(self, recipe: str) -> Mapping[str, Mapping[str, str]]:
        """Return registered model -> alias -> version, of all models of a recipe."""

        def ask(client: Any) -> dict[str, dict[str, str]]:
            names = [model.name for model in client.search_registered_models(f"name LIKE '{recipe}%'", max_results=200)]
            shown = {name: client.get_registered_model(name).aliases for name in kinds_of(recipe, names)}
            return {name: {str(alias): str(v) for alias, v in of.items()} for name, of in shown.items()}

        return self._ask(f"aliases of {recipe}", lambda session: session.run(f"aliases of {recipe}", ask))

    def _ask(self, what: str, work: Callable[[Session], T]) -> T:
        session = self._session
        if not session.lock.acquire(timeout=self._budget_s):
            raise Unreachable(f"{what}: another thread of this process is talking to MLflow")
        try:
            wait_s = session.breaker_s()
            if wait_s:
                raise Unreachable(f"{what}: MLflow did not answer; next attempt in {wait_s:.0f} s")
            session.begin(self._budget_s)
            try:
                found = work(session)
            except Unreachable:
                session.failed()
                raise
            session.succeeded()
            return found
        finally:
            session.lock.release()


def _newest(client: Any, name: str) -> str:
    client.get_registered_model(name)  # says so when there is none
    versions = client.search_model_versions(f"name = '{name}'", max_results=1000)
    return str(max((int(version.version) for version in versions), default=0))


def _view(version: Any) -> VersionView:
    tags: Mapping[str, str] = version.tags
    return VersionView(
        str(version.name), str(version.version), tags.get("orch.bundle", ""), tags.get("orch.sha256", "")
    )
