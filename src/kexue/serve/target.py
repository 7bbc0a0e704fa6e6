"""What a request is aimed at: the path that is routed, the host it names, and the page it comes from."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

SAFE = ("GET", "HEAD")  # methods that change nothing
_HOST = re.compile(r"(?:\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_PORTS = {"http": 80, "https": 443}


def routed_path(scope: Scope) -> str:
    """The path by which the router chooses: never that of `Request.url`, into which the header Host is written."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def parse_host(text: str) -> tuple[str, int | None] | None:
    """Name and port of ``name[:port]``; None where it is nothing of the kind.

    Names are brought to one form: lower case, no dot at the end, addresses as `ipaddress` writes them.

    >>> parse_host("LocalHost.:8000"), parse_host("[0::1]"), parse_host("x/web/?")
    (('localhost', 8000), ('::1', None), None)
    """
    match = _HOST.fullmatch(text)
    if match is None or (name := plain_name(match[1] or match[2])) is None:
        return None
    port = None if match[3] is None else int(match[3])
    return None if port is not None and port > 65535 else (name, port)


def plain_name(text: str) -> str | None:
    """A host in the one form in which hosts are compared; None for an empty one, and for an address that is none."""
    name = text.lower().removesuffix(".")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None if not name or ":" in name else name
    return str(getattr(address, "ipv4_mapped", None) or address)


def is_address(name: str) -> bool:
    """Whether a host is a number: then no name service can point it elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    name = plain_name(host)
    return name == "localhost" or (name is not None and is_address(name) and ipaddress.ip_address(name).is_loopback)


class Names:
    """The hosts by which a server may be asked that tells its own users by their place in the network alone.

    A page of the web may point its own name at this machine and read and write what is served here, as the browser
    takes both for one site. So a request must name loopback, the address on which the server listens or it came in,
    or a host of `allowed`. A server that listens on all addresses takes every address for its own, since which ones
    lead to it a container cannot know, and a page cannot point a number elsewhere.
    """

    def __init__(self, host: str, allowed: Sequence[str]) -> None:
        self._all_addresses = host in ("", "0.0.0.0", "::")
        self._known = {plain_name(name) for name in (host, *allowed)}

    def holds(self, name: str, scope: Scope) -> bool:
        """Whether a request that names this host is meant for this server."""
        arrived = plain_name(str((scope.get("server") or ("",))[0]))
        return name in self._known or name == arrived or is_loopback(name) or (self._all_addresses and is_address(name))


def other_site(scope: Scope, allowed: Sequence[str]) -> str | None:
    """The site of a page that is not the server's own, by what its browser says; None for any other request.

    A link that is followed is no request of the page it stands on.

    Args:
        scope: of a request with a legal header Host.
        allowed: origins whose pages may call; ``"*"`` for all.
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
    scheme, _, place = origin.partition("://")
    theirs, ours = parse_host(place), parse_host(host)
    if scheme not in _PORTS or theirs is None or ours is None:
        return False
    return theirs[0] == ours[0] and (theirs[1] or _PORTS[scheme]) == (ours[1] or _PORTS[scheme])
