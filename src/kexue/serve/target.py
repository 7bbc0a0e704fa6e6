"""Target and origin of a request: routed path, host name, and the site of the page that sent it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

SAFE = ("GET", "HEAD")  # methods that change nothing
_HOST = re.compile(r"(?:\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")  # as browsers write it
_PORTS = {"http": 80, "https": 443}


def routed_path(scope: Scope) -> str:
    """Return the path that the router matches; unlike `Request.url` it does not depend on the header Host."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def parse_host(text: str) -> tuple[str, int | None] | None:
    """Return name and port of ``name[:port]``; None where the text has another form.

    The name is normalised: lower case, no dot at the end, addresses as `ipaddress` writes them.

    >>> parse_host("LocalHost.:8000"), parse_host("[0::1]"), parse_host("x/web/?")
    (('localhost', 8000), ('::1', None), None)
    """
    match = _HOST.fullmatch(text)
    if match is None or (name := normalize_name(match[1] or match[2])) is None:
        return None
    port = None if match[3] is None else int(match[3])
    return None if port is not None and port > 65535 else (name, port)


def is_origin(text: str) -> bool:
    """Return whether a text has the form that browsers give an origin, such as ``https://example.com:8443``."""
    return _ORIGIN.fullmatch(text) is not None


def normalize_name(text: str) -> str | None:
    """Return a host name in normal form; None for an empty name and for a malformed address."""
    name = text.lower().removesuffix(".")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None if not name or ":" in name else name
    return str(getattr(address, "ipv4_mapped", None) or address)


def is_address(name: str) -> bool:
    """Return whether a host is an IP address, which no name service can redirect."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    name = normalize_name(host)
    return name == "localhost" or (name is not None and is_address(name) and ipaddress.ip_address(name).is_loopback)


class HostNames:
    """Host names that a request to a server without keys may carry.

    A page on the web can point its host name at this machine (DNS rebinding); the browser then takes page and server
    for one site, and the page could read and write the indexes. So a request must name loopback, the address on which
    the server listens or on which the request arrived, or a host of `allowed`. A server that listens on all addresses
    accepts every IP address: a container cannot know which ones lead to it, and a page cannot redirect an address.

    Args:
        host: address on which the server listens.
        allowed: further names.
    """

    def __init__(self, host: str, allowed: Sequence[str]) -> None:
        self._all_addresses = host in ("", "0.0.0.0", "::")
        self._known = {normalize_name(name) for name in (host, *allowed)}

    def contains(self, name: str, scope: Scope) -> bool:
        """Return whether a request that names this host is meant for this server."""
        arrived = normalize_name(str((scope.get("server") or ("",))[0]))
        return name in self._known or name == arrived or is_loopback(name) or (self._all_addresses and is_address(name))


def find_other_origin(scope: Scope, allowed: Sequence[str]) -> str | None:
    """Return the origin, other than the server's own, whose page sent a request, from the browser's headers; else None.

    Following a link does not count as a request of the page that holds the link.

    Args:
        scope: scope of a request with a legal header Host.
        allowed: origins whose pages may send requests; ``"*"`` for all.
    """
    headers = Headers(scope=scope)
    origins = set(headers.getlist("origin"))
    if "*" in allowed or (origins and origins <= set(allowed)):
        return None
    if origins:
        return None if all(_is_own(origin, headers.get("host", "")) for origin in origins) else ", ".join(origins)
    site = headers.get("sec-fetch-site", "none")
    followed = scope["method"] in SAFE and headers.get("sec-fetch-mode") == "navigate"
    return None if site in ("same-origin", "none") or followed else f"a {site} page"


def _is_own(origin: str, host: str) -> bool:
    """Return whether an origin is this server, by the header Host."""
    scheme, _, place = origin.partition("://")
    theirs, ours = parse_host(place), parse_host(host)
    if scheme not in _PORTS or theirs is None or ours is None:
        return False
    return theirs[0] == ours[0] and (theirs[1] or _PORTS[scheme]) == (ours[1] or _PORTS[scheme])
