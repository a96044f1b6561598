"""HTTP over the standard library: one thread per connection, every request guarded."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Collection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, final

from augment.errors import DataError
from retrievers.search.serve.guard import HEADERS, foreign_host, foreign_page
from retrievers.search.serve.site import Response, Site, failure, refusal

#: Seconds that a connection may keep silent.
_PATIENCE = 30

#: A body above the limit is read up to this many times the limit, so that the browser hears why
#: it is refused; beyond that the connection is closed.
_DRAINED = 4

_LOG = logging.getLogger(__name__)


@final
class PageServer(ThreadingHTTPServer):
    """Serves a site.

    Args:
        host: address to listen on.
        port: 0 takes any free one.
        site: the pages.
        names: further names of this server that the ``Host`` header may give.

    Raises:
        DataError: if the address cannot be used.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, site: Site, names: Collection[str] = ()) -> None:
        self.site = site
        self.own = {host.lower(), *(name.lower() for name in names)}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            told = getattr(error, "strerror", None) or error
            raise DataError(
                f"cannot listen on {host} port {port}: {told}; choose another --port (0 takes any "
                "free one) or --host"
            ) from error

    @property
    def address(self) -> str:
        """Where a browser on this machine finds the page."""
        host, port = self.server_address[:2]
        name = str(host)
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)  # noqa: S104
        return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"

    def server_bind(self) -> None:
        """Bind without asking the network for this machine's name, which can take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no news."""
        _LOG.debug("connection of %s ended", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE

    def version_string(self) -> str:
        return "retrievers"

    def do_GET(self) -> None:
        self._answer(lambda: self.server.site.get(self.path))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self._posted)

    def _answer(self, make: Callable[[], Response]) -> None:
        if foreign_host(self.headers.get("Host"), self.server.own):
            response = failure(
                421,
                "this server does not answer to that name; use its address, or start it with "
                "--allow-host NAME",
            )
            self.close_connection = True
        elif foreign_page(self.headers):
            response = failure(403, "another site may not ask this server")
            self.close_connection = True
        else:
            try:
                response = make()
            except (TimeoutError, ConnectionError):
                raise
            except Exception:  # noqa: BLE001 - the page says so, the terminal says what
                _LOG.exception("%s %s failed", self.command, self.path)
                response = failure(
                    500, "something went wrong; the terminal of the server says what"
                )
                self.close_connection = True
        self._send(response)

    def _posted(self) -> Response:
        kind = self.headers.get_content_type()
        length = self.headers.get("Content-Length", "")
        limit = self.server.site.pictures.max_bytes
        if not (length.isascii() and length.isdigit()):
            self.close_connection = True
            return refusal(411, "Say how long the picture is (Content-Length).")
        size = int(length[:18])
        problem: Response | None = None
        if self.path != "/picture":
            problem = refusal(404, "Nothing can be sent here.")
        # Types that a foreign page cannot send without asking first.
        elif not (kind.startswith("image/") or kind == "application/octet-stream"):
            problem = refusal(415, f"A picture is expected, not {kind}.")
        elif size > limit:
            problem = refusal(
                413, f"The picture has more than {limit / 2**20:.0f} MiB; make it smaller."
            )
        if problem is not None:
            self._drain(size, limit * _DRAINED)
            return problem
        return self.server.site.upload(self.rfile.read(size))

    def _drain(self, size: int, most: int) -> None:
        left = min(size, most)
        while left > 0 and (block := self.rfile.read(min(left, 1 << 16))):
            left -= len(block)
        self.close_connection = True

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", response.kind)
        self.send_header("Content-Length", str(len(response.body)))
        for name, value in response.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refusals of the base class, such as unknown methods, as plain text."""
        self.close_connection = True
        self._send(Response(code, f"{message or 'refused'}\n".encode(), headers=HEADERS))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Queries are private: none is logged."""
