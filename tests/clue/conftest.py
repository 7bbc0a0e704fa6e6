"""A small encoder with random weights and the characters of the shipped one, and examples of every framing."""

from __future__ import annotations

import pytest
import torch

from kexue.clue import Answer, ChoiceExample, Entity, EntityExample, IdiomExample, RowTokenizer, SpanExample
from kexue.text import RoFormerSim, RoFormerSimConfig

CHINESE = "kexue/roformer-sim-tiny-zh"
IDIOMS = ("一心一意", "三心二意", "画蛇添足", "守株待兔", "亡羊补牢")
IDIOMS += ("掩耳盗铃", "井底之蛙", "半途而废", "胸有成竹", "四面楚歌")


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory):
    """Folder of a RoFormer of two layers, 32 wide, whose states are pooled by their mean."""
    tokenizer = RoFormerSim.from_pretrained(CHINESE).tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        shape = RoFormerSimConfig(
            tokenizer.vocabulary_size, hidden_size=32, num_layers=2, num_heads=2, dropout=0.1, pooling="mean"
        )
        model = RoFormerSim(shape, tokenizer)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.2 * torch.randn_like(weight))  # states that differ from text to text
    folder = tmp_path_factory.mktemp("encoder") / "small"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    return RowTokenizer(CHINESE)


def questions():
    """Questions with two, three and four options, one with a long passage."""
    options = ("买书", "睡觉", "吃饭", "回家")
    return [
        ChoiceExample(
            str(n), "甲：你好||乙：我去买书" * (1 + 60 * (n == 3)), "乙去做什么？", options[: 2 + n % 3], n % 2
        )
        for n in range(6)
    ]


def blanks():
    """Blanks of three groups of two, one with a long text, all with other blanks in their text."""
    return [
        IdiomExample(
            f"#idiom{n:06d}#",
            str(n // 2),
            "他做事总是",
            f"，让人佩服。后来又#idiom{n + 9:06d}#了。" * (1 + 20 * (n == 2)),
            IDIOMS,
            n,
        )
        for n in range(6)
    ]


def readings():
    """Questions about short contexts and one of several windows."""
    examples = []
    for n in range(4):
        before = "北京是中国的首都。" * (1 + 80 * (n == 1))
        context = before + "上海Hello World是城市。"
        examples.append(SpanExample(str(n), context, "上海是什么？", (Answer("城市", len(before) + 14),)))
    return examples


def names():
    """Texts of several lengths with three entities each."""
    return [
        EntityExample(
            str(n),
            "王芳在北京的Google上班" + "，她很高兴" * (7 * n % 5),
            (Entity("name", 0, 1), Entity("address", 3, 4), Entity("company", 6, 11)),
        )
        for n in range(5)
    ]
