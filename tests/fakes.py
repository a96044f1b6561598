"""A server that speaks OpenAI's chat completions over real HTTP, without a model.

``python -m tests.fakes --port 8000 --fault 429:every=5,retry_after=1``

It reads a request as strictly as a real server does (names, messages, a picture that decodes),
counts tokens, and answers with a digest of what it read: the messages and the *pixels*. Faults and
defects are configured, so that a client can be tried against every way in which servers fail.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import io
import json
import math
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, cast, final, get_args

from PIL import Image

from augment.errors import EngineError

FaultKind = Literal[
    "429", "500", "503", "400", "401", "hang", "garbage", "schema", "truncated", "close", "die"
]
Defect = Literal["blind", "mute", "no-system", "upscale", "template-marks", "no-usage"]

#: Side of the square of pixels that costs one token, as in Qwen2.5-VL.
TOKEN_SIDE = 28

#: Tokens of an empty conversation.
TEMPLATE_TOKENS = 9


@dataclass
class Fault:
    """When a chat request fails, and how.

    Attributes:
        kind: a status code, or ``hang`` (no answer), ``garbage`` (not JSON), ``schema`` (JSON of
            another shape), ``truncated`` (fewer bytes than announced), ``close`` (the connection
            ends without an answer), ``die`` (the process ends, or the in-process server).
        every: each n-th chat request fails; 0 never.
        first: the first n fail.
        on: requests whose text contains this fail.
        times: most failures; 0 is without a limit.
        retry_after: seconds, sent with 429 and 503; negative sends none.
    """

    kind: FaultKind
    every: int = 0
    first: int = 0
    on: str = ""
    times: int = 0
    retry_after: float = -1.0
    done: int = field(default=0, init=False)

    def hits(self, number: int, text: str) -> bool:
        """Whether the ``number``-th request (from 1) fails; counts it."""
        wanted = (
            (self.every > 0 and number % self.every == 0)
            or number <= self.first
            or (bool(self.on) and self.on in text)
        )
        if not wanted or 0 < self.times <= self.done:
            return False
        self.done += 1
        return True


def parse_fault(spec: str) -> Fault:
    """A fault from ``kind[:name=value,...]``, e.g. ``hang:every=10,times=2``.

    Raises:
        EngineError: if a kind or a name is unknown.
    """
    kind, _, rest = spec.partition(":")
    kinds: dict[str, Callable[[str], object]] = {
        "every": int, "first": int, "times": int, "on": str, "retry_after": float,
    }  # fmt: skip
    try:
        pairs = dict(part.split("=", 1) for part in rest.split(",") if part)
        options: dict[str, Any] = {name: kinds[name](value) for name, value in pairs.items()}
        if kind not in get_args(FaultKind):
            raise KeyError(kind)
    except (ValueError, KeyError) as error:
        raise EngineError(
            f"fault {spec!r}: expected one of {', '.join(get_args(FaultKind))},"
            f" then :name=value with {', '.join(kinds)}"
        ) from error
    return Fault(cast("FaultKind", kind), **options)


class _Refused(Exception):
    """A request that a strict server refuses."""


@dataclass
class _Seen:
    """What a request shows."""

    system: str = ""
    text: str = ""
    image: Image.Image | None = None

    def read(self, messages: Any) -> None:
        if not isinstance(messages, list) or not messages:
            raise _Refused("messages must be a list that is not empty")
        for message in messages:
            if not isinstance(message, dict) or message.get("role") not in ("system", "user"):
                raise _Refused("expected messages of the roles system and user")
            content = message.get("content")
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if not isinstance(parts, list):
                raise _Refused("content must be a string or a list")
            for part in parts:
                self._part(part, message["role"])

    def _part(self, part: Any, role: str) -> None:
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            if role == "system":
                self.system += part["text"]
            else:
                self.text += part["text"]
        elif part.get("type") == "image_url" and role == "user":
            self.image = _picture(part.get("image_url"))
        else:
            raise _Refused(f"unknown part {str(part)[:80]}")


def _picture(value: Any) -> Image.Image:
    url = value.get("url") if isinstance(value, dict) else None
    if not isinstance(url, str) or not url.startswith("data:image/"):
        raise _Refused("image_url must hold a data URI")
    try:
        data = base64.b64decode(url.partition(";base64,")[2], validate=True)
        with Image.open(io.BytesIO(data)) as image:
            decoded: Image.Image = image.convert("RGB")
            return decoded
    except (binascii.Error, OSError, ValueError) as error:
        raise _Refused(f"the picture cannot be decoded: {error}") from error


def answer_to(system: str, text: str, image: Image.Image | None) -> str:
    """The answer of a server without faults: a digest of the messages and of the pixels."""
    asked = hashlib.sha256(f"{system}\0{text}".encode()).hexdigest()[:12]
    if image is None:
        return f"answer to {asked}"
    pixels = hashlib.sha256(image.tobytes()).hexdigest()[:12]
    return f"answer to {asked} about {pixels} of {image.width} by {image.height} pixels"


@final
class FakeServer:
    """The server, in threads of this process. A context manager; starts on entering.

    Args:
        model: the name it serves.
        faults: see :class:`Fault`; the first that hits counts.
        defects: ``blind`` (does not see pictures), ``mute`` (always the same answer),
            ``no-system`` (drops the system message), ``upscale`` (enlarges pictures),
            ``template-marks`` (answers show control tokens), ``no-usage`` (counts no tokens).
        latency: seconds that an answer takes.
        slots: requests answered at a time; others wait their turn.
        port: 0 takes a free one.
        exits: ``die`` ends the process instead of closing the server.

    Attributes:
        statuses: status or fault of the chat requests -> how many.
        peak: most chat requests in flight at a time.
        asked: text of the user's message -> how often it was answered.
    """

    def __init__(
        self,
        model: str = "fake",
        *,
        faults: Sequence[Fault] = (),
        defects: Sequence[Defect] = (),
        latency: float = 0.0,
        slots: int = 64,
        port: int = 0,
        exits: bool = False,
    ) -> None:
        self.model = model
        self.faults = list(faults)
        self.defects = frozenset(defects)
        self.latency = latency
        self.statuses: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.peak = 0
        self._exits = exits
        self._port = port
        self._slots = threading.Semaphore(slots)
        self._lock = threading.Lock()
        self._number = self._in_flight = 0
        self._closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self._http: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Base URL, up to ``/v1``."""
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Listen; again after :meth:`kill`, on the same port."""
        server = self

        class Handler(_Handler):
            fake = server

        self._closing.clear()
        self._http = _Listener(("127.0.0.1", self._port), Handler)
        self._port = int(self._http.server_address[1])
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        """Stop listening and cut every connection, as a dead process does."""
        self._closing.set()
        http, self._http = self._http, None
        if http is not None:
            http.shutdown()
            http.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> FakeServer:
        self.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.kill()

    def chat(self, body: Any) -> tuple[FaultKind | None, Fault | None, dict[str, Any]]:
        """The fault that a request meets, or the answer to it.

        Raises:
            _Refused: if the request is malformed.
        """
        with self._lock:
            self._number += 1
            number = self._number
            self._in_flight += 1
            self.peak = max(self.peak, self._in_flight)
        try:
            seen = self._read(body)
            fault = next((one for one in self.faults if one.hits(number, seen.text)), None)
            if fault is not None:
                return fault.kind, fault, {}
            with self._slots:
                time.sleep(self.latency)
            self.asked[seen.text] += 1
            return None, None, self._answer(seen, int(body.get("max_tokens") or 16))
        finally:
            with self._lock:
                self._in_flight -= 1

    def _read(self, body: Any) -> _Seen:
        if not isinstance(body, dict) or body.get("model") != self.model:
            raise _Refused(f"no model {str(body)[:80]}; this server has {self.model}")
        seen = _Seen()
        seen.read(body.get("messages"))
        if "no-system" in self.defects:
            seen.system = ""
        if "blind" in self.defects:
            seen.image = None
        if "upscale" in self.defects and seen.image is not None:
            seen.image = seen.image.resize((seen.image.width * 4, seen.image.height * 4))
        return seen

    def _answer(self, seen: _Seen, limit: int) -> dict[str, Any]:
        text = "" if "mute" in self.defects else answer_to(seen.system, seen.text, seen.image)
        if "template-marks" in self.defects:
            text += "<|im_end|>\n<|im_start|>assistant"
        words = text.split(" ")
        read = len(seen.system.split()) + len(seen.text.split()) + TEMPLATE_TOKENS
        if seen.image is not None:
            width, height = seen.image.size
            read += math.ceil(width / TOKEN_SIDE) * math.ceil(height / TOKEN_SIDE)
        answer: dict[str, Any] = {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "model": self.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": " ".join(words[:limit])},
                    "finish_reason": "length" if len(words) > limit else "stop",
                }
            ],
        }
        if "no-usage" not in self.defects:
            written = min(len(words), limit)
            answer["usage"] = {"prompt_tokens": read, "completion_tokens": written}
        return answer


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def handle_error(self, *unused: object) -> None:
        """A client that goes away is no trouble of this server's."""


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.fake._connections.add(self.connection)

    def finish(self) -> None:
        self.fake._connections.discard(self.connection)
        super().finish()

    def log_message(self, *unused: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        if self.path in ("/health", "/v1/models"):
            models = [{"id": self.fake.model, "object": "model"}]
            self._send(200, {"object": "list", "data": models})
        else:
            self._send(404, {"error": {"message": f"no {self.path}"}})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/v1/chat/completions":
            self._send(404, {"error": {"message": f"no {self.path}"}})
            return
        try:
            kind, fault, answer = self.fake.chat(json.loads(raw))
        except (_Refused, ValueError) as error:
            self.fake.statuses["refused"] += 1
            self._send(400, {"error": {"message": str(error)}})
            return
        self.fake.statuses[kind or "200"] += 1
        if fault is None:
            self._send(200, answer)
        else:
            self._fail(fault)

    def _fail(self, fault: Fault) -> None:
        kind = fault.kind
        if kind.isdigit():
            headers = {"Retry-After": f"{fault.retry_after:g}"} if fault.retry_after >= 0 else {}
            self._send(int(kind), {"error": {"message": f"asked for: {kind}"}}, headers)
        elif kind == "garbage":
            self._send(200, "<html>502 Bad Gateway</html>")
        elif kind == "schema":
            self._send(200, {"choices": [{"message": {"content": 7}}]})
        elif kind == "truncated":
            self._send(200, {"choices": []}, {"Content-Length": "4096"})
            self._hang_up()
        elif kind == "hang":
            self.fake._closing.wait(3600)
            self._hang_up()
        elif kind == "die" and self.fake._exits:
            os._exit(1)
        elif kind == "die":
            threading.Thread(target=self.fake.kill, daemon=True).start()
            self.fake._closing.wait(5)
            self._hang_up()
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        sent = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        self.send_response(status)
        for name, value in {**sent, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the process ends."""
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server without a model.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--fault", type=parse_fault, action="append", default=[])
    parser.add_argument("--defect", choices=get_args(Defect), action="append", default=[])
    parsed = parser.parse_args(arguments)
    server = FakeServer(
        parsed.model,
        faults=parsed.fault,
        defects=parsed.defect,
        latency=parsed.latency,
        slots=parsed.slots,
        port=parsed.port,
        exits=True,
    )
    with server:
        sys.stdout.write(f"serving {server.model} at {server.url}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
