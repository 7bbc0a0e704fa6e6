"""`kexue plan`: memory, disk and time of an index of a given size."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from kexue.cli._verb import Output, verb

_EXAMPLES = ("kexue plan --docs 200k --dims 128", "kexue plan --docs 50M --dims 128 --qps 100 --dtype int8 --json")
_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9}


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "plan", examples=_EXAMPLES)(plan)


def plan(
    out: Output,
    docs: Annotated[str, typer.Option(help="Number of documents, such as 200000, 200k or 50M.")],
    dims: Annotated[int, typer.Option(help="Dimensions of a stored vector.", min=1)],
    qps: Annotated[float | None, typer.Option(help="Text queries per second.")] = None,
    dtype: Annotated[Literal["float32", "int8"], typer.Option(help="Type of the vectors in memory.")] = "float32",
    tokens: Annotated[int, typer.Option(help="Mean number of tokens of a document.", min=1)] = 20,
) -> None:
    """Estimate memory, disk and time of an index of a given size.

    The estimate uses constants measured on two processor cores."""
    from kexue.search import plan_capacity

    planned = plan_capacity(_count(docs), dims, qps=qps, dtype=dtype, tokens=tokens)

    def text() -> str:
        hours = planned.build_seconds / 3600
        memory, index, disk = planned.memory_bytes, planned.index_bytes, planned.disk_bytes
        lines = [
            f"{planned.docs:,} documents of {planned.dims} dimensions",
            f"memory of a server  {memory / 1e9:9.2f} GB (index: {index / 1e9:.2f} GB)",
            f"disk                {disk / 1e9:9.2f} GB",
            f"encoding            {hours:9.2f} h on two cores",
        ]
        if qps is not None:
            rate = planned.assumptions["queries_per_second_per_replica"]
            lines.append(f"replicas            {planned.replicas:9d}   of two cores, {rate:.0f} queries a second each")
        return "\n".join(lines)

    out.emit(asdict(planned), text)


def _count(text: str) -> int:
    """Parse ``"50M"`` as 50,000,000."""
    scale = _UNITS.get(text[-1:].lower(), 1)
    try:
        return round(float(text[:-1] if scale > 1 else text.replace(",", "").replace("_", "")) * scale)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"--docs {text!r} is not a number; write 200000, 200k or 50M") from None
