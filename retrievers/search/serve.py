"""``python -m retrievers serve``: a local page that searches with one retriever or two.

It has no passwords. What protects it is that it listens on loopback, and that a browser which was
sent here by a foreign page is turned away: by the ``Host`` header where a foreign name was made to
resolve to this machine (DNS rebinding), by ``Origin`` and ``Sec-Fetch-Site`` where a foreign page
sends a request of its own.
"""

from __future__ import annotations

import io
import ipaddress
import socket
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, cast, final

import anyio
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from augment.data.images import open_image
from augment.errors import DataError, EngineError, ImageError, ToolkitError
from retrievers.search.answers import Answer
from retrievers.search.page import MAX_QUERY, Question, render_page

if TYPE_CHECKING:
    from augment.records import Modality
    from retrievers.search.searcher import Searcher

#: Nothing is loaded from elsewhere, nothing inline runs, nobody may frame the page.
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

#: Longest side of a picture as sent, in pixels.
_SIZES = {"small": 420, "large": 1600}

#: Small pictures kept in memory, some 20 KB each.
_KEPT = 512

#: Seconds that a connection may keep silent.
_PATIENCE = 30

#: Connections that wait to be accepted, and those served at once.
_WAITING, _CONNECTIONS = 1024, 500

_LAST_PORT = 65_535

#: A body above the limit is read up to this many times the limit, so that the browser hears why
#: it is refused; beyond that the connection is closed.
_DRAINED = 4


def search_app(searchers: Mapping[str, Searcher], names: Collection[str] = ()) -> ASGIApp:
    """The page, ``search.json`` and pictures, behind the guards of this module.

    Args:
        searchers: name -> searcher, all over one root and with the same ``pictures``.
        names: further names of this server that the ``Host`` header may give.
    """
    site = _Site(searchers)
    routes = [
        Route("/", site.page),
        Route("/search.json", site.json),
        Route("/picture", site.upload, methods=["POST"]),
        Route("/picture/{name}", site.picture),
        Route("/image/{name:path}", site.candidate),
        Mount("/static", StaticFiles(packages=[("retrievers.search", "static")])),
    ]
    return _Guard(Starlette(routes=routes, exception_handlers={Exception: _failed}), names)


