"""`kexue mcp`: indexes as tools of an assistant, over stdio or HTTP."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue.cli._verb import Output, verb

if TYPE_CHECKING:
    from kexue.search import Index

_EXAMPLES = (
    "kexue mcp faq.kx",
    "kexue mcp faq.kx docs.kx --http 127.0.0.1:8001",
    "KEXUE_API_KEY_READ=$(cat key) kexue mcp faq.kx --http 0.0.0.0:8001",
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "mcp", examples=_EXAMPLES)(mcp)


def mcp(
    out: Output,
    indexes: Annotated[list[str], typer.Argument(help="Index files; a file's name without ending is its name.")],
    http: Annotated[
        str | None, typer.Option(help="Serve HTTP here instead of stdio, at the path /mcp.", metavar="HOST:PORT")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File of lines read:KEY, with mode 0600; for --http.", envvar="KEXUE_API_KEY_FILE"),
    ] = None,
    allow_public: Annotated[
        bool, typer.Option("--allow-public", help="Listen on an address that other machines reach, without a key.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Additional host name (header Host) to accept while no key is set; may be repeated."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Give an assistant the tools search, get and list over indexes (Model Context Protocol); it cannot write.

    Over stdio, the default, the assistant starts this command itself and standard output carries the protocol only.
    """
    from kexue.integrations import create_mcp_server

    settings = None if http is None else _read_settings(http, indexes, api_key_file, allow_public, allow_host or ())
    with ExitStack() as stack:
        opened = _open_indexes(indexes, stack, device, dtype)
        server = create_mcp_server(opened)
        if settings is None:
            out.remark(f"kexue: serving {', '.join(opened)} over stdio; Ctrl-C ends")
            server.run("stdio")
        else:
            _serve_http(out, server, settings, list(opened))


def _open_indexes(paths: list[str], stack: ExitStack, device: str, dtype: str) -> dict[str, Index]:
    """Open indexes for reading, and load their encoders."""
    from kexue.search import Index
    from kexue.search.records import index_name

    opened: dict[str, Index] = {}
    for path in paths:
        if (name := index_name(path)) in opened:
            raise typer.BadParameter(f"two indexes are named {name!r}; rename one of the files")
        opened[name] = stack.enter_context(Index.open(path, readonly=True))
        opened[name].load_encoder(device=device, dtype=dtype)
    return opened


def _read_settings(http: str, indexes: list[str], api_key_file: Path | None, public: bool, hosts: Any) -> Any:
    """Return the settings of `kexue serve` for an address; the same keys and hosts are accepted."""
    from kexue.serve import Settings
    from kexue.serve.settings import keys_from_environment
    from kexue.serve.target import parse_host

    place = parse_host(http)
    if place is None or place[1] is None:
        raise typer.BadParameter(f"--http must be HOST:PORT, such as 127.0.0.1:8001, got {http!r}")
    return Settings(
        indexes=indexes,
        host=place[0],
        port=place[1],
        api_keys=keys_from_environment(api_key_file),
        allow_public=public,
        allow_hosts=tuple(hosts),
        readonly=True,
    )


def _serve_http(out: Output, server: Any, settings: Any, names: list[str]) -> None:
    """Serve over HTTP behind the access control of `kexue serve`, until SIGTERM or Ctrl-C."""
    from mcp.server.transport_security import TransportSecuritySettings

    from kexue.serve.app import run_app
    from kexue.serve.security import AccessControl

    app = server.streamable_http_app(
        json_response=True,
        stateless_http=True,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),  # AccessControl checks it
    )

    def report(port: int) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        record = {"url": f"http://{host}:{port}/mcp", "indexes": names, "auth": bool(settings.keys)}
        out.emit(record, lambda: f"{record['url']} - press Ctrl-C to stop")

    run_app(AccessControl(app, settings), settings, started=report)
