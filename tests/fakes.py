"""A server that speaks OpenAI's chat completions over real HTTP, without a model.

``python -m tests.fakes --port 8000 --fault 429:every=5,retry_after=1``

It reads a request as strictly as a real server does (names, messages, a picture that decodes),
counts tokens, and answers with a digest of what it read: the messages and the *pixels*. Faults and
defects are configured, so that a client can be tried against every way in which servers fail.
"""

import argparse
import base64
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
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from augment.data import write_candidates
from augment.records import Item

#: Statuses; no answer; no JSON; JSON of another shape; fewer bytes than announced; the connection
#: ends without an answer; the process ends, or the in-process server; and what ``answer`` says.
KINDS = (
    "429 500 503 400 401 hang garbage schema truncated close die odd".split()  # noqa: SIM905
)

#: Does not see pictures; always the same answer; drops the system message; enlarges pictures; shows
#: control tokens; counts no tokens; knows the limit of tokens by its newer name alone.
DEFECTS = ("blind", "mute", "no-system", "upscale", "template-marks", "no-usage", "new-limit")

#: Side of the square of pixels that costs one token, as in Qwen2.5-VL; tokens of an empty talk.
TOKEN_SIDE, TEMPLATE_TOKENS = 28, 9


@dataclass
class Fault:
    """When a chat request fails (each n-th; the first n; those with a text), and how."""

    kind: str
    every: int = 0
    first: int = 0
    on: str = ""
    times: int = 0  # at most; 0 is without a limit
    each: int = 0  # at most for one text; 0 is without a limit
    retry_after: float = -1.0
    answer: tuple = ()  # status, headers, bytes or an iterable of them
    done: int = field(default=0, init=False)
    texts: Counter = field(default_factory=Counter, init=False)

    def hits(self, number, text):
        every = self.every > 0 and number % self.every == 0
        wanted = every or number <= self.first or (self.on and self.on in text)
        if not wanted or 0 < self.times <= self.done or 0 < self.each <= self.texts[text]:
            return False
        self.done += 1
        self.texts[text] += 1
        return True


def parse_fault(spec):
    """A fault from ``kind[:name=value,...]``, e.g. ``hang:every=10,times=2``."""
    kind, _, rest = spec.partition(":")
    assert kind in KINDS, spec
    types = {"every": int, "first": int, "times": int, "each": int, "on": str, "retry_after": float}
    pairs = dict(part.split("=", 1) for part in rest.split(",") if part)
    return Fault(kind, **{name: types[name](value) for name, value in pairs.items()})


class Refused(Exception):
    """A request that a strict server refuses."""


def read(messages):
    """System message, user's text and picture of a request."""
    said, image = {"system": "", "user": ""}, None
    try:
        for message in messages:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                if part["type"] == "text":
                    said[message["role"]] += part["text"]
                else:
                    kind, _, data = part["image_url"]["url"].partition(";base64,")
                    assert kind.startswith("data:image/")
                    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
                    image = image.convert("RGB")
    except (KeyError, TypeError, AssertionError, OSError, ValueError) as error:
        raise Refused(f"{type(error).__name__}: {error}") from error
    return said["system"], said["user"], image


def answer_to(system, text, image):
    """The answer of a server without faults: a digest of the messages and of the pixels."""
    asked = hashlib.sha256(f"{system}\0{text}".encode()).hexdigest()[:12]
    if image is None:
        return f"answer to {asked}"
    pixels = hashlib.sha256(image.tobytes()).hexdigest()[:12]
    return f"answer to {asked} about {pixels} of {image.width} by {image.height} pixels"