@final
class _Guard:
    """Turns away who may not ask, and locks every answer down."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def locked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        request = Request(scope)
        app = self._app
        if foreign_host(request.headers.get("host"), self._names):
            app = _refusal(
                421,
                "this server does not answer to that name; use its address, or start it with "
                "--allow-host NAME",
            )
        elif foreign_page(request.headers):
            app = _refusal(403, "another site may not ask this server")
        await app(scope, receive, locked)


def foreign_host(host: str | None, own: Collection[str]) -> bool:
    """Whether a ``Host`` header names another server.

    Addresses pass, since rebinding needs a name.

    Args:
        host: the header, with or without port.
        own: names of this server besides ``localhost``, in lower case.
    """
    name = (host or "").strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    else:
        name = name.partition(":")[0].rstrip(".")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name != "localhost" and name not in own
    return False


def foreign_page(headers: Mapping[str, str]) -> bool:
    """Whether a page of another origin sends this; following a link to here is no such thing."""
    if headers.get("sec-fetch-site", "none") in ("cross-site", "same-site"):
        return headers.get("sec-fetch-mode") != "navigate"
    origin, host = headers.get("origin"), headers.get("host", "").strip().lower()
    return origin is not None and origin.partition("://")[2].lower() != host


@final
class _Site:
    """Answers of the page; see :func:`search_app`."""

    def __init__(self, searchers: Mapping[str, Searcher]) -> None:
        self._searchers = searchers
        self._first = next(iter(searchers.values()))
        self._pictures = self._first.pictures
        self._small = lru_cache(maxsize=_KEPT)(self._encoded)

    def page(self, request: Request) -> Response:
        """The whole page."""
        fields = request.query_params
        asked, answers, problem = Question(), {}, ""
        try:
            asked = Question.from_fields(fields)
            if asked.query or asked.picture or asked.like or "q" in fields:
                answers = self._search(asked)
        except ToolkitError as error:
            problem = _sentence(error)
            kept = fields.get("picture", "")
            kept = kept if self._pictures.holds(kept) else ""
            asked = Question(query=fields.get("q", "")[:MAX_QUERY], picture=kept)
        text = render_page(self._searchers, asked, answers, problem, self._pictures.max_bytes)
        return HTMLResponse(text, 400 if problem else 200)

    def json(self, request: Request) -> Response:
        """The same search as JSON."""
        try:
            asked = Question.from_fields(request.query_params)
            found = {name: answer.to_json() for name, answer in self._search(asked).items()}
        except ToolkitError as error:
            return _json_refusal(500 if isinstance(error, EngineError) else 400, _sentence(error))
        paces = {name: pace._asdict() for name, searcher in self._searchers.items()
                 if (pace := searcher.pace)}  # fmt: skip
        return JSONResponse({"asked": asdict(asked), "answers": found, "pace": paces})

    async def upload(self, request: Request) -> Response:
        """Keep the picture of a query; answers with its name, or why it cannot be used."""
        kind = request.headers.get("content-type", "text/plain").partition(";")[0].strip().lower()
        length = request.headers.get("content-length", "")
        limit = self._pictures.max_bytes
        if not (length.isascii() and length.isdigit()):
            return _json_refusal(411, "Say how long the picture is (Content-Length).")
        refused: Response | None = None
        # Types that a foreign page cannot send without asking first.
        if not (kind.startswith("image/") or kind == "application/octet-stream"):
            refused = _json_refusal(415, f"A picture is expected, not {kind}.")
        elif int(length[:18]) > limit:
            told = f"The picture has more than {limit / 2**20:.0f} MiB; make it smaller."
            refused = _json_refusal(413, told)
        try:
            data = await _body(request, 0 if refused else limit, limit * _DRAINED)
            return await run_in_threadpool(self._keep, data) if refused is None else refused
        except (ClientDisconnect, TimeoutError):
            return _json_refusal(408, "The picture did not arrive.")

    def _keep(self, data: bytes) -> Response:
        try:
            return JSONResponse({"picture": self._pictures.add(data)})
        except ImageError as error:
            return _json_refusal(413 if error.reason == "too-large" else 415, _sentence(error))

    def picture(self, request: Request) -> Response:
        """A picture that was uploaded."""
        return self._drawn("picture", request)

    def candidate(self, request: Request) -> Response:
        """The picture of a candidate."""
        return self._drawn("image", request)

    def _search(self, asked: Question) -> dict[str, Answer]:
        if asked.like:
            modality = cast("Modality | None", asked.modality.replace("asked", "") or None)
            every = self._searchers.items()
            return {name: each.like(asked.like, asked.k, modality) for name, each in every}
        return {
            name: searcher.search(
                asked.query,
                k=asked.k,
                instruction=asked.given_instruction,
                picture=asked.picture or None,
                modality=asked.modality or None,
                own_picture=asked.own_picture,
            )
            for name, searcher in self._searchers.items()
        }

    def _drawn(self, kind: str, request: Request) -> Response:
        name, size = request.path_params["name"], request.query_params.get("size", "small")
        try:
            body = (self._small if size == "small" else self._encoded)(kind, name, size)
        except ImageError as error:
            return PlainTextResponse(f"{_sentence(error)}\n", 404)
        return Response(body, media_type="image/jpeg")

    def _encoded(self, kind: str, name: str, size: str) -> bytes:
        """A picture drawn anew as JPEG: whatever else its file holds stays here."""
        if kind == "picture":
            image = self._pictures.open(name)
        else:
            # By the id of a candidate: no path comes from the address.
            item = self._first.item(name)
            if item is None or item.image is None:
                raise ImageError("is no candidate with a picture", name, "missing")
            image = open_image(self._first.root, item.image)
        side = _SIZES.get(size, _SIZES["small"])
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        return buffer.getvalue()


async def _body(request: Request, most: int, drained: int) -> bytes:
    """The beginning of a body; what goes beyond it is read and dropped, up to a bound.

    Raises:
        TimeoutError: if nothing came for too long.
    """
    data, size, parts = bytearray(), 0, request.stream()
    while size <= drained:
        with anyio.fail_after(_PATIENCE):
            part = await anext(parts, None)
        if part is None:
            break
        size += len(part)
        data += part[: max(most - len(data), 0)]
    return bytes(data)


def _sentence(error: ToolkitError) -> str:
    """An error as a sentence for the page."""
    text = str(error)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def _refusal(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status, {"Connection": "close"})


def _json_refusal(status: int, text: str) -> Response:
    """For the page's script."""
    return JSONResponse({"error": text}, status, {"Connection": "close"})


def _failed(_request: Request, _error: Exception) -> Response:
    return _refusal(500, "something went wrong; the terminal of the server says what")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; ``port`` 0 takes any free one.

    Raises:
        DataError: if the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if port > _LAST_PORT:
            raise OverflowError(f"ports end at {_LAST_PORT}")
        return socket.create_server((host, port), family=family, backlog=_WAITING)
    except (OSError, OverflowError) as error:
        told = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise DataError(
            f"cannot listen on {host} port {port}: {told}; choose another --port (0 takes any "
            "free one) or --host"
        ) from error


def address_of(listening: socket.socket) -> str:
    """Where a browser on this machine finds the page."""
    host, port = listening.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"


def make_server(app: ASGIApp) -> uvicorn.Server:
    """A server that logs no query; ``run(sockets=[...])`` serves until interrupted."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_WAITING,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_PATIENCE,
        timeout_graceful_shutdown=_PATIENCE,
    )
    return uvicorn.Server(config)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
