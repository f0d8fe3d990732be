"""Templates to pages: everything is escaped and secrets are masked."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.console import charts
from orchestrator.console.sessions import Session
from orchestrator.console.view import GenerationView
from orchestrator.core.digests import short
from orchestrator.core.redact import redact_text
from orchestrator.rollout.identity import Role

_FOLDER: Final = Path(__file__).parent / "templates"
_PARTS: Final = {"stable": 0, "canary": 1, "": 2}


def make_pages() -> Environment:
    """Return the templates, with their filters."""
    pages = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_masked,
    )
    pages.filters.update(
        short=short, iso=_iso, clock=_clock, when=_when, span=_span, ms=_ms, percent=_percent, count=_count
    )
    pages.globals |= dict[str, Any](
        width=charts.WIDTH,
        height=charts.HEIGHT,
        part_number=_part_number,
        allowed=_allowed,
        style=Markup((_FOLDER / "style.css").read_text(encoding="utf-8")),  # noqa: S704  # our own file
        script=Markup((_FOLDER / "refresh.js").read_text(encoding="utf-8")),  # noqa: S704  # our own file
    )
    return pages


def render(pages: Environment, name: str, **values: Any) -> str:
    """Return a page.

    Args:
        pages: Of `make_pages`.
        name: File name of the template.
        values: What it shows; `nonce`, `session`, `flash`, `can_sign_in`, `here` and `refreshes` are for every page.
    """
    values.setdefault("now", time.time())
    return pages.get_template(name).render(**values)


def _masked(value: object) -> object:
    return redact_text(value) if type(value) is str else value


def _part_number(generation: GenerationView) -> int:
    return _PARTS[generation.part]


def _allowed(role: Role, session: Session) -> bool:
    return session.identity.may(role)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S UTC")


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _span(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for size, letter in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {letter}"
    return f"{seconds:.0f} s"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def _count(value: int) -> str:
    return f"{value:,}"


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"
