"""Documents as people have them: their text, the place of pages and headings, and what is wrong with a file."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pytest

from kexue.corpus import read_records
from kexue.corpus.decoding import Decoder
from kexue.corpus.documents import Parsed, find_location, read_document
from kexue.errors import DataError

for name in ("pypdf", "docx", "bs4", "markdown_it"):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install 'kexue[documents]'")


def read(path: Path, **options: object) -> Parsed:
    return read_document(str(path), Decoder("strict", **options))  # type: ignore[arg-type]


def places(parsed: Parsed) -> list[tuple[str, str]]:
    """Each heading, and the text that begins where it is said to begin."""
    return [(words, parsed.text[at : at + len(words)]) for at, words in parsed.metadata.get("headings", [])]


# Markdown


def test_markdown_keeps_its_text_and_finds_its_headings(tmp_path: Path) -> None:
    source = "---\ntitle: x\n---\nIntro\n\n# One `code` *more*\n\ntext\n\n```\n# not a heading\n```\n\n"
    source += "Two\n---\n\n> # quoted\n\n## 三 ##\nend\n"
    (tmp_path / "a.md").write_text(source)
    parsed = read(tmp_path / "a.md")
    assert parsed.text == source
    assert [words for _, words in parsed.metadata["headings"]] == ["One code more", "Two", "三"]
    assert [source[at:].splitlines()[0] for at, _ in parsed.metadata["headings"]] == [
        "# One `code` *more*",
        "Two",
        "## 三 ##",
    ]
    (tmp_path / "b.md").write_text("only text\r\n")
    assert read(tmp_path / "b.md") == ("only text\r\n", {})


# HTML


def test_html_is_what_a_reader_sees(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        """<!doctype html><html><head><title>T</title><style>p {}</style></head><body>
        <script>var hidden;</script><!-- hidden -->
        <h1>Big  <b>title</b></h1><p>One <i>wo</i>rd.<br>Next &amp; line</p>
        <ul><li>first<li>second</ul><table><tr><td>a<td>b<tr><td>c</table>
        <div><h2></h2><h2>Part two</h2>Text<p>End"""
    )
    parsed = read(tmp_path / "a.html")
    assert parsed.text == "Big title\n\nOne word.\nNext & line\n\nfirst\nsecond\n\na b\nc\n\nPart two\n\nText\n\nEnd"
    assert places(parsed) == [("Big title", "Big title"), ("Part two", "Part two")]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("<meta charset=utf-16><p>退货".encode(), "退货"),  # which could not be read if it were true
        (b"\xef\xbb\xbf<meta charset=gb2312><p>" + "退货".encode(), "退货"),
        ("<meta charset=gb2312><p>镕㐀".encode("gb18030"), "镕㐀"),  # not in GB2312
        (b"<meta charset=iso-8859-1><p>\x93a\x94 \x80", "“a” €"),
        ("<meta charset=ascii><p>退货".encode(), "退货"),
        ("<meta charset=nosuch><p>退货".encode(), "退货"),
        ("<meta charset=auto><p>退货".encode(), "退货"),
        ('<?xml version="1.0" encoding="big5"?><p>退貨'.encode("big5"), "退貨"),
        ('<!-- a --><?xml version="1.0"?><html><p>退货'.encode(), "退货"),
        (b"a.html", "a.html"),
        (b"<![if !vml]>a<![endif]>", "a"),
    ],
)
def test_html_is_read_as_a_browser_reads_it(tmp_path: Path, raw: bytes, text: str) -> None:
    (tmp_path / "a.html").write_bytes(raw)
    assert read(tmp_path / "a.html").text == text


def test_html_that_is_not_what_it_declares_is_refused_or_repaired(tmp_path: Path) -> None:
    """Guessing would give a text in Cyrillic letters."""
    (tmp_path / "a.html").write_bytes(b"<meta charset=gb2312>\n<p>" + "退货".encode() + b"\xff")
    with pytest.raises(DataError, match="line 2, column 6: byte 0x80 is not GB18030"):
        read(tmp_path / "a.html")
    (tmp_path / "b.html").write_bytes(b"<meta charset=utf-8><p>caf\xe9")
    with pytest.raises(DataError, match="byte 0xe9 is not UTF-8"):
        read(tmp_path / "b.html")
    (tmp_path / "c.html").write_bytes("<meta charset=utf-8><p>退货".encode("gb18030"))
    decoder = Decoder("strict", encoding="gb18030")
    assert read_document(str(tmp_path / "c.html"), decoder).text == "退货", "what the caller names is taken"
    (tmp_path / "d.html").write_bytes(b"<![ bad <p>z")
    with pytest.raises(DataError, match="cannot be read as HTML"):
        read(tmp_path / "d.html")


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_html_is_read_in_the_encoding_it_declares(tmp_path: Path, encoding: str) -> None:
    text = f'<html><head><meta charset="{encoding}"></head><body><p>退货需要五天。</p></body></html>'
    (tmp_path / "a.htm").write_bytes(text.encode(encoding))
    assert read(tmp_path / "a.htm").text == "退货需要五天。"
    (tmp_path / "b.html").write_text("<p>没有声明</p>")
    assert read(tmp_path / "b.html").text == "没有声明"


def test_html_nested_without_end_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<div>" * 3000 + "deep")
    assert read(tmp_path / "a.html").text == "deep"


# PDF


def pdf(*pages: list[str]) -> bytes:
    """A PDF file of pages of lines."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for lines in pages:
        shown = "".join(f"({line}) Tj T* " for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {shown}ET".encode("latin-1")
        objects.append(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream))
        kids.append(b"%d 0 R" % (len(objects) + 1))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % len(objects)
        )
    objects[1] = b"<< /Type /Pages /Kids [%b] /Count %d >>" % (b" ".join(kids), len(kids))
    data, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(data))
    return data + b"xref\n0 %d\n0000000000 65535 f \n%b%b" % (len(objects) + 1, table, end)


