"""`kexue serve`: indexes and models over HTTP, with a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kexue.cli._verb import Output, verb

DEMO = Path("demo-out", "stdlib.kx")
_EXAMPLES = (
    "kexue serve faq.kx",
    "kexue serve faq.kx docs.kx --models text-embedding-3-small=auto --port 8080",
    "kexue serve --run digits=run --run ngram-zh",
    "KEXUE_API_KEY=$(cat key) kexue serve faq.kx --host 0.0.0.0",
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "serve", examples=_EXAMPLES)(serve)


def serve(
    out: Output,
    indexes: Annotated[
        list[str] | None,
        typer.Argument(help="Index files; default without --models: the index of the demo.", envvar="KEXUE_STORE"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 chooses a free one.", min=0, max=65535)] = 8000,
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="Encoder or cross-encoder: a folder, hub id, auto (English) or NAME=FOLDER; may be repeated."
        ),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option(
            help="Model of yours: a run of kexue model train diffusion (draws images), of kexue extract train (finds "
            "triples), of kexue sample lm-train or ngram-zh (writes sentences), or NAME=RUN; may be repeated."
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File of lines read:KEY or write:KEY, with mode 0600.", envvar="KEXUE_API_KEY_FILE"),
    ] = None,
    allow_public: Annotated[
        bool, typer.Option("--allow-public", help="Listen on an address that other machines reach, without a key.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Additional host name (header Host) to accept while no key is set; may be repeated."),
    ] = None,
    cors: Annotated[
        list[str] | None, typer.Option(help="Origin whose web pages may send requests; may be repeated.")
    ] = None,
    readonly: Annotated[bool, typer.Option("--readonly", help="Refuse every change of an index.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    max_batch_tokens: Annotated[int, typer.Option(help="Limit of tokens in one forward pass.", min=1)] = 16384,
    max_queue: Annotated[int, typer.Option(help="Maximum number of queued texts; more get status 429.", min=1)] = 1024,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Write queries to the log.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse unknown fields instead of ignoring them.")] = False,
) -> None:
    """Serve embeddings, reranking and search in the formats of OpenAI, Cohere, Jina and TEI, and a web page at /."""
    from kexue.serve import Settings
    from kexue.serve.app import run as run_server
    from kexue.serve.settings import keys_from_environment

    if not indexes and not models and not run:
        if not DEMO.exists():
            raise typer.BadParameter(f"nothing to serve: name an index, or run `kexue demo` first, which writes {DEMO}")
        indexes = [str(DEMO)]
    settings = Settings(
        indexes=tuple(indexes or ()),
        models=tuple(models or ()),
        runs=tuple(run or ()),
        host=host,
        port=port,
        api_keys=keys_from_environment(api_key_file),
        allow_public=allow_public,
        allow_hosts=tuple(allow_host or ()),
        cors=tuple(cors or ()),
        readonly=readonly,
        device=device,
        dtype=dtype,
        max_batch_tokens=max_batch_tokens,
        max_queue=max_queue,
        log_texts=log_texts,
        strict=strict,
    )

    def report(port: int) -> None:
        address = f"[{host}]" if ":" in host else host
        record = {
            "url": f"http://{address}:{port}",
            "indexes": list(settings.indexes),
            "models": list(settings.models),
            "auth": bool(settings.keys),
        }
        out.emit(record, lambda: f"{record['url']} - press Ctrl-C to stop")

    run_server(settings, started=report)
