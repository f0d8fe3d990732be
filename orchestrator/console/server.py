"""The console's HTTP: pages for all who may look, buttons for those who have signed in."""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from orchestrator.console.actions import ACTIONS, Actions
from orchestrator.console.gather import Gather
from orchestrator.console.render import make_pages, render
from orchestrator.console.sessions import LASTS_S, Flash, Session, Sessions
from orchestrator.core.errors import OrchestratorError, UsageError
from orchestrator.core.ids import is_name, new_token
from orchestrator.core.redact import redact_text

_MOST_BODY: Final = 16 * 1024
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_FORM: Final = "application/x-www-form-urlencoded"
_FIXED: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with `no-referrer` a browser would send `Origin: null` with our own forms
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """How the console is reached.

    Attributes:
        port: Names the cookie: cookies know no ports.
        loopback: Whether it listens on this machine alone; else looking needs a session as well.
        secure: Whether it speaks TLS.
    """

    port: int
    loopback: bool
    secure: bool = False

    @property
    def cookie(self) -> str:
        """Name of the session's cookie."""
        return f"{'__Host-' if self.secure else ''}orchestrate-{self.port}"


class Console:
    """The handlers.

    Args:
        gather: Reads what the pages show.
        actions: Does what the buttons say.
        sessions: Who is signed in.
        door: How the console is reached.
    """

    def __init__(self, gather: Gather, actions: Actions, sessions: Sessions, door: Door) -> None:
        self._gather, self._actions, self._sessions, self._door = gather, actions, sessions, door
        self._pages = make_pages()

    def app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route("/", self._guarded(self._index)),
                Route("/login", self._login_page),
                Route("/login", self._login, methods=["POST"]),
                Route("/logout", self._logout, methods=["POST"]),
                Route("/endpoints/{name}", self._guarded(self._endpoint)),
                Route("/endpoints/{name}/{action}", self._act, methods=["POST"]),
            ],
            exception_handlers={HTTPException: self._problem, OrchestratorError: self._failed},  # pyright: ignore[reportArgumentType]
        )

    # --- pages

    def _guarded(self, page: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            self._check_host(request)
            if not self._door.loopback and self._session(request) is None:
                return RedirectResponse(f"/login?next={quote(request.url.path)}", 303, headers=_FIXED)
            return await page(request)

        return handle

    async def _index(self, request: Request) -> Response:
        rows = await run_in_threadpool(self._gather.endpoints)
        return self._page(request, "index.html", refreshes=True, rows=rows)

    async def _endpoint(self, request: Request) -> Response:
        name = request.path_params["name"]
        found = await run_in_threadpool(self._gather.endpoint, name) if is_name(name) else None
        if found is None:
            raise HTTPException(404, "There is no such endpoint.")
        window = next((g.traffic.window_s for g in found.generations if g.traffic is not None), None)
        return self._page(request, "endpoint.html", refreshes=True, e=found, window=window)

    async def _login_page(self, request: Request) -> Response:
        self._check_host(request)
        return self._page(request, "login.html", next=_local(request.query_params.get("next", "/")), wrong="")

    # --- buttons

    async def _login(self, request: Request) -> Response:
        form = await self._form(request)
        after = _local(form.get("next", "/"))
        try:
            key = await run_in_threadpool(self._sessions.sign_in, form.get("token", ""))
        except UsageError as error:
            if self._sessions.blocked():  # whoever has a token gets in all the same: nobody can lock others out
                raise HTTPException(429, "Too many wrong tokens: wait a minute.") from error
            return self._page(request, "login.html", status=403, next=after, wrong=_sentence(error.message))
        answer = RedirectResponse(after, 303, headers=_FIXED)
        answer.set_cookie(
            self._door.cookie, key, max_age=int(LASTS_S), httponly=True, samesite="strict", secure=self._door.secure
        )
        return answer

    async def _logout(self, request: Request) -> Response:
        await self._signed(request)
        self._sessions.sign_out(request.cookies.get(self._door.cookie))
        answer = RedirectResponse("/", 303, headers=_FIXED)
        answer.delete_cookie(self._door.cookie, httponly=True, samesite="strict", secure=self._door.secure)
        return answer

    async def _act(self, request: Request) -> Response:
        name, action = request.path_params["name"], request.path_params["action"]
        session, form = await self._signed(request)
        if action not in ACTIONS or not is_name(name):
            raise HTTPException(404, "There is no such button.")
        try:
            said = await run_in_threadpool(self._actions.do, action, name, form, session.identity)
        except OrchestratorError as error:
            hint = f" ({error.hint})" if error.hint else ""
            session.flash = Flash("failed", redact_text(_sentence(error.message + hint)))
        else:
            session.flash = Flash("done", said)
        return RedirectResponse(f"/endpoints/{quote(name)}", 303, headers=_FIXED)

    # --- what all share

    async def _signed(self, request: Request) -> tuple[Session, Mapping[str, str]]:
        form = await self._form(request)
        session = self._session(request)
        if session is None:
            raise HTTPException(401, "You are not signed in, or your token is no longer valid.")
        if not session.same_form(form.get("csrf", "")):
            raise HTTPException(403, "The form is not of this session: go back, load the page again and repeat.")
        return session, form

    async def _form(self, request: Request) -> Mapping[str, str]:
        self._check_host(request)
        origin = request.headers.get("origin")
        if origin is not None and _netloc(origin) != request.headers.get("host", ""):
            raise HTTPException(403, "The form came from another site.")
        if request.headers.get("content-type", "").partition(";")[0].strip() != _FORM:
            raise HTTPException(415, "Forms are sent URL-encoded.")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BODY:
                raise HTTPException(413, "The form is too large.")
        try:
            pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=32)
        except ValueError as error:
            raise HTTPException(400, "The form cannot be read.") from error
        return dict(pairs)

    def _session(self, request: Request) -> Session | None:
        return self._sessions.find(request.cookies.get(self._door.cookie))

    def _check_host(self, request: Request) -> None:
        """Refuse names that a stranger's DNS makes point to this machine."""
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self._door.loopback and name.lower() not in _LOOPBACK:
            raise HTTPException(421, "The console answers to localhost and 127.0.0.1 alone.")

    def _page(
        self, request: Request, name: str, *, status: int = 200, refreshes: bool = False, **values: Any
    ) -> Response:
        session, nonce = self._session(request), new_token(16)
        text = render(
            self._pages,
            name,
            nonce=nonce,
            session=session,
            flash=session.take_flash() if session is not None and refreshes and request.method == "GET" else None,
            can_sign_in=self._sessions.open,
            here=request.url.path,
            refreshes=refreshes,
            **values,
        )
        return HTMLResponse(text, status, headers={**_FIXED, "content-security-policy": _policy(nonce)})

    async def _problem(self, request: Request, error: HTTPException) -> Response:
        if error.status_code == 421:
            return Response(f"{html.escape(error.detail)}\n", 421, headers=_FIXED, media_type="text/plain")
        heading, back = ("Not found", "/") if error.status_code == 404 else ("That did not work", "/")
        if error.status_code == 401 and self._sessions.open:
            back = "/login"
        return self._page(
            request,
            "problem.html",
            status=error.status_code,
            heading=heading,
            text=error.detail,
            back=back,
            tone="warn",
        )

    async def _failed(self, request: Request, error: OrchestratorError) -> Response:
        text = _sentence(error.message) + (f" Fix: {error.hint}" if error.hint else "")
        return self._page(
            request, "problem.html", status=503, heading="Nothing to show", text=text, back=request.url.path, tone="bad"
        )


def _policy(nonce: str) -> str:
    return (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _local(path: str) -> str:
    """Return `path` where it is a page of ours, else the first page: nobody is led away by a link to `/login`."""
    parts = [part for part in path.split("/") if part]
    known = path == "/" or (path.startswith("/endpoints/") and len(parts) == 2 and is_name(parts[1]))
    return path if known else "/"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", ")")) else ".")
