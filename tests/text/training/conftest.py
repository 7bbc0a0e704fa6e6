"""A tokenizer of characters, small models, and files of pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kexue.text import RoFormerSim, RoFormerSimConfig
from kexue.text.roformer_sim.characters import choose_characters, write_tokenizer
from kexue.text.tokenizer import TextTokenizer

SUBJECTS = ("手机", "电脑", "水杯", "地图", "书包", "雨伞", "钥匙", "手表")
PAIRS = [(f"怎么买{one}", f"{one}如何购买") for one in SUBJECTS] + [
    (f"{one}坏了", f"我的{one}不能用") for one in SUBJECTS
]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("characters")
    write_tokenizer(folder, choose_characters(()))
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    tokenizer = TextTokenizer(tokenizer_folder)
    tokenizer.set_max_length(128)
    return tokenizer


@pytest.fixture(scope="session")
def make_model(tokenizer_folder: Path) -> Callable[..., RoFormerSim]:
    """Make a RoFormer-Sim of 2 layers with random weights far from their start."""

    def make(width: int = 32, seed: int = 0, dropout: float = 0.0) -> RoFormerSim:
        tokenizer = TextTokenizer(tokenizer_folder)
        config = RoFormerSimConfig(
            tokenizer.vocabulary_size, hidden_size=width, num_layers=2, dropout=dropout, max_length=128
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = RoFormerSim(config, tokenizer).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape))
        return model

    return make


@pytest.fixture(scope="session")
def teacher(make_model: Callable[..., RoFormerSim], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model of another width, 48."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    make_model(48, seed=7).save_pretrained(folder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in PAIRS), encoding="utf-8")
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Pairs with label 1, and pairs of different subjects with label 0."""
    path = tmp_path / "labelled.tsv"
    rows = [(a, b, 1) for a, b in PAIRS] + [(a, PAIRS[i - 1][1], 0) for i, (a, _) in enumerate(PAIRS)]
    path.write_text(
        "text_a\ttext_b\tlabel\n" + "".join(f"{a}\t{b}\t{label}\n" for a, b, label in rows), encoding="utf-8"
    )
    return path
