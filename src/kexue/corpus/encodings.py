"""Encoding and line ends of a text file, decided by reading it; and its bytes as UTF-8.

The rule for the encoding reads the whole file, so that no part is read wrongly in silence: a byte order mark decides;
else a file that is UTF-8 throughout is UTF-8; else it is GB18030 if (nearly) all lines are, and its characters occur as
in Chinese: at least nine of ten letters are Chinese characters, and the 200 most common ones are too frequent for
another language read as GB18030 (Korean, the nearest, reaches 9 %; Chinese 20 to 70 %). Otherwise it is read as UTF-8,
whose errors name the line and the byte, and the user names the encoding.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

from kexue.errors import DataError

BLOCK = 1 << 16  # bytes read at a time
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"}
_MARKS |= {codecs.BOM_UTF16_BE: "utf-16"}  # in this order: the mark of UTF-32 begins with that of UTF-16
_COMMON = frozenset(
    "的是不一了我有人么在个花时保你还呗好店大什险可这吗以为上多年用中分能小到地天酒点来家国电道怎生没和要很里子得他日机下"
    "行也手都间如北月出会过新金知开看就周餐说京后水何最去度少成边自对高期那无话名作长公送心发方借风车前房吃学于款提馆山"
    "西面服东动之平三影务明云本相现主景全更通与太外果门费寿理美们意游哪事想号等清春价定比合次信正海给打法部区业情错经样"
    "物文老同着十重女评今真两体香路应入元实回只客关快歌啊南问"
)  # the 200 most frequent characters of questions, reviews, dialogues and encyclopedia articles
_CHANCE = 0.12  # of a common character in a text of another language; 9 % measured in Korean
_DOUBT = 1e-4  # probability that chance gives so many common characters
_ENOUGH = 20_000  # characters that decide
_SPOILT = 0.02  # share of lines that may be malformed in a file that is GB18030 otherwise
_ENDS = re.compile(rb'"|\r\n?|\n')
_SWAP = bytes.maketrans(b"\r\n", b"\n\r")

Opener = Callable[[], AbstractContextManager[BinaryIO]]


def check_encoding(name: str) -> str:
    """Return the name of an encoding as Python writes it; ``"auto"`` stays.

    Raises:
        ValueError: it is unknown, or is no encoding of text.

    >>> check_encoding("GB18030"), check_encoding("UTF8")
    ('gb18030', 'utf-8')
    """
    if name == "auto":
        return name
    try:
        known = codecs.lookup(name).name
        if "a\n".encode(known).decode(known) != "a\n":
            raise LookupError
    except (LookupError, UnicodeError):
        raise ValueError(
            f"unknown encoding {name!r}; expected auto, utf-8, utf-16, gb18030, or another name that Python knows, "
            "such as big5 or shift_jis"
        ) from None
    return "utf-8" if known == "utf-8-sig" else known


def show_encoding(name: str) -> str:
    """Return the usual spelling of an encoding's name.

    >>> show_encoding("utf-8"), show_encoding("gb18030")
    ('UTF-8', 'GB18030')
    """
    return name.upper().replace("_", "-")


def find_encoding(open: Opener) -> str:
    """Return the encoding of a file by the rule of this module; `open` opens its bytes, once or twice."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open() as stream:
        block = stream.read(BLOCK)
        for mark, name in _MARKS.items():
            if block.startswith(mark):
                return name
        try:
            while block:
                decoder.decode(block)
                block = stream.read(BLOCK)
            decoder.decode(b"", final=True)
            return "utf-8"
        except UnicodeDecodeError:
            pass
    with open() as stream:
        return "gb18030" if _is_chinese(stream) else "utf-8"


def _is_chinese(stream: BinaryIO) -> bool:
    """Return whether the lines of a file are GB18030, and its characters occur as in Chinese."""
    lines = spoilt = letters = chinese = common = 0
    rest = b""
    while True:
        block = stream.read(BLOCK)
        parts = (rest + block).splitlines(keepends=True)
        rest = parts.pop() if block and parts and parts[-1][-1:] not in b"\r\n" else b""
        for raw in parts:
            if raw.isascii():
                continue
            lines += 1
            try:
                text = raw.decode("gb18030")
            except UnicodeDecodeError:
                spoilt += 1
                continue
            if _is_chinese_utf8(raw):  # a file of two encodings
                return False
            if letters < _ENOUGH:
                wide = [char for char in text if char > "\x7f" and char.isalpha()]
                ours = [char for char in wide if "\u4e00" <= char <= "\u9fff"]
                letters, chinese = letters + len(wide), chinese + len(ours)
                common += sum(char in _COMMON for char in ours)
        if not block:
            break
    if not letters or spoilt > _SPOILT * lines or 10 * chinese < 9 * letters:
        return False
    from scipy.special import bdtrc  # only here: the command line reads this file for its help

    return float(bdtrc(common - 1, chinese, _CHANCE)) < _DOUBT if common else False


def _is_chinese_utf8(raw: bytes) -> bool:
    """Return whether a line is UTF-8 with two Chinese characters or more; by chance, GB18030 hardly ever is."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return sum("\u4e00" <= char <= "\u9fff" for char in text) > 1


def ends_with_cr(stream: BinaryIO, *, quoted: bool) -> bool:
    """Return whether CR alone ends the lines of a file.

    Args:
        stream: its bytes, in UTF-8 or a like encoding.
        quoted: double quotes may hold line ends, as in CSV; the first line end outside them decides. False: CR ends
            lines where the file has no LF.
    """
    inside = lone = False
    while block := stream.read(BLOCK):
        if block.endswith(b"\r"):
            block += stream.read(1)
        for mark in _ENDS.findall(block):
            if mark == b'"':
                inside = quoted and not inside
            elif mark == b"\r" and not inside:
                lone = True
                if quoted:
                    return True
            elif not inside:
                return False
    return lone


class Recoded(io.RawIOBase):
    """A stream in UTF-8 of a stream in another encoding.

    Bytes that are malformed there become halves of surrogate pairs: U+DC80 to U+DCFF stand for the bytes 80 to FF.

    Args:
        stream: bytes in `encoding`; it stays open.
        encoding: a name that `check_encoding` returns.
        swap: exchange CR and LF, so that lines which end with CR end with LF.
        path: the file, for errors.
    """

    def __init__(self, stream: BinaryIO, encoding: str, *, swap: bool, path: str) -> None:
        self._stream = stream
        self._encoding, self._path = encoding, path
        errors = "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
        self._decoder: Any = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)(errors)
        self._swap = swap
        self._block = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; return the number of bytes, 0 at the end."""
        while not len(self._block) and not self._ended:
            data = self._stream.read(BLOCK)
            self._ended = not data
            self._block = memoryview(self._recode(data))
        n = min(len(buffer), len(self._block))
        buffer[:n], self._block = self._block[:n], self._block[n:]
        return n

    def _recode(self, data: bytes) -> bytes:
        if self._decoder is not None:
            try:
                data = self._decoder.decode(data, final=self._ended).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"it is not {show_encoding(self._encoding)}: {error.reason}.",
                    path=self._path,
                    remedy="Name its encoding with --encoding (in Python encoding=), or save it as UTF-8.",
                ) from error
        return data.translate(_SWAP) if self._swap else data
