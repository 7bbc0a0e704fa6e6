"""`kexue models`: the models on this machine and the recommended ones, with what was measured of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kexue.cli._verb import Output, verb

if TYPE_CHECKING:
    import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "models", examples=("kexue models", "kexue models --json"))(models)


def models(out: Output) -> None:
    """List the models on this machine and the recommended ones: languages, size, speed, quality, how to get each."""
    from kexue.text.recommended import describe_models

    record = describe_models()
    out.emit(record, lambda: _render(record))


def _render(record: dict[str, Any]) -> Any:
    """Return the record for the terminal."""
    from rich.console import Group
    from rich.table import Table

    heads = ("model", "reads", "here", "dims", "disk", "speed", "zh pairs", "en pairs", "zh questions", "en questions")
    table = Table(*heads, box=None, pad_edge=False)
    lines = []
    for model in record["models"]:
        quality, recall = model["quality"], model["recall"]
        table.add_row(
            model["name"],
            model["reads"],
            "yes" if model["here"] else "no",
            str(model["dims"]),
            f"{model['bytes'] / 1e6:.0f} MB",
            f"{model['speed']:.2f}",
            f"{quality['zh']['spearman']:.1f}",
            f"{quality['en']['spearman']:.1f}",
            f"{recall['zh']['recall']:.0%}",
            f"{recall['en']['recall']:.0%}",
        )
        state = f"here: {model['place']}" if model["here"] else f"get it: {model['get']}, or --model {model['hub']}"
        lines.append(f"{model['name']} ({model['license']}): for {model['chosen']}; {state}")
    lines += [f"{other['name']}: in the hub's cache" for other in record["others"]]
    return Group(table, "", *lines, "", *_explain(record))


def _explain(record: dict[str, Any]) -> list[str]:
    """Return what the columns of figures mean."""
    model = record["models"][0]
    counts = {
        language: ", ".join(f"{name} ({row['n']:,})" for name, row in model["quality"][language]["sets"].items())
        for language in ("zh", "en")
    }
    return [
        f"speed: texts a second, {model['name']} = 1, on one thread of a processor",
        f"zh pairs: Spearman x100, mean of {counts['zh']}; en pairs: of {counts['en']}",
        f"questions: share of {model['recall']['zh']['n']} about Python's English documentation, asked in zh or en, "
        "whose answer is among the first 10",
        f"measured {record['measured']} by benchmarks/models.py; all intervals: kexue models --json",
        'Without --model and KEXUE_MODEL the first texts decide ("auto"); an index keeps its model.',
    ]
