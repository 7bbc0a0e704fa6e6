"""Encoding and line ends of a text file, decided by reading it; and its bytes as UTF-8.

The rule for the encoding reads the whole file, so that no part is read wrongly in silence: a byte order mark decides;
else a file that is UTF-8 throughout is UTF-8; else it is GB18030 if (nearly) all lines are, and its characters occur as
in Chinese: at least nine of ten letters are Chinese characters, and the 1000 most common ones are too frequent for
another language read as GB18030 (Korean, the nearest, reaches 26 %; Chinese 80 to 95 %). A word that is repeated counts
once. Otherwise it is read as UTF-8, whose errors name the line and the byte, and the user names the encoding.
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
_MARKS |= {
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8",
}  # in this order: the mark of UTF-32 begins with that of UTF-16
_COMMON = frozenset(
    "的呗花是有了一我不用还在么为分以大能可借年中个时款吗人国和上期行多地新这度开什家生出学怎你对成店到月提后好高要动"
    "通电于点发方日下小会过现作最机北道天全额法性金与手体化没公元付他自业合图蚁本蚂主支费京前影间知子部理更内信号进美"
    "等里来名都得面定游周长数结及酒经之收宝实物基同钱市关车区加系品推景看线网制文馆特价其力使利平就商场量西明去应单想"
    "型被海三边玩种务评也将您门建东工重卡少入水位考式第那资产计表奖果心台组餐专相解交次而服首优外代话并题比无万哪消户"
    "斯设统如程当安账起球模查两验变功乐女路片所视演流研联城们格战获选息别荐很复事情已说由取者因显件活示问退南记员增啊"
    "算目华样二请清回找持山保改它色语世原票低近赛类给站证教打从帮效称王布呢民正意达音至展吧均快容响供直科只质身但房亚"
    "司导戏完传园值转英精具广级银放术总强超界立十指任包究升些录风运率何歌真马试测码需再尔管析据政友口然形热接星约随让"
    "股速每气德受常或光院客该港队技向续换报此较构条调修四男太处求频标集空各免才论办造节佳际铁创军错克购预反微老红香版"
    "居林扣余张候买观参神吃米社巴带器认呀限源感非师存播角龙置料确曲火州共校属爱士降领址环育态几权盘便头今剧助足逾维享"
    "喜听像府拉装她议规申连采易未配尼街投准欢贷习备注博谢艺先告白书层营货整售决百双儿附控湾官团罗治积江季素即离住食画"
    "辑把密适富临死且致石省列步字索又除义五温细历引鱼届奥闭楼状职充护做群识古阿岁轻击医济势简纪询牌史深局软久满案着河"
    "短故阳半波兰思域项读嗯云油互哦失朝见排移送差己底智根载始险松照招讯份病登洲六断段聚土岛亿走境黄武淘征独核典难板菜"
    "极例划亲村福含销则康哈减择越象著停争陆初奇农纳饭编压唱望况干众端拍曾言湖青普冠声另养黑破检药异稳财彩射必围惠融企"
    "否刚策启范丰符兴绑探拟留健切千李略志材麻介落络杀涨伤键旅施早爆课啥族举终防酸操协血律卖夫弹命飞欧八航朋威礼仅益钟"
    "趣券诉折遭岩印觉监伦序练卫突甲宫词班签背负远汉激括丽冲述堂延牛块座假警九韩矿婚室藏库叫织疗亡汇谁待委恢晚贵念春跌"
    "桥章审震闻订输母液厅讨依够础往页顺拿写捷盖批皇县镇亦洋跟谷继胜抗善秀媒冻综灵绝魔尽映估吸苏轮孩套阅希租授植误泰陈"
    "谱判叶针庆尚沙止漫盟伊攻笔味扫亮鳍塔筑七疑豪封派宣透斗搜执抢竞仍寺障良醒剂蓝败吉训宾币畅承遇杂绍盛皮按森哥秘肉宗"
    "侧径牙尾许患菌刘永雄呈聊宿培骨圈托察眼绩梦绿追贴缘阶坛父掌担归树缺赚木夏曝雷私补瑞混令童鲜束汽迎"
)  # the 1000 most frequent characters of questions, dialogues, news, descriptions, abstracts and articles
_CHANCE = 0.3  # of a common character in a text of another language; 26 % measured in Korean words
_DOUBT = 1e-3  # probability that chance gives so many common characters
_ENOUGH = 20_000  # characters that decide
_SPOILT = 0.02  # share of lines that may be malformed in a file that is GB18030 otherwise
_WORDS = re.compile(r"[^\x00-\x7f\W\d_]+")
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


def find_mark(start: bytes) -> str | None:
    """Return the encoding that a byte order mark at the start of a file tells; None where there is none."""
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)


def find_encoding(open: Opener) -> str:
    """Return the encoding of a file by the rule of this module; `open` opens its bytes, once or twice."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open() as stream:
        block = stream.read(BLOCK)
        if (marked := find_mark(block)) is not None:
            return marked
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
    words: set[str] = set()
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
                fresh = set(_WORDS.findall(text)) - words
                words |= fresh
                for word in fresh:
                    letters += len(word)
                    chinese += sum("\u4e00" <= char <= "\u9fff" for char in word)
                    common += sum(char in _COMMON for char in word)
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
        options: whether whoever reads has an option for the encoding, which the remedy then names.
    """

    def __init__(self, stream: BinaryIO, encoding: str, *, swap: bool, path: str, options: bool = True) -> None:
        self._stream, self._options = stream, options
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
                    remedy="Name its encoding with --encoding (in Python encoding=), or save it as UTF-8."
                    if self._options
                    else "Save it as UTF-8.",
                ) from error
        return data.translate(_SWAP) if self._swap else data