PAGES = (["The first page has a sen-", "tence that goes", "on. A line", "of its own"], [], ["Third page."])


def test_pdf_pages_are_found_by_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(*PAGES))
    parsed = read(tmp_path / "a.pdf")
    assert parsed.text == "The first page has a sentence that goes on. A line of its own\n\n\n\nThird page."
    assert [parsed.text[at:][:5] for at in parsed.metadata["pages"]] == ["The f", "\n\nThi", "Third"]
    assert find_location(parsed.metadata, parsed.text.index("Third")) == "page 3"
    assert find_location(parsed.metadata, parsed.text.index("goes")) == "page 1"
    (tmp_path / "b.pdf.gz").write_bytes(gzip.compress(pdf(*PAGES)))
    assert read(tmp_path / "b.pdf.gz") == parsed


def protect(data: bytes, user: str, owner: str) -> bytes:
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(data))
    writer.encrypt(user, owner, algorithm="AES-256")
    written = io.BytesIO()
    writer.write(written)
    return written.getvalue()


def test_pdf_that_anyone_may_read_is_read_and_one_with_a_password_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    (tmp_path / "a.pdf").write_bytes(protect(pdf(*PAGES), "", "owner"))
    assert read(tmp_path / "a.pdf").text.startswith("The first page")
    (tmp_path / "b.pdf").write_bytes(protect(pdf(*PAGES), "secret", "owner"))
    with pytest.raises(DataError, match="protected with a password") as caught:
        read(tmp_path / "b.pdf")
    assert caught.value.remedy
    assert Path(str(caught.value.path)).name == "b.pdf"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.pdf", pdf([], []), "no text"),
        ("a.pdf", pdf(), "no text"),
        ("a.pdf", b"", "damaged"),
        ("a.pdf", b"this is no PDF", "damaged"),
        ("a.pdf", pdf(["x"])[:60], "damaged"),
        ("a.docx", b"", "damaged"),
        ("a.docx", b"PK\x03\x04 broken", "damaged"),
        ("a.html", b"<p> <br>", "no text"),
    ],
)
def test_files_without_text_and_damaged_ones_are_named_with_a_remedy(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        read(tmp_path / name)
    assert Path(str(caught.value.path)).name == name
    assert "leave" in str(caught.value.remedy).lower()


def test_any_damage_to_a_pdf_is_told_or_harmless(tmp_path: Path) -> None:
    import numpy as np

    data, draw = pdf(*PAGES), np.random.default_rng(0)
    texts, errors = [], []
    for _ in range(150):
        harmed = bytearray(data)
        for place in draw.integers(0, len(data), 6).tolist():
            harmed[place] = int(draw.integers(256))
        (tmp_path / "a.pdf").write_bytes(harmed)
        try:
            texts.append(read(tmp_path / "a.pdf").text)
        except DataError as error:
            errors.append(error)
    assert all(text.strip() for text in texts)
    assert all(str(error.path).endswith("a.pdf") and error.remedy for error in errors)
    assert len(texts) + len(errors) == 150


# Word


def word(path: Path) -> None:
    import docx

    document = docx.Document()
    document.add_heading("Manual", 0)
    document.add_paragraph("Some words.")
    document.add_heading("Returns", 1)
    document.add_paragraph("Five days.")
    table = document.add_table(2, 2)
    for cell, text in zip([*table.rows[0].cells, *table.rows[1].cells], ["fee", "none", "days", "5"], strict=True):
        cell.text = text
    document.add_paragraph("After the table.")
    document.save(path)


def test_word_is_read_in_order_with_headings_and_tables(tmp_path: Path) -> None:
    word(tmp_path / "a.docx")
    parsed = read(tmp_path / "a.docx")
    assert parsed.text == "Manual\n\nSome words.\n\nReturns\n\nFive days.\n\nfee none\ndays 5\n\nAfter the table."
    assert places(parsed) == [("Manual", "Manual"), ("Returns", "Returns")]
    assert find_location(parsed.metadata, parsed.text.index("days 5")) == "Returns"


def test_word_with_a_broken_part_is_refused(tmp_path: Path) -> None:
    word(tmp_path / "a.docx")
    with zipfile.ZipFile(tmp_path / "a.docx") as old, zipfile.ZipFile(tmp_path / "b.docx", "w") as new:
        for item in old.infolist():
            data = old.read(item)
            new.writestr(item, data[: len(data) // 2] if item.filename == "word/document.xml" else data)
    with pytest.raises(DataError, match=r"Word document.*damaged"):
        read(tmp_path / "b.docx")
    with zipfile.ZipFile(tmp_path / "c.docx", "w") as other:
        other.writestr("hello.txt", "no document")
    with pytest.raises(DataError, match=r"Word document.*damaged"):
        read(tmp_path / "c.docx")


# All kinds


def test_the_limit_of_length_holds_for_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(*PAGES))
    with pytest.raises(DataError, match="longer than 20 bytes"):
        read(tmp_path / "a.pdf", max_bytes=20)


def test_locations_of_metadata_from_elsewhere_are_none() -> None:
    for metadata in (
        {},
        {"pages": 7},
        {"pages": ["a", "b"]},
        {"headings": [1, 2]},
        {"headings": [[5, "late"]]},
        {"pages": [9]},
    ):
        assert find_location(metadata, 3) is None


def test_a_folder_of_documents_is_read_and_what_is_not_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.pdf").write_bytes(pdf(*PAGES))
    word(folder / "deep" / "b.docx")
    (folder / "c.md").write_text("# Head\nwords\n")
    (folder / "d.txt").write_text("plain\n")
    (folder / "e.htm").write_text("<h1>Web</h1>page")
    for name in ("z.png", "y.doc", "deep/x.zip"):
        (folder / name).write_bytes(b"\x00")
    records = read_records(folder)
    found = {record.id: record for record in records}
    assert list(found) == ["a.pdf", "c.md", "d.txt", "deep/b.docx", "e.htm"]
    assert found["a.pdf"].metadata == {"pages": [0, 63, 65]}
    assert found["c.md"].metadata == {"headings": [[0, "Head"]]}
    assert found["d.txt"][1:3] == ("plain\n", {})
    [remark] = records.remarks()
    assert "3 files not read" in remark
    assert all(name in remark for name in ("z.png", "y.doc", "deep/x.zip"))
    [alone] = read_records(folder / "e.htm")
    assert (alone.id, alone.text, alone.metadata) == ("e.htm", "Web\n\npage", {"headings": [[0, "Web"]]})
    (folder / "a.pdf").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"a\.pdf.*damaged"):
        list(read_records(folder))
