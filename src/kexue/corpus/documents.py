"""Text of documents (Markdown, HTML, PDF, Word), and where its pages or headings begin.

======== =================== ==================================================== ====================
format   endings             text                                                 metadata
======== =================== ==================================================== ====================
Markdown .md .markdown       as in the file                                       headings
HTML     .html .htm          what a reader sees, a blank line between paragraphs  headings
PDF      .pdf                of each page, a blank line between pages             pages
Word     .docx               paragraphs and rows of tables                        headings
======== =================== ==================================================== ====================

``headings`` is a list of [character, heading], ``pages`` the list of the characters where the pages begin.
"""

from __future__ import annotations

import io
import logging
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from kexue._optional import import_optional
from kexue.corpus.decoding import REPLACEMENT, Decoder, decode_document
from kexue.corpus.open import open_bytes, split_suffix
from kexue.errors import DataError, KexueError

_SEPARATORS = ("", " ", "\n", "\n\n")  # between two pieces of text, weakest first
_SPACE, _LINE, _PARAGRAPH = _SEPARATORS[1:]
_HIDDEN = ("script", "style", "template", "noscript", "head", "svg", "iframe", "object")
_PARAGRAPHS = re.compile(
    "address|article|aside|blockquote|dd|details|div|dl|dt|fieldset|figcaption|figure|footer|form|h[1-6]|header|hr|main|"
    "nav|ol|p|pre|section|table|ul"
)
_LINES = re.compile("br|caption|li|option|summary|tr")
_HEADING = re.compile(r"h[1-6]")
_HEAD = 4096  # bytes in which an HTML file declares its encoding
_STANDARD_ENCODINGS = {  # as browsers read what is declared: the larger set of the same kind
    **dict.fromkeys(("iso-8859-1", "iso8859-1", "latin1", "latin-1"), "windows-1252"),
    **dict.fromkeys(("ascii", "us-ascii"), "auto"),
    **dict.fromkeys(("gb2312", "gbk", "x-gbk"), "gb18030"),
    **dict.fromkeys(("utf-16", "utf-16le", "utf-16be"), "utf-8"),  # or the declaration could not be read
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc-kr": "cp949",
    "iso-8859-9": "windows-1254",
}
_XML_MARK = re.compile(r"<\?xml\b.*?\?>", re.DOTALL)
_FRONT_MATTER = re.compile(r"\A---\r?\n.*?^---\s*?$", re.DOTALL | re.MULTILINE)
_UNREADABLE = re.compile("[\0\ud800-\udfff]")
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u00ad\u2010]\n(?=[a-zà-öø-ÿ])")  # of a word divided between two lines
_WRAPPED = re.compile(r"(?<![.!?:;。！？：；…\n])\n(?=[^\W\d_A-Z])")  # the end of a line within a sentence
_BETWEEN_CHINESE = re.compile(r"(?<=[\u2e80-\uffef]) (?=[\u2e80-\uffef])")


class Parsed(NamedTuple):
    """The text of a document, and where its pages or headings begin."""

    text: str
    metadata: dict[str, Any]


def read_document(path: str, decoder: Decoder) -> Parsed:
    """Read the text of a file of any kind; one whose ending says nothing else is a text file.

    Args:
        path: the file, also compressed.
        decoder: encoding of text files, and limit of a text's length.

    Raises:
        DataError: a file that is damaged, has no text, or is protected with a password.
        MissingDependencyError: the library for this kind of file is not installed (extra ``documents``).
    """
    read = READERS.get(split_suffix(path)[0])
    if read is None:
        return Parsed(decode_document(path, decoder), {})
    parsed = read(path, decoder)
    decoder.check_length(len(parsed.text), path=path, line=None, what="the document")
    return parsed


