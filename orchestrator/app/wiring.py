"""The only place that chooses concrete parts: which ledger, store, site and tracking an environment means."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.errors import InfraError, PlanError
from orchestrator.core.files import private_folder
from orchestrator.environment import Environment, load_environment

if TYPE_CHECKING:
    from orchestrator.bundle.store import Store
    from orchestrator.cluster.site import LocalSite
    from orchestrator.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Workplace:
    """An environment and the folders that it means on this machine."""

    environment: Environment
    path: Path | None

    @property
    def state(self) -> Path:
        """Everything that we keep: ledger, store, logs, sockets."""
        return self.environment.state_path

    @property
    def name(self) -> str:
        """What to call the environment in messages and lineage."""
        return self.path.stem if self.path is not None else "local"

    @property
    def store(self) -> Store:
        """The artifact store."""
        from orchestrator.bundle.store import Store

        return Store(self.state / self.environment.store)

    @property
    def work(self) -> Path:
        """Private folders of steps by fingerprint."""
        return self.state / "work"

    @property
    def bundles(self) -> Path:
        """Unpacked, verified bundles that replicas read."""
        return self.state / "bundles"

    @property
    def tracking_uri(self) -> str:
        """MLflow's address; `sqlite` in the file means a database under state, `none` is an empty address."""
        uri = self.environment.tracking.uri
        if uri == "none":
            return ""
        return f"sqlite:///{self.state / 'mlflow.db'}" if uri == "sqlite" else uri

    @property
    def artifact_root(self) -> Path:
        """Where MLflow keeps its copies when it is the embedded one."""
        return self.state / "mlartifacts"

    def execution_folder(self, execution: str) -> Path:
        """Logs, segments and events of an execution."""
        return self.state / "executions" / execution

    def open_ledger(self, *, busy_timeout_s: float = 30.0) -> Ledger:
        """Open the ledger; makes or migrates it where needed.

        Args:
            busy_timeout_s: How long a write waits for another process that writes.
        """
        from orchestrator.ledger import Ledger

        if set(str(self.state)) & set("?#%"):  # database URLs, ours and MLflow's, would take the rest for options
            raise InfraError(
                f"the state folder {self.state} has one of ? # % in its path", hint="set `state` to another folder"
            )
        try:
            private_folder(self.state)
        except OSError as error:
            raise InfraError(
                f"cannot use {self.state} as the state folder: {error.strerror}",
                hint="make it a folder of yours that you may write, or set `state` in the environment",
            ) from error
        url = self.environment.ledger.url or f"sqlite:///{self.state / 'ledger.db'}"
        return Ledger.open(url, busy_timeout_s=busy_timeout_s)

    @contextmanager
    def look_into_ledger(self) -> Generator[Ledger]:
        """Open the ledger only to look: where there is none yet, it is empty and nothing is made on disk."""
        if self.environment.ledger.url is not None or (self.state / "ledger.db").exists():
            with self.open_ledger() as ledger:
                yield ledger
            return
        from tempfile import TemporaryDirectory

        from orchestrator.ledger import Ledger

        with (
            TemporaryDirectory(prefix="orchestrate-") as folder,
            Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger,
        ):
            yield ledger

    def site(self, name: str = "") -> LocalSite:
        """Return the settings of a site; of the only one when unnamed.

        Raises:
            PlanError: The environment has no such site.
        """
        from orchestrator.cluster.pool import local_pool
        from orchestrator.cluster.serving import local_serving
        from orchestrator.cluster.site import LocalSite

        sites = self.environment.sites
        name = name or next(iter(sites))
        if name not in sites:
            raise PlanError(f"the environment has no site {name!r}", hint=f"sites: {', '.join(sites)}")
        pools = {pool_name: local_pool(pool) for pool_name, pool in self.environment.pools.items() if pool.site == name}
        named = self.environment.tools.model_dump().items()
        tools = {tool: str(Path(path).expanduser().absolute()) for tool, path in named if path is not None}
        return LocalSite(name, self.state, pools, tools, local_serving(sites[name].serving))


def open_workplace(path: Path | None) -> Workplace:
    """Read an environment file, or take the embedded default."""
    return Workplace(load_environment(path), path)
