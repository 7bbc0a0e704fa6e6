"""Page of the demo: one HTML file without further files."""

from __future__ import annotations

import base64
import tempfile
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from kexue._figures import save_figure
from kexue._files import replacing
from kexue.demo.report import DemoReport, DemoRow
from kexue.errors import MissingDependencyError

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>kexue demo</title>
<style>
  body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1d2430; }
  h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; }
  table { border-collapse: collapse; width: 100%; }
  th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #dde3ea; }
  th:first-child, td:first-child { text-align: left; }
  tr.saved { background: #eef6ff; }
  img { max-width: 100%; }
  code, pre { font-family: ui-monospace, monospace; background: #f4f6f8; }
  pre { padding: .8rem; overflow-x: auto; }
  li span { color: #66707c; }
</style>
</head>
<body>
<h1>The standard library, searchable by meaning</h1>
<p>This index holds $documents docstrings of this machine's Python. It was tested with $queries queries whose answer is
known: a query is the words of an object's name, or a sentence of its docstring that was <em>not</em> indexed; the only
right answer is that object.</p>
<h2>Quality, memory and time</h2>
$picture
<table>
<tr><th>vectors</th><th>dimensions</th><th>MRR@10 (95 %)</th><th>recall@10</th><th>memory</th>
<th>one search (quartiles)</th></tr>
$rows
</table>
<p>The interval of MRR is for other queries of the same kind; where intervals overlap, the table does not show which
setting is better. The time of one search, without encoding, is the median of $timed searches; the indexes take
turns.</p>
<p>Nothing was fitted on labels. <em>pca</em> rotates the vectors onto their principal axes and keeps the strongest;
<em>whiten</em> also scales the remaining axes to equal variance. The marked row is the saved index: a setting that is
safe to choose before any measurement. For your own texts, <code>kexue whiten tune</code> chooses by labelled
pairs.</p>
<h2>Questions</h2>
$answers
<h2>Next steps</h2>
<pre>kexue search $index "your question"
kexue index build your-texts.csv --text COLUMN --out yours.kx
kexue search yours.kx "your question"</pre>
</body>
</html>
""")


def write_page(report: DemoReport, *, queries: int, saved: tuple[str, int]) -> None:
    """Write the page of a report, without a picture where matplotlib is missing.

    Args:
        report: report to show; the page is written to `report.report`.
        queries: number of queries.
        saved: setting and dimensions of the saved index, whose row is marked.
    """
    rows = "\n".join(_row(row, marked=(row.setting, row.dims) == saved) for row in report.rows)
    answers = "\n".join(
        f"<h3>{escape(answer['question'])}</h3>\n<ol>"
        + "".join(
            f"<li><code>{escape(hit['id'])}</code> <span>{hit['score']:.3f}</span><br>{escape(hit['text'])}</li>"
            for hit in answer["results"]
        )
        + "</ol>"
        for answer in report.answers
    )
    page = _PAGE.substitute(
        documents=f"{report.documents:,}",
        queries=f"{queries:,}",
        timed=str(report.rows[0].timed),
        picture=_picture(report.rows),
        rows=rows,
        answers=answers,
        index=escape(report.index),
    )
    with replacing(report.report) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _row(row: DemoRow, *, marked: bool) -> str:
    """Return a row of the table."""
    cells = (
        row.setting,
        row.dims,
        f"{row.mrr:.3f} ({row.mrr_low:.3f}-{row.mrr_high:.3f})",
        f"{row.recall:.3f}",
        f"{row.memory_bytes / 1e6:.1f} MB",
        f"{row.latency_ms:.2f} ms ({row.latency_low_ms:.2f}-{row.latency_high_ms:.2f})",
    )
    return f"<tr{' class=saved' if marked else ''}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _picture(rows: list[DemoRow]) -> str:
    """Return quality against memory as an embedded picture, or a sentence where matplotlib is missing."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for setting, marker, below in (("pca", "o", -14), ("whiten", "s", 6)):
            points = [row for row in rows if row.setting == setting]
            axes.plot(
                [row.memory_bytes / 1e6 for row in points], [row.mrr for row in points], f"{marker}-", label=setting
            )
            for row in points:
                axes.annotate(f"{row.dims}", (row.memory_bytes / 1e6, row.mrr), (4, below), textcoords="offset points")
        raw = rows[0]
        axes.axhline(raw.mrr, color="0.5", linestyle="--", label=f"raw, {raw.dims} dimensions")
        axes.set_xlabel("memory of the vectors, MB")
        axes.set_ylabel("MRR@10")
        axes.set_ylim(0.8 * min(row.mrr for row in rows), None)
        axes.legend(loc="lower right")

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "figure.png"
        try:
            save_figure(draw, path)
        except MissingDependencyError as missing:
            return f"<p>(No picture: {escape(str(missing))})</p>"
        encoded = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="Quality against memory" src="data:image/png;base64,{encoded}">'
