"""Answers of a search on the terminal and in a pipe: a table whose text wraps, or lines of TSV that cut nothing."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kexue._text import visible
from kexue.cli._verb import Output

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from kexue.similarity import Explanation

Record = Mapping[str, Any]
_LINES = 6  # of one text on a terminal
_NARROWEST = 28  # columns for the text; in less room every hit gets a line of its own above its text
_GAP = 2  # columns between two columns of the table


class AnswerPrinter:
    """Prints one record of `answer_queries` after the other.

    Args:
        out: the output of the verb.
        show: metadata fields to print as columns.
    """

    def __init__(self, out: Output, show: Sequence[str] = ()) -> None:
        self._out, self._show = out, list(show)
        self._said: set[str] = set()
        self._header = True

    def print(self, record: Record, title: str | None = None) -> None:
        """Print an answer as JSON, as TSV where standard output is no terminal, or as a table below `title`."""
        if self._out.json:
            self._out.emit(record, str)
            return
        if not sys.stdout.isatty():
            lines = tsv_lines(record, self._show)
            self._out.emit(record, lambda: "\n".join(lines if self._header else lines[1:]))
            self._header = False
        else:
            self._out.emit(record, lambda: _render(record, self._show, title))
        self._warn(record)

    def _warn(self, record: Record) -> None:
        """Print the warnings of an answer on stderr, each sentence once."""
        hits = record["results"]
        warnings = list(record["warnings"])
        warnings += [
            f"no hit has the field {name!r}." for name in self._show if hits and not any(name in _data(h) for h in hits)
        ]
        for sentence in warnings:
            if sentence not in self._said:
                self._out.remark(f"kexue: warning: {sentence}")
                self._said.add(sentence)


def tsv_lines(record: Record, show: Sequence[str] = ()) -> list[str]:
    """Return an answer as lines of TSV, the first with the names of the columns; see `tsv_line`.

    Args:
        record: of `answer_queries`.
        show: metadata fields, each a column between the id and the text.
    """
    names = ["query", "rank", "match", *_NUMBERS, "low", "high", "id", *show, "text", "passage", "explanation"]
    lines = [tsv_line(names)]
    for rank, hit in enumerate(record["results"], start=1):
        probability = hit["probability"] or {}
        numbers = [probability.get("value") if name == "probability" else hit.get(name) for name in _NUMBERS]
        fields = [
            record["query"],
            rank,
            record.get("match"),
            *numbers,
            probability.get("low"),
            probability.get("high"),
            hit["id"],
        ]
        fields += [_data(hit).get(name) for name in show]
        fields += [
            hit["document"]["text"],
            (hit.get("passage") or {}).get("text"),
            None if hit["explanation"] is None else explanation_lines(hit["explanation"], None),
        ]
        lines.append(tsv_line(fields))
    return lines


def tsv_line(fields: Iterable[Any]) -> str:
    r"""Return values as one line of TSV: None as an empty field, numbers with all digits, lists and objects as JSON.

    Within a field a tab is written ``\t``, the end of a line ``\n`` or ``\r``, a backslash ``\\``, and other control
    characters ``\u`` with four hexadecimal digits.

    >>> tsv_line(["a\nb", 0.5, None])
    'a\\nb\t0.5\t'
    """
    return "\t".join(_escape(_plain(field)) for field in fields)


def explanation_lines(explanation: Explanation | Record, most: int | None = 12) -> str:
    """Return the pairs of words with the largest weight, one per line, and the distance; `most` None: all pairs."""
    record = explanation if isinstance(explanation, Mapping) else explanation._asdict()
    pairs = [pair if isinstance(pair, Mapping) else pair._asdict() for pair in record["pairs"]]
    lines = [
        f"    {pair['source']:>14} -> {pair['target']:<14} {pair['mass']:6.1%} of the weight at cost {pair['cost']:.3f}"
        for pair in pairs[:most]
    ]
    more = 0 if most is None else len(pairs) - most
    rest = f", {more} smaller pairs not shown" if more > 0 else ""
    return "\n".join([*lines, f"    {record['kind'].upper()} distance {record['distance']:.3f}{rest}"])


def format_percentile(percentile: float) -> str:
    """Return a percentile with as many digits as its distance from 100 needs, never rounded up to 100."""
    left = max(100 - percentile, 1e-3)
    digits = max(2, min(4, math.ceil(-math.log10(left) - 1e-6) + 1))
    scale = 10**digits
    return f"{math.floor(percentile * scale + 1e-6) / scale:.{digits}f}"


def format_chance(chance: float) -> str:
    """Return a share as a percentage, rounded up: what is above 0 is never shown as 0."""
    return f"{math.ceil(chance * 1000 - 1e-9) / 10:.1f}%"


def _format_probability(probability: Record) -> str:
    return f"{probability['value']:.2f} ({probability['low']:.2f}-{probability['high']:.2f})"


# Columns of numbers, in their order, and how a terminal shows each.
_NUMBERS: dict[str, Callable[[Any], str]] = {
    "score": lambda score: f"{score:.3f}",
    "percentile": format_percentile,
    "chance": format_chance,
    "probability": _format_probability,
}


def _data(hit: Record) -> Mapping[str, Any]:
    """Return the metadata of a hit."""
    data: Mapping[str, Any] = hit["document"]["metadata"]
    return data


def _shown_text(hit: Record) -> str:
    """Return the text of a hit: the best passage where the document was split."""
    passage = hit.get("passage")
    return str(hit["document"]["text"] if passage is None else passage["text"])


def _plain(value: Any) -> str:
    """Return a value as text: JSON for all but text and numbers; empty for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _escape(text: str) -> str:
    for character, name in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, name)
    if visible(text) == text:
        return text
    return "".join(one if visible(one) == one else f"\\u{ord(one):04x}" for one in text)


