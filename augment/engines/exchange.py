"""One exchange with an OpenAI-compatible server: what is sent, and what can come of it."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import anyio
import httpx

from augment.errors import EngineError

#: Statuses of a server that is there and has no room.
BUSY = frozenset({429, 503, 529})

#: Statuses that mean every request alike.
FATAL = frozenset({401, 403})

Payload = Mapping[str, Any]


class Answer(NamedTuple):
    """What became of a request: the server's JSON, or why there is none."""

    body: dict[str, Any]
    error: str = ""


class RepeatError(Exception):
    """This try failed; the request may be asked again."""


class LostError(RepeatError):
    """The connection failed before an answer was complete."""


class HungError(RepeatError):
    """There was no answer in time."""


class UnreachedError(Exception):
    """There was no connection, so the request was not even read."""


class BusyError(Exception):
    """The server has no room.

    Args:
        status: of its answer.
        wait: seconds that it asks to wait; None if it does not say.
    """

    def __init__(self, status: int, wait: float | None) -> None:
        super().__init__(f"HTTP {status}")
        self.wait = wait


async def post(
    http: httpx.AsyncClient,
    url: str,
    payload: Payload,
    timeout: float,
    check: Callable[[Any], None],
) -> Answer:
    """Ask once.

    Args:
        http: a client.
        url: of the server, up to ``/v1``.
        payload: the request.
        timeout: seconds for all of it; httpx would count them from byte to byte.
        check: a shape test of a decoded answer; raises ValueError with what is wrong.

    Raises:
        BusyError, HungError, LostError, RepeatError, UnreachedError: if there is no answer.
        EngineError: if no request can succeed.
    """
    try:
        with anyio.fail_after(timeout):
            reply = await http.post(url + "/chat/completions", json=payload)
    except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout):
        raise HungError(f"timeout: {url} gave no answer within {timeout:g} s") from None
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise UnreachedError(f"{type(error).__name__}: {error}") from error
    except httpx.TransportError as error:
        raise LostError(f"{url}: {type(error).__name__}: {error}") from error
    if reply.status_code in BUSY:
        raise BusyError(reply.status_code, retry_after(reply.headers.get("Retry-After")))
    if reply.status_code in FATAL:
        raise EngineError(locked(url, reply))
    if reply.status_code >= 500:
        raise RepeatError(f"server-error: {_quote(url, reply)}")
    if not reply.is_success:
        return Answer({}, f"request-refused: {_quote(url, reply)}")
    try:
        body = reply.json()
        check(body)
    except ValueError as error:
        reason = f"garbage: {url} answered {error}: {reply.text[:200]!r}"
        raise RepeatError(reason) from error
    return Answer(body)


def retry_after(value: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _quote(url: str, reply: httpx.Response) -> str:
    try:
        error = reply.json()["error"]
        message = error["message"] if isinstance(error, dict) else str(error)
    except (json.JSONDecodeError, KeyError, TypeError):
        message = reply.text
    return f"{url}: HTTP {reply.status_code}: {message[:300]}".replace("\n", " ")


def locked(url: str, reply: httpx.Response) -> str:
    """What to do about a refused key."""
    return f"{_quote(url, reply)}; set the environment variable OPENAI_API_KEY to a valid key"
