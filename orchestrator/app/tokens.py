"""`endpoint token` and `rollout token`: a new token for a site's clients, or for those who approve and operate rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import UsageError
from orchestrator.core.files import write_atomic
from orchestrator.core.redact import remember_secret
from orchestrator.rollout.identity import Identities, add_identity
from orchestrator.serving.router.auth import add_token


def make_token(
    workplace: Workplace, name: str, *, site: str = "", rate_per_s: float | None = None, burst: float | None = None
) -> tuple[str, Path]:
    """Add a token to the site's file, which its routers see within a second; returns the token and the file.

    Raises:
        UsageError: The site has no tokens file, the name is taken, or a limit makes no sense.
    """
    settings = workplace.site(site)
    if not settings.serving.tokens_file:
        raise UsageError(
            f"site {settings.name} has no tokens file: everyone who reaches it may ask",
            hint=f"set sites.{settings.name}.serving.tokens_file in the environment",
        )
    if burst is not None and rate_per_s is None:
        raise UsageError("--burst says how far a rate may be exceeded", hint="give --rate as well")
    path = Path(settings.serving.tokens_file)
    token = add_token(path, name, rate_per_s, burst)
    remember_secret(token)
    return token, path


def approvers_file(workplace: Workplace, site: str = "") -> Path | None:
    """Return the file of those who may approve and operate rollouts of a site (the first one when unnamed), if it has one."""
    name = workplace.site(site).name
    path = workplace.environment.sites[name].approvers
    return None if path is None else Path(path).expanduser().absolute()


def open_identities(workplace: Workplace, site: str = "") -> Identities | None:
    """Return the identities of a site; None where its environment names no file of approvers.

    Raises:
        UsageError: The file cannot be used.
    """
    path = approvers_file(workplace, site)
    return None if path is None else Identities(path)


def make_identity(
    workplace: Workplace, name: str, roles: Sequence[str], *, site: str = "", lasts_s: float | None = None
) -> tuple[str, Path]:
    """Add a token to the site's file of approvers; returns the token and the file.

    Raises:
        UsageError: The site has no such file, a name or role is none, or the id has two tokens already.
    """
    path = approvers_file(workplace, site)
    if path is None:
        name = workplace.site(site).name
        raise UsageError(
            f"site {name} has no file of approvers: there is nobody to give a role to",
            hint=f"set sites.{name}.approvers in the environment",
        )
    return add_identity(path, name, roles, lasts_s), path


def check_out(path: Path | None, *, as_json: bool) -> None:
    """Look whether a new token may go where it was asked for, before it is made.

    Raises:
        UsageError: It would stand in JSON, or the file is there already.
    """
    if path is None and as_json:
        raise UsageError("a token is never written into JSON", hint="name a file for it with --out")
    if path is not None and path.exists():
        raise UsageError(f"{path} is there already", hint="name another file")


def keep_token(token: str, path: Path) -> None:
    """Write a token into a file of its own that only its owner can read.

    Raises:
        UsageError: The file is there already.
    """
    check_out(path, as_json=False)
    write_atomic(path, f"{token}\n".encode(), mode=0o600)
