"""A small RoFormer-Sim with random weights and a vocabulary of characters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kexue.text.roformer_sim import RoFormerSim, RoFormerSimConfig
from kexue.text.roformer_sim.characters import write_tokenizer
from kexue.text.tokenizer import TextTokenizer

CHARACTERS = [
    *dict.fromkeys("怎么退货的流程是什几天能到今天气很好多久款银行卡"),
    *"abcdefghijklmnopqrstuvwxyz0123456789,.?!，。？",
]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("characters")
    write_tokenizer(folder, list(CHARACTERS))
    return folder


@pytest.fixture(scope="session")
def make_model(tokenizer_folder: Path) -> Callable[..., RoFormerSim]:
    """Make a RoFormer-Sim, 2 layers of width 32, with weights far from their start."""

    def make(**changes: object) -> RoFormerSim:
        tokenizer = TextTokenizer(tokenizer_folder)
        config = RoFormerSimConfig(
            vocab_size=tokenizer.vocabulary_size, hidden_size=32, num_layers=2, intermediate_size=48, max_length=24
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = RoFormerSim(dataclasses.replace(config, **changes), tokenizer).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn(parameter.shape))
        return model

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., RoFormerSim]) -> RoFormerSim:
    return make_model()
