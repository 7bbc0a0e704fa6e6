"""A running `kexue serve`, asked through its HTTP API."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from kexue.errors import KexueError

SECONDS = 300  # limit of the time until the server answers
# Fields of a hit in the order of `hit_record`; those that the server leaves out are null.
_FIELDS = ("id", "index", "score", "percentile", "chance", "probability", "passage", "document", "explanation")


def ask_server(url: str, index: str, queries: Sequence[str], body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Search an index of a server and return one record for each query, as `answer_queries` does.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``; ``KEXUE_API_KEY`` is its key, if it needs one.
        index: name of the index there, which is that of its file without the ending.
        queries: as text.
        body: further fields of the request to ``/v1/search``.

    Raises:
        KexueError: no server is there, the key is missing or wrong, there is no such index, or the answer is not one of
            `kexue serve` of this version.
    """
    name = os.path.basename(index).removesuffix(".kx")
    return [
        {"query": query, "index": index, **_read_answer(url, _post(url, {**body, "query": query, "index": name}))}
        for query in queries
    ]


def check_url(url: str) -> str:
    """Return the address of a server without a slash at its end; ValueError where it is not http:// or https://."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:  # brackets, a port or a host name that none can have
        parts = urllib.parse.SplitResult("", "", "", "", "")
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\s?#]", url):
        raise ValueError(f"--server must be an address such as http://127.0.0.1:8000, got {url!r}")
    if "@" in parts.netloc:
        raise ValueError("--server takes no name and password; KEXUE_API_KEY is the key of a server")
    return url.rstrip("/")


def _post(url: str, body: Mapping[str, Any]) -> Any:
    """Send a request to ``/v1/search``; return the JSON of the answer."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/v1/search", data, {"Content-Type": "application/json"}, method="POST")
    if key := os.environ.get("KEXUE_API_KEY", "").strip():
        if not (key.isascii() and key.isprintable()):
            raise KexueError(
                "KEXUE_API_KEY holds a character that no key has.", remedy="Set it to a key of the server."
            )
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return _read_json(url, answer.read())
    except urllib.error.HTTPError as error:
        raise _refusal(url, error.code, error.read()) from None
    except TimeoutError:
        raise KexueError(f"{url} did not answer within {SECONDS} seconds.", remedy="Ask again later.") from None
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, socket.gaierror) as error:
        reason = getattr(error, "reason", None) or error
        raise KexueError(
            f"no server answers at {url} ({reason}).", remedy="Start one: kexue serve INDEX; or correct the address."
        ) from None


def _read_json(url: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise _foreign(url) from None


def _refusal(url: str, status: int, content: bytes) -> KexueError:
    """Return the error for an answer other than success, with the server's own words."""
    try:
        error = json.loads(content)["error"]
        message, field = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        return _foreign(url)
    remedies = {
        401: "Set KEXUE_API_KEY to a key of the server.",
        404: "Name one of its indexes, or start the server with this one." if field == "index" else None,
        429: "The server is busy: ask again in a moment.",
    }
    return KexueError(f"{url} answers with status {status}: {message}", remedy=remedies.get(status))


def _read_answer(url: str, answer: Any) -> dict[str, Any]:
    """Return the answer of a server with every field of `search_record`."""
    try:
        if all({"id", "score", "document"} <= set(hit) for hit in answer["results"]):
            results = [{**dict.fromkeys(_FIELDS), **hit} for hit in answer["results"]]
            return {**answer, "results": results, "warnings": list(answer["warnings"])}
    except (KeyError, TypeError):
        pass
    raise _foreign(url)


def _foreign(url: str) -> KexueError:
    return KexueError(
        f"the answer of {url} is not one of kexue serve, or of another version of it.",
        remedy="Check the address, and install the same version of kexue on both sides.",
    )