class FakeServer:
    """The server, in threads of this process. A context manager; starts on entering.

    ``listing`` answers ``/models`` in place of the usual list, as a fault's ``answer`` does.
    ``statuses`` counts chat requests by what became of them, ``asked`` by the user's text, ``peak``
    is the most of them in flight at a time.
    """

    def __init__(
        self, model="fake", *, faults=(), defects=(), latency=0.0, port=0, exits=False, listing=None
    ):
        self.model, self.faults, self.defects = model, list(faults), frozenset(defects)
        self.latency, self.exits, self.listing = latency, exits, listing
        self.statuses, self.asked, self.peak = Counter(), Counter(), 0
        self.closing, self.connections = threading.Event(), set()
        self.http, self._port, self._lock = None, port, threading.Lock()
        self._number = self._in_flight = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self):
        """Listen; again after :meth:`kill`, on the same port."""
        self.closing.clear()
        self.http = Listener(("127.0.0.1", self._port), type("Bound", (Handler,), {"fake": self}))
        self._port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self):
        """Stop listening and cut every connection, as a dead process does."""
        self.closing.set()
        http, self.http = self.http, None
        if http is not None:
            http.shutdown()
            http.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *unused):
        self.kill()

    def chat(self, body):
        """The fault that a request meets, or the answer to it."""
        with self._lock:
            self._number += 1
            number = self._number
            self._in_flight += 1
            self.peak = max(self.peak, self._in_flight)
        try:
            if not isinstance(body, dict) or body.get("model") != self.model:
                raise Refused(f"no model {str(body)[:80]}; this server has {self.model}")
            limit = "max_completion_tokens" if "new-limit" in self.defects else "max_tokens"
            if limit not in body:
                raise Refused(f"unsupported parameter; use '{limit}' instead")
            system, text, image = read(body.get("messages"))
            fault = next((one for one in self.faults if one.hits(number, text)), None)
            if fault is not None:
                return fault, None
            time.sleep(self.latency)
            with self._lock:
                self.asked[text] += 1
            return None, self._answer(system, text, image, int(body[limit]))
        finally:
            with self._lock:
                self._in_flight -= 1

    def _answer(self, system, text, image, limit):
        system = "" if "no-system" in self.defects else system
        image = None if "blind" in self.defects else image
        if "upscale" in self.defects and image is not None:
            image = image.resize((image.width * 4, image.height * 4))
        said = "" if "mute" in self.defects else answer_to(system, text, image)
        if "template-marks" in self.defects:
            said += "<|im_end|>\n<|im_start|>assistant"
        words, count = said.split(" "), len(system.split()) + len(text.split()) + TEMPLATE_TOKENS
        if image is not None:
            count += math.prod(math.ceil(side / TOKEN_SIDE) for side in image.size)
        cut = "length" if len(words) > limit else "stop"
        message = {"role": "assistant", "content": " ".join(words[:limit])}
        answer = {"choices": [{"index": 0, "message": message, "finish_reason": cut}]}
        if "no-usage" not in self.defects:
            written = min(len(words), limit)
            answer["usage"] = {"prompt_tokens": count, "completion_tokens": written}
        return answer


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def handle_error(self, *unused):
        """A client that goes away is no trouble of this server's."""


class Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.fake.connections.add(self.connection)

    def finish(self):
        self.fake.connections.discard(self.connection)
        super().finish()

    def log_message(self, *unused):
        """Silent."""

    def do_GET(self):
        listing = {"object": "list", "data": [{"id": self.fake.model, "object": "model"}]}
        if self.fake.listing is None:
            self._send(200, listing)
        else:
            self._odd(*self.fake.listing)

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            fault, answer = self.fake.chat(json.loads(raw))
        except (Refused, ValueError) as error:
            self.fake.statuses["refused"] += 1
            self._send(400, {"error": {"message": str(error)}})
            return
        self.fake.statuses[fault.kind if fault else "200"] += 1
        if fault is None:
            self._send(200, answer)
        else:
            self._fail(fault)

    def _fail(self, fault):
        kind, fake = fault.kind, self.fake
        if kind.isdigit():
            headers = {"Retry-After": f"{fault.retry_after:g}"} if fault.retry_after >= 0 else {}
            self._send(int(kind), {"error": {"message": f"asked for: {kind}"}}, headers)
        elif kind == "odd":
            self._odd(*fault.answer)
        elif kind in ("garbage", "schema"):
            shape = {"choices": [{"message": {"content": 7}}]}
            self._send(200, "<html>502 Bad Gateway</html>" if kind == "garbage" else shape)
        else:
            if kind == "truncated":
                self._send(200, {"choices": []}, {"Content-Length": "4096"})
            elif kind == "hang":
                fake.closing.wait(3600)
            elif kind == "die" and fake.exits:
                os._exit(1)
            elif kind == "die":
                threading.Thread(target=fake.kill, daemon=True).start()
                fake.closing.wait(5)
            self._hang_up()

    def _odd(self, status, headers, body):
        self.send_response(status)
        for name, value in {"Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # whoever asked has had enough
            for part in [body] if isinstance(body, bytes) else body:
                self.wfile.write(part)
            self._hang_up()

    def _hang_up(self):
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status, body, headers=()):
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        sent = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        self.send_response(status)
        for name, value in {**sent, **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def write_root(root, *items, size=(30, 20), count=0):
    """A root whose one pool has these items, or so many; each has a picture in a colour of its own.

    The items.
    """
    items = items or [Item(f"3:{n}", None, (f"{n}.png",), "image") for n in range(count)]
    for n, item in enumerate(items):
        (root / item.image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (4 * n % 256, 80, 7)).save(root / item.image)
    write_candidates(root / "cand_pool/local/mbeir_x_task2_cand_pool.jsonl", items)
    return items


def main():
    """Serve until the process ends."""
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server without a model.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--fault", type=parse_fault, action="append", default=[])
    parser.add_argument("--defect", choices=DEFECTS, action="append", default=[])
    given = parser.parse_args()
    server = FakeServer(
        given.model, faults=given.fault, defects=given.defect, latency=given.latency,
        port=given.port, exits=True,
    )  # fmt: skip
    with server:
        sys.stdout.write(f"serving {server.model} at {server.url}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
