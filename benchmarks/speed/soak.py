"""Everything at once: writers that are killed, a server that misbehaves, pictures that change.

Four writers, each with its share, describe the pictures of a root into one store and are killed at
random; the server they ask fails in all the ways that servers do; pictures are replaced all the
time, in place or by another file; and ``verify``, ``merge`` and ``export`` run over the same store.
The server says which colour it sees, so a text is right if it names the colour of the bytes that
its picture had. At the end the writers finish in peace, and what is in the store is compared with
what was there before and with the pictures.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, final

from PIL import Image

from augment.data import write_candidates
from augment.records import Item
from augment.store import Store, log
from augment.store.segments import column
from benchmarks.speed.harness import Page

WRITERS = 4

#: Share of the server's answers that are of no use, and what they are.
ODD = 0.15
_ODD: tuple[tuple[int, bytes, dict[str, str]], ...] = (
    (500, b"", {}),
    (503, b"busy", {"Retry-After": "0"}),
    (429, b"{}", {"Retry-After": "0"}),
    (400, b'{"error": {"message": null}}', {}),
    (200, b"[" * 20_000, {}),
    (200, b"no gzip", {"Content-Encoding": "gzip"}),
    (200, b'{"choices": []}', {}),
)

#: Seconds that an answer takes, and between two pictures that are replaced.
ANSWER, REPLACE = 0.1, 0.15


class _Server(ThreadingHTTPServer):
    """An OpenAI-compatible server that tells the colour it is shown, unless it is odd."""

    daemon_threads = True
    odd = ODD

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.counts: Counter[str] = Counter()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "fake"}]}).encode(), {})

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        time.sleep(ANSWER)
        if random.random() < self.server.odd:
            self.server.counts["odd answers"] += 1
            self._send(*random.choice(_ODD))
            return
        uri = re.search(r"base64,([A-Za-z0-9+/=]+)", asked)
        with Image.open(io.BytesIO(base64.b64decode(uri[1] if uri else ""))) as image:
            colour = image.convert("RGB").getpixel((0, 0))
        said = f"A plain square in one colour, which is {_name(colour)} all over."
        reply = {"message": {"content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 9}
        self.server.counts["answers"] += 1
        self._send(200, json.dumps({"choices": [reply], "usage": usage}).encode(), {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        try:
            self.send_response(status)
            sizes = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
            for name, value in {**sizes, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # who asked was killed

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


def _name(colour: Any) -> str:
    return "rgb({})".format("-".join(map(str, colour)))


@final
class _Soak:
    """The folders, what was done to them, and what was seen of the store meanwhile."""

    def __init__(self, folder: Path, items: int, seed: int) -> None:
        self.folder, self.root, self.store = folder, folder / "root", folder / "store"
        self.items = items
        self.dice = random.Random(seed)
        self.server = _Server()
        self.calm = threading.Event()
        self.counts: Counter[str] = Counter()
        #: SHA-256 of the bytes of every picture there ever was -> its colour.
        self.colours: dict[str, str] = {}
        self.seen: set[str] = set()
        self.trouble: list[str] = []
        pool = [Item(f"3:{n}", None, (f"images/{n}.png",), "image") for n in range(items)]
        write_candidates(self.root / "cand_pool/local/mbeir_x_task4_cand_pool.jsonl", pool)
        (self.root / "images").mkdir()
        for number in range(items):
            self._paint(number)

    def _paint(self, number: int) -> None:
        colour = tuple(self.dice.randrange(256) for _ in range(3))
        sink = io.BytesIO()
        Image.new("RGB", (24, 24), colour).save(sink, "PNG")
        data, path = sink.getvalue(), self.root / f"images/{number}.png"
        self.colours[hashlib.sha256(data).hexdigest()] = _name(colour)
        if self.dice.random() < 0.5:
            path.write_bytes(data)  # in place: a reader may see half of it
        else:
            new = path.with_suffix(".new")
            new.write_bytes(data)
            new.replace(path)

    def replace(self) -> None:
        """Replace one picture."""
        self._paint(self.dice.randrange(self.items))
        self.counts["pictures replaced"] += 1
        time.sleep(REPLACE)

    def command(self, *words: str, kill_after: float | None = None) -> int:
        """Run a command, and kill it after some seconds; its exit code."""
        made = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        try:
            _, said = made.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(made.pid, signal.SIGKILL)
            _, said = made.communicate()
            self.counts["kills"] += 1
        if "Traceback" in said or made.returncode not in (0, 3, 4, -signal.SIGKILL):
            self.trouble.append(f"{' '.join(words[:3])}: {made.returncode}: {said[-300:]}")
        return made.returncode

    def write(self, share: int) -> int:
        """Let one writer work; killed two times out of three while there is no peace."""
        url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        words = ("--root", str(self.root), "--store", str(self.store), "--model", "fake")
        more = ("--urls", url, "--canaries", "false", "--concurrency", "4", "--timeout", "20")
        after = self.dice.uniform(6, 40) if self.dice.random() < 0.66 else None
        self.counts["runs"] += 1
        shard = f"{share}/{WRITERS}"
        return self.command(
            "augment.corpus", *words, *more, "--shard", shard,
            kill_after=None if self.calm.is_set() else after,
        )  # fmt: skip

    def audit(self) -> None:
        """Verify, merge and export the store that is being written, and remember its texts."""
        if not (self.store / "recipes").is_dir():
            time.sleep(1)
            return
        into, out, store = self.folder / "merged", self.folder / "out", str(self.store)
        root = ("--root", str(self.root), "--out", str(out), "--store", store)
        for name, words in (
            ("verify", ("--store", store)),
            ("merge", ("--into", str(into), store)),
            ("verify", ("--store", str(into))),
            ("export", (*root, "--query-view", "raw", "--images", "copy")),
        ):
            self.counts[name] += 1
            if code := self.command("augment", name, *words):
                self.trouble.append(f"{name}: exit code {code}")
            self.seen |= {text.key for text in Store(self.store)}
        shutil.rmtree(out, ignore_errors=True)
        if self.dice.random() < 0.3:
            shutil.rmtree(into)

    def run(self, minutes: float) -> None:
        """Disturb for so long, then let the writers finish in peace."""
        until = time.monotonic() + 60 * minutes

        def repeat(work: Callable[[], object]) -> threading.Thread:
            def all_along() -> None:
                while time.monotonic() < until:
                    self._attempt(work)

            thread = threading.Thread(target=all_along)
            thread.start()
            return thread

        writers = [repeat(lambda share=share: self.write(share)) for share in range(WRITERS)]  # type: ignore[misc]
        threads = [*writers, repeat(self.replace), repeat(self.audit)]
        server = threading.Thread(target=self.server.serve_forever, daemon=True)
        server.start()
        for thread in threads:
            thread.join()
        self.calm.set()
        self.server.odd = 0.0
        time.sleep(3)  # until hashes of pictures count as settled
        for share in range(WRITERS):
            self.command_until_whole(share)
        self.audit()
        self.server.shutdown()

    def _attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - it is what is looked for
            self.trouble.append(f"{type(error).__name__}: {error}")

    def command_until_whole(self, share: int) -> None:
        """Let one writer work until nothing of its share is left."""
        if any(self.write(share) == 0 for _ in range(3)):
            return
        self.trouble.append(f"share {share} does not end")

    def found(self) -> dict[str, int]:
        """What is wrong with the store: all of it is to be 0."""
        store = Store(self.store)
        texts = store.texts("corpus")
        now = {
            f"3:{n}": hashlib.sha256((self.root / f"images/{n}.png").read_bytes()).hexdigest()
            for n in range(self.items)
        }
        stale = [n for n, shown in now.items() if n not in texts or texts[n].picture != shown]
        keys = {text.key for text in store}
        wrong = [t for t in store if self.colours.get(t.picture, "unknown picture") not in t.text]
        return {
            "texts lost": len(self.seen - keys) + len(stale),
            "texts made twice": sum(number - 1 for number in _written(self.store).values()),
            "texts wrong": len(wrong),
            "commands that went wrong": len(self.trouble),
        }


def _written(store: Path) -> Counter[str]:
    """Key -> how often a text was written; a row that a crash left in two files counts once."""
    rows: set[tuple[str, int]] = set()
    for path in store.glob("texts/*.parquet"):
        table = column(path, "key", "at")
        rows.update(zip(table["key"].to_pylist(), table["at"].to_pylist(), strict=True))
    for path in store.glob("wal/*.jsonl"):
        with path.open("rb") as file:
            records = [line.record for line in log.read(file) if line.record]
        rows.update((r["key"], r["at"]) for r in records if r["kind"] == "text")
    return Counter(key for key, _ in rows)


def measure(minutes: float = 30.0, items: int = 200, seed: int = 0) -> Page:
    """Disturb a store for some minutes and count what went wrong.

    Args:
        minutes: of disturbance; the writers then finish in peace.
        items: candidates, each with a picture of one colour.
        seed: of what is disturbed when.
    """
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = _Soak(Path(folder), items, seed)
        soak.run(minutes)
        found, texts = soak.found(), len(Store(soak.store))
    done = {**soak.counts, **soak.server.counts, "texts in the store": texts}
    trouble = [" ".join(one.split()) for one in dict.fromkeys(soak.trouble)]
    return Page(
        "Everything at once",
        f"{WRITERS} writers with a share each, killed at random; a server of which"
        f" {100 * ODD:.0f} % of the answers are of no use; pictures replaced, half of them in"
        f" place; verify, merge and export meanwhile: {minutes:g} minutes, {items} items.",
        {
            "What went wrong": [{"": name, "number": number} for name, number in found.items()],
            "What was done": [{"": name, "number": n} for name, n in sorted(done.items())],
        }
        | ({"Trouble": [{"": one} for one in trouble[:20]]} if trouble else {}),
    )