def find_location(metadata: Mapping[str, Any], start: int) -> str | None:
    """Return the page or the heading that the character `start` of a document is under; None where there is none.

    >>> find_location({"pages": [0, 1200, 2950]}, 1800)
    'page 2'
    >>> find_location({"headings": [[0, "Returns"], [310, "Refunds"]]}, 200)
    'Returns'
    """
    pages, headings = metadata.get("pages"), metadata.get("headings")
    try:
        if isinstance(pages, list):
            return f"page {page}" if (page := bisect_right(pages, start)) else None
        if isinstance(headings, list):
            last = bisect_right(headings, start, key=lambda heading: heading[0])
            return str(headings[last - 1][1]) if last else None
    except (TypeError, IndexError, KeyError):  # metadata of the same name from elsewhere
        pass
    return None


# ---- Markdown and HTML -----------------------------------------------------------------------------------------------


def _read_markdown(path: str, decoder: Decoder) -> Parsed:
    """Read a Markdown file; its text stays as it is."""
    text = decode_document(path, decoder)
    parser = import_optional("markdown_it").MarkdownIt("commonmark")
    body = _FRONT_MATTER.sub(lambda match: "\n" * match[0].count("\n"), text)
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    tokens = parser.parse(body)
    headings = [
        [starts[opened.map[0]], _plain(inside)]
        for opened, inside in pairwise(tokens)
        if opened.type == "heading_open" and opened.level == 0
    ]
    return Parsed(text, {"headings": headings} if headings else {})


def _plain(inline: Any) -> str:
    """Return the words of a line of Markdown."""
    words = (child.content if child.type in ("text", "code_inline") else " " for child in inline.children)
    return " ".join("".join(words).split())


def _read_html(path: str, decoder: Decoder) -> Parsed:
    """Read an HTML file; the encoding that it declares is believed, unless the caller names one."""
    bs4 = import_optional("bs4")
    with open_bytes(path) as stream:
        declared = bs4.dammit.EncodingDetector.find_declared_encoding(stream.read(_HEAD), True, True)
    if declared is not None:
        decoder.believe(path, _STANDARD_ENCODINGS.get(declared, declared))
    source = io.StringIO(_XML_MARK.sub("", decode_document(path, decoder), count=1))
    with _explain(path, "HTML", bs4.exceptions.ParserRejectedMarkup):
        root = bs4.BeautifulSoup(source, "html.parser")
    writer = _Writer()
    for event, node in _events(root):
        name = node.name or ""
        if not event:
            writer.write(str(node))
        elif (block := _PARAGRAPHS.fullmatch(name)) or _LINES.fullmatch(name):
            writer.separate(_PARAGRAPH if block else _LINE)
            if _HEADING.fullmatch(name):
                writer.mark_heading(event == "open")
        elif name in ("td", "th"):
            writer.separate(_SPACE)
    return writer.finish(path)


