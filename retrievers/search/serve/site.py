"""The pages: a request becomes a response, without any socket."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import resources
from typing import final
from urllib.parse import parse_qs, unquote, urlsplit

from PIL import Image

from augment.data.images import open_image
from augment.errors import DataError, EngineError, ImageError, ToolkitError
from retrievers.search.answers import Answer
from retrievers.search.pictures import QueryPictures
from retrievers.search.searcher import Searcher
from retrievers.search.serve.guard import HEADERS
from retrievers.search.serve.page import Asked, render_page

#: Longest typed query, in characters.
MAX_QUERY = 4000

#: Most results of one search on the page.
MAX_RESULTS = 100

#: Longest side of a picture as sent, in pixels.
_SIZES = {"small": 420, "large": 1600}

#: Small pictures kept in memory, some 20 KB each.
_KEPT = 512

_STATIC = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Response:
    """What is sent back.

    Attributes:
        status: HTTP status.
        body: the bytes.
        kind: content type.
        headers: besides length, type and :data:`~retrievers.search.serve.guard.HEADERS`.
    """

    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=lambda: HEADERS)


@final
class Site:
    """Search with one retriever or two.

    Args:
        searchers: name -> searcher, all over one root and with the same ``pictures``. May come
            later, before the first request.
    """

    def __init__(self, searchers: Mapping[str, Searcher]) -> None:
        self.searchers = searchers
        self._small = lru_cache(maxsize=_KEPT)(self._encoded)

    @property
    def pictures(self) -> QueryPictures:
        """The pictures of queries."""
        return self._first.pictures

    @property
    def _first(self) -> Searcher:
        return next(iter(self.searchers.values()))

    def get(self, target: str) -> Response:
        """Answer a GET.

        Args:
            target: path and query of the URL.
        """
        parts = urlsplit(target)
        path = unquote(parts.path)
        try:
            fields = parse_qs(parts.query, keep_blank_values=True, max_num_fields=20)
        except ValueError:
            return failure(400, "too many fields in the address")
        values = {name: found[-1] for name, found in fields.items()}
        kind, _, name = path.removeprefix("/").partition("/")
        if path == "/":
            return self._page(values)
        if path == "/search.json":
            return self._json(values)
        if kind == "static" and name in _STATIC:
            body = (resources.files(__package__) / "static" / name).read_bytes()
            return Response(200, body, _STATIC[name])
        if kind in ("image", "picture") and name:
            return self._picture(kind, name, values.get("size", "small"))
        return failure(404, "there is no such page here")

    def upload(self, data: bytes) -> Response:
        """Keep the picture of a query; answers with its name, or why it cannot be used."""
        try:
            return _as_json(200, {"picture": self.pictures.add(data)})
        except ImageError as error:
            status = 413 if error.reason == "too-large" else 415
            return refusal(status, sentence(error))

    def _page(self, values: Mapping[str, str]) -> Response:
        asked, answers, problem = Asked(), {}, ""
        try:
            asked = _asked(values)
            if asked.query or asked.picture or "q" in values:
                answers = self._search(asked)
        except ToolkitError as error:
            problem = sentence(error)
            asked = Asked(query=values.get("q", "")[:MAX_QUERY], picture=self._kept(values))
        body = render_page(self.searchers, asked, answers, problem, self.pictures.max_bytes)
        return Response(400 if problem else 200, body.encode(), "text/html; charset=utf-8")

    def _json(self, values: Mapping[str, str]) -> Response:
        try:
            asked = _asked(values)
            found = {name: answer.to_json() for name, answer in self._search(asked).items()}
        except EngineError as error:
            return refusal(500, sentence(error))
        except ToolkitError as error:
            return refusal(400, sentence(error))
        return _as_json(200, {"asked": asdict(asked), "answers": found})

    def _search(self, asked: Asked) -> dict[str, Answer]:
        return {
            name: searcher.search_picture(
                asked.query, asked.picture or None, asked.k, asked.given_instruction
            )
            for name, searcher in self.searchers.items()
        }

    def _kept(self, values: Mapping[str, str]) -> str:
        """The picture that was asked with, if it is still here."""
        name = values.get("picture", "")
        try:
            self.pictures.open(name)
        except ImageError:
            return ""
        return name

    def _picture(self, kind: str, name: str, size: str) -> Response:
        try:
            body = (self._small if size == "small" else self._encoded)(kind, name, size)
        except ImageError as error:
            return failure(404, sentence(error))
        return Response(200, body, "image/jpeg")

    def _encoded(self, kind: str, name: str, size: str) -> bytes:
        """A picture drawn anew as JPEG: whatever else its file holds stays here."""
        if kind == "picture":
            image = self.pictures.open(name)
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


def _asked(values: Mapping[str, str]) -> Asked:
    """The fields of the form.

    Raises:
        DataError: if one cannot be used.
    """
    query = values.get("q", "")
    if len(query) > MAX_QUERY:
        raise DataError(f"the query has {len(query):,} characters; the most is {MAX_QUERY:,}")
    k = values.get("k", "12")
    if not (k.isascii() and k.isdigit() and 1 <= int(k[:9]) <= MAX_RESULTS):
        raise DataError(f"cannot find {k[:20]!r} results; ask for 1 to {MAX_RESULTS}")
    return Asked(
        query=query,
        picture=values.get("picture", ""),
        k=int(k),
        instruction=values.get("instruction", "auto")[:MAX_QUERY],
        own=values.get("own", "").strip()[:MAX_QUERY],
    )


def sentence(error: ToolkitError) -> str:
    """An error as a sentence for the page."""
    text = str(error)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def failure(status: int, text: str) -> Response:
    """A refusal as plain text."""
    return Response(status, f"{text}\n".encode())


def refusal(status: int, text: str) -> Response:
    """A refusal as JSON, for the page's script."""
    return _as_json(status, {"error": text})


def _as_json(status: int, value: object) -> Response:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Response(status, body, "application/json; charset=utf-8")
