"""The environment: where things run. Only what works today is accepted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, PrivateAttr
from pydantic_core import PydanticCustomError

from orchestrator.core.redact import redact_url
from orchestrator.environment.pool import Pool
from orchestrator.environment.serving import Serving
from orchestrator.recipe.fields import FilePath, Flag, Model, Name, Text, Version

_TRACKING: Final = re.compile(r"sqlite|none|https?://[^\s/]+\S*")
_LEDGER: Final = re.compile(r"sqlite:////\S+|postgresql(?:\+psycopg)?://\S+")


def _tracking(value: str) -> str:
    if not _TRACKING.fullmatch(value):
        raise _wrong(
            f"{redact_url(value)!r} is no address of MLflow (write `sqlite`, `none`, or http:// or https:// and a host)"
        )
    if "@" in value.partition("://")[2].partition("/")[0]:
        raise _wrong(
            "a user name or password stands in the address; give them by MLFLOW_TRACKING_USERNAME and _PASSWORD"
        )
    return value


def _ledger(value: str) -> str:
    if not _LEDGER.fullmatch(value):
        known = "sqlite:////absolute/path or postgresql+psycopg://host/database"
        raise _wrong(f"{redact_url(value)!r} is no address of a ledger (write {known})")
    return value


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("wrong_value", "{text}", {"text": message})


def _under_state(value: str) -> str:
    path = Path(value)
    if path.is_absolute() or ".." in path.parts or "://" in value:
        raise _wrong(f"{value!r} is not a folder under `state`")
    return value


class Tracking(Model):
    """The MLflow that shows what happened."""

    uri: Annotated[Text, AfterValidator(_tracking)] = Field(
        "sqlite", description="`sqlite` (a database under state), the http(s) address of an MLflow server, or `none`."
    )


class LedgerSettings(Model):
    """Where the truth is kept."""

    url: Annotated[Text, AfterValidator(_ledger)] | None = Field(
        None, description="Database URL: sqlite:////path or postgresql+psycopg://...; SQLite under state when absent."
    )


class Site(Model):
    """A place with one Ray cluster."""

    kind: Literal["local"] = Field(description="local: a Ray head on this machine that `orchestrate up` supervises.")
    allow_cpu: Flag = Field(
        False, description="Training may use a CPU where the recipe asks for no GPU or there is none."
    )
    serving: Serving = Field(Serving(), description="How clients are answered.")  # pyright: ignore[reportCallIssue]
    approvers: FilePath | None = Field(
        None,
        description="Who may approve and operate rollouts: one `id:sha256:role,...[:expiry]` a line, mode 0600; "
        "`rollout token` writes it.",
    )


class Tools(Model):
    """Programs of the Ascend toolchain; each has an interpreter of its own, because their libraries do not mix."""

    mindspore_lite_python: FilePath | None = Field(None, description="Python that has mindspore_lite.")
    onnxruntime_cann_python: FilePath | None = Field(None, description="Python that has onnxruntime-cann (NumPy < 2).")
    atc: FilePath | None = Field(None, description="The ATC compiler of CANN.")
    cann_env: FilePath | None = Field(
        None, description="CANN's set_env.sh, for replicas on real devices; the installed CANN's when absent."
    )


class Environment(Model):
    """A whole environment."""

    environment: Version = Field(description="Version of this format: 1.")
    state: FilePath = Field(
        ".orchestrate", description="Folder of ledger, logs, sockets and store; relative to the current folder."
    )
    store: Annotated[FilePath, AfterValidator(_under_state)] = Field(
        "store", description="Folder of the artifact store, under state."
    )
    tracking: Tracking = Field(Tracking(), description="MLflow.")  # pyright: ignore[reportCallIssue]
    ledger: LedgerSettings = Field(LedgerSettings(), description="The ledger.")  # pyright: ignore[reportCallIssue]
    sites: dict[Name, Site] = Field(description="Sites by name; the first one trains.", min_length=1)
    pools: dict[Name, Pool] = Field({}, description="Pools by name.")
    tools: Tools = Field(Tools(), description="Tools by name.")  # pyright: ignore[reportCallIssue]

    _base: Path = PrivateAttr(default_factory=Path.cwd)

    @property
    def state_path(self) -> Path:
        """Absolute folder of the state; a relative `state` counts from the folder that was current at loading."""
        return self._base / Path(self.state).expanduser()

    @property
    def store_path(self) -> Path:
        """Absolute folder of the artifact store."""
        return self.state_path / self.store
