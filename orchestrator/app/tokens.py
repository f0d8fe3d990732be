"""`endpoint token`: a new bearer token for a site's clients."""

from __future__ import annotations

from pathlib import Path

from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import UsageError
from orchestrator.core.files import write_atomic
from orchestrator.core.redact import remember_secret
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


def keep_token(token: str, path: Path) -> None:
    """Write a token into a file of its own that only its owner can read.

    Raises:
        UsageError: The file is there already.
    """
    if path.exists():
        raise UsageError(f"{path} is there already", hint="name another file")
    write_atomic(path, f"{token}\n".encode(), mode=0o600)
