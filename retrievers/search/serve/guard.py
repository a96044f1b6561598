"""Who may ask this server: only pages that it served itself, under a name that is its own.

It has no passwords. What protects it is that it listens on loopback, and that a browser which was
sent here by a foreign page is turned away: by the ``Host`` header where a foreign name was made to
resolve to this machine (DNS rebinding), by ``Origin`` and ``Sec-Fetch-Site`` where a foreign page
sends a request of its own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from email.message import Message

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


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def foreign_host(host: str | None, own: Collection[str]) -> bool:
    """Whether a ``Host`` header names another server.

    Addresses pass, since rebinding needs a name.

    Args:
        host: the header, with or without port.
        own: names of this server besides ``localhost``, in lower case.
    """
    name = _name(host)
    if not name:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name != "localhost" and name not in own
    return False


def foreign_page(headers: Message | Mapping[str, str]) -> bool:
    """Whether a page of another origin sends this; following a link to here is no such thing."""
    if headers.get("Sec-Fetch-Site", "none") in ("cross-site", "same-site"):
        return headers.get("Sec-Fetch-Mode") != "navigate"
    origin = headers.get("Origin")
    return origin is not None and origin.partition("://")[2].lower() != _lower(headers.get("Host"))


def _lower(host: str | None) -> str:
    return (host or "").strip().lower()


def _name(host: str | None) -> str:
    """The header without its port and brackets."""
    name = _lower(host)
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")