def _events(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield ``("open", tag)``, ``("", text)`` and ``("close", tag)`` in order, without recursion and hidden parts."""
    bs4 = import_optional("bs4")
    stack: list[tuple[Any, Iterator[Any]]] = [(root, iter(root.children))]
    while stack:
        tag, children = stack[-1]
        child = next(children, None)
        if child is None:
            stack.pop()
            yield "close", tag
        elif isinstance(child, bs4.Tag):
            if child.name not in _HIDDEN:
                yield "open", child
                stack.append((child, iter(child.children)))
        elif type(child) is bs4.NavigableString:  # neither a comment nor a declaration
            yield "", child


class _Writer:
    """Text made of pieces: spaces are joined, and the strongest separator between two pieces is kept."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0
        self._separator = ""
        self._headings: list[list[Any]] = []
        self._heading: list[Any] | None = None

    def separate(self, separator: str) -> None:
        """Put at least `separator` between what was written and what comes."""
        self._separator = max(self._separator, separator, key=_SEPARATORS.index)

    def mark_heading(self, begins: bool) -> None:
        """Note that a heading begins, or ends."""
        self._heading = [] if begins else None

    def write(self, text: str) -> None:
        """Add a piece of text."""
        words = " ".join(text.split())
        if text[:1].isspace():
            self.separate(_SPACE)
        if not words:
            return
        separator = self._separator if self._pieces else ""
        if self._heading == []:
            self._heading += [self._length + len(separator), words]
            self._headings.append(self._heading)
        elif self._heading:
            self._heading[1] += " " * bool(separator) + words
        self._pieces.append(separator + words)
        self._length += len(separator) + len(words)
        self._separator = _SPACE if text[-1:].isspace() else ""

    def finish(self, path: str) -> Parsed:
        """Return the text and its headings; DataError where there is no text."""
        if not self._pieces:
            raise DataError("the document has no text.", remedy="Leave it out.", path=path)
        text = _UNREADABLE.sub(REPLACEMENT, "".join(self._pieces))
        return Parsed(text, {"headings": self._headings} if self._headings else {})


# ---- PDF and Word ----------------------------------------------------------------------------------------------------


def _read_pdf(path: str, decoder: Decoder) -> Parsed:
    """Read a PDF file. Lines that the page has broken are joined again."""
    pypdf = import_optional("pypdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of every small fault that it repairs
    pages, starts, length = [], [], 0
    with _explain(path, "a PDF", pypdf.errors.PyPdfError):
        reader = pypdf.PdfReader(io.BytesIO(_read_bytes(path)))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError(
                "the PDF is protected with a password.",
                remedy="Save a copy without the password, or leave the file out.",
                path=path,
            )
        for page in reader.pages:
            pages.append(_unwrap(_UNREADABLE.sub(REPLACEMENT, page.extract_text())))
            starts.append(length)
            length += len(pages[-1]) + len(_PARAGRAPH)
            decoder.check_length(length, path=path, line=None, what="the document")
    if not any(pages):
        raise DataError(
            "the PDF has no text: its pages are pictures, or empty.",
            remedy="Recognise the text first (for example with ocrmypdf), or leave the file out.",
            path=path,
        )
    return Parsed(_PARAGRAPH.join(pages), {"pages": starts})


def _unwrap(page: str) -> str:
    """Return the text of a page with divided words and broken sentences joined.

    >>> _unwrap("A sen-\\ntence that\\ngoes on.\\nAnother one.")
    'A sentence that goes on.\\nAnother one.'
    """
    lines = "\n".join(line.strip() for line in page.strip().splitlines())
    return _BETWEEN_CHINESE.sub("", _WRAPPED.sub(" ", _HYPHEN.sub("", lines)))


def _read_docx(path: str, decoder: Decoder) -> Parsed:
    """Read a Word file: its paragraphs and tables, without headers, footers, notes and text boxes."""
    docx = import_optional("docx")
    writer = _Writer()
    with _explain(path, "a Word document (.docx)", Exception):  # of zipfile, lxml and docx, none with a common base
        for block in docx.Document(io.BytesIO(_read_bytes(path))).iter_inner_content():
            writer.separate(_PARAGRAPH)
            if hasattr(block, "rows"):
                for row in block.rows:
                    writer.separate(_LINE)
                    for cell in dict.fromkeys(cell._tc for cell in row.cells):  # a merged cell comes several times
                        writer.separate(_SPACE)
                        writer.write("".join(cell.itertext("{*}t")))
                continue
            style = str(block.style.name or "") if block.style is not None else ""
            writer.mark_heading(style == "Title" or style.startswith("Heading"))
            writer.write(block.text)
    return writer.finish(path)


def _read_bytes(path: str) -> bytes:
    """Return all bytes of a file, decompressed."""
    with open_bytes(path) as stream:
        return stream.read()


@contextmanager
def _explain(path: str, kind: str, errors: type[Exception]) -> Iterator[None]:
    """Turn the errors of a library that reads the file at `path` into a DataError."""
    try:
        yield
    except KexueError:
        raise
    except (errors, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"the file cannot be read as {kind}: it is damaged, cut short or of another kind "
            f"({type(error).__name__}: {error!s:.100}).",
            remedy="Open it in the program it comes from and save it again, or leave it out.",
            path=path,
        ) from error


READERS: Mapping[str, Callable[[str, Decoder], Parsed]] = {
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".html": _read_html,
    ".htm": _read_html,
    ".pdf": _read_pdf,
    ".docx": _read_docx,
}