# The terminal


class _Column(NamedTuple):
    """A column other than the text: its name, one cell for each hit, and its width."""

    name: str
    cells: list[str]
    width: int
    justify: Literal["left", "right"] = "left"


def _render(record: Record, show: Sequence[str], title: str | None) -> Any:
    """Return an answer for a terminal: its title, a table or a list of hits, and explanations."""
    from rich.console import Console, Group
    from rich.styled import Styled
    from rich.text import Text

    hits = record["results"]
    parts: list[Any] = [Text(_one_line(title), style="bold")] if title else []
    if not hits:
        return Group(*parts, Text("no document matches"))
    weak = record.get("match") == "weak"
    if weak:
        parts.append(Text("no good match; the nearest documents are:"))
    width = Console().width
    columns = _make_columns(hits, show, width)
    room = width - sum(column.width + _GAP for column in columns)
    body = _make_table(columns, hits, room) if room >= _NARROWEST else _make_list(columns, hits, width)
    parts.append(Styled(body, "dim") if weak else body)
    for hit in hits:
        if hit["explanation"] is not None:
            parts += ["", Text(f"{_one_line(hit['id'])}\n{visible(explanation_lines(hit['explanation']))}")]
    return Group(*parts)


def _make_columns(hits: Sequence[Record], show: Sequence[str], width: int) -> list[_Column]:
    """Return the columns other than the text: numbers are always whole, ids and metadata may take several lines."""
    from rich.cells import cell_len

    columns = []
    for name, form in _NUMBERS.items():
        if name != "percentile" and any(hit.get(name) is not None for hit in hits):
            cells = ["" if hit[name] is None else form(hit[name]) for hit in hits]
            columns.append(_Column(name, cells, max(map(cell_len, [name, *cells])), "right"))
    fields = [("id", [_one_line(hit["id"]) for hit in hits], 0.3)]
    fields += [(name, [_one_line(_plain(_data(hit).get(name))) for hit in hits], 0.2) for name in show]
    for name, cells, share in fields:
        longest = max(map(cell_len, cells))
        columns.append(_Column(visible(name), cells, max(cell_len(name), min(longest, int(share * width)))))
    return columns


def _make_table(columns: Sequence[_Column], hits: Sequence[Record], room: int) -> Table:
    """Return hits as a table with `room` columns of the terminal for the text."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for column in columns:
        table.add_column(Text(column.name), justify=column.justify, width=column.width, overflow="fold")
    table.add_column("text", width=room)
    for row, hit in enumerate(hits):
        table.add_row(*(Text(column.cells[row]) for column in columns), Text(_short_text(hit, room)))
    return table


def _make_list(columns: Sequence[_Column], hits: Sequence[Record], width: int) -> Group:
    """Return hits one below the other, for a narrow terminal: numbers and id first, then the text, indented."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[Any] = []
    for row, hit in enumerate(hits):
        facts = [piece for column in columns for piece in (f"{column.name} {column.cells[row]}", "  ")]
        parts.append(Text("\n".join(_fill_lines(facts, width))))
        parts.append(Padding(Text(_short_text(hit, width - _GAP)), (0, 0, 0, _GAP)))
    return Group(*parts)


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def _short_text(hit: Record, width: int) -> str:
    """Return the first lines of the text of a hit, wrapped; an ellipsis and the length where there is more."""
    location = (hit.get("passage") or {}).get("location")
    text = _one_line(f"[{location}] {_shown_text(hit)}" if location else _shown_text(hit))
    lines = wrap_cells(text[: width * (_LINES + 1)], width)
    if len(lines) > _LINES:
        note = f" ... ({len(text):,} characters)"
        lines = [*lines[: _LINES - 1], *wrap_cells(lines[_LINES - 1], max(1, width - len(note)))[:1]]
        lines[-1] += note
    return "\n".join(lines)


def wrap_cells(text: str, width: int) -> list[str]:
    """Return lines of at most `width` columns of a terminal; a line ends after a word or a Chinese character.

    >>> wrap_cells("退货要多久？about a week", 10)
    ['退货要多', '久？about', 'a week']
    """
    return _fill_lines(_PIECES.findall(text), width)


def _fill_lines(pieces: Sequence[str], width: int) -> list[str]:
    """Return lines of at most `width` columns, which end between two pieces where possible."""
    from rich.cells import cell_len, chop_cells

    lines, line = [], ""
    for piece in pieces:
        if cell_len(line + piece) > width and not piece.isspace():
            lines += [line.rstrip()] if line.strip() else []
            *whole, line = chop_cells(piece, width) if cell_len(piece) > width else [piece]
            lines += whole
        elif line or not piece.isspace():
            line += piece
    return [*lines, line.rstrip()] if line.strip() or not lines else lines


_WIDE = "\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff01-\uff60\U0001f300-\U0003ffff"
_CLOSING = "，。！？；：、）》」』】”’"
_PIECES = re.compile(rf"[{_WIDE}][{_CLOSING}]*|[^\s{_WIDE}]+[{_CLOSING}]*|\s+")
