"""The model that texts choose: by their writing, from a sample, once; without it an error, or a warning where mixed."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kexue.errors import ModelNotFoundError
from kexue.text import Encoder, choice, find_model_for, opening
from kexue.text.choice import chinese_share, foreign_share, sample_texts
from kexue.text.models import DEFAULT_MODEL, MULTILINGUAL

ENGLISH = ["How long does a refund take?", "Where is my order?", "A naïve way to sort a list by length", "x = 3.5 # 42"]


@pytest.fixture
def models(tiny_model: Path, other_tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path | None]:
    """Folders of the two default models; one that is None is not on this machine."""
    folders: dict[str, Path | None] = {DEFAULT_MODEL: tiny_model, MULTILINGUAL: other_tiny_model}

    def find(name: str) -> Path:
        folder = folders.get(DEFAULT_MODEL if name == "auto" else name, Path(name))
        if folder is None:
            raise ModelNotFoundError(f"no encoder called {name!r} was found.", remedy="Install it.")
        return folder

    monkeypatch.setattr(choice, "find_model", find)
    monkeypatch.setattr(choice, "tiny_chinese_folder", lambda: None)
    monkeypatch.setattr(opening, "find_model", find)
    return folders


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("How long does a refund take?", 0),
        ("退货要多久", 1),
        ("iPhone 手机壳", 3 / 4),  # a word, and three characters
        ("refund退货", 2 / 3),
        ("Où est ma commande", 1 / 4),
        ("Ou\u0300 est ma commande", 1 / 4),  # the same, decomposed
        ("Где мой заказ", 1),
        ("返品にはどのくらい", 1),
        ("반품은 얼마나", 1),
        ("คืนสินค้า", 1),
        ("रिफ़ंड कब", 1),
        ("Ｆｕｌｌ width", 1 / 2),
        ("a_b 12 snake_case", 0),
        ("12:30 - 42 % 😀", 0),
        ("", 0),
    ],
)
def test_the_share_of_words_that_english_does_not_write(text: str, share: float) -> None:
    assert foreign_share([text]) == pytest.approx(share)


def test_the_share_is_a_mean_over_texts_with_words() -> None:
    assert foreign_share(["word " * 1000, "退货", "", "42"]) == 0.5
    assert foreign_share([]) == 0


def test_a_sample_is_spread_over_all_texts() -> None:
    texts = [str(i) for i in range(10_000)]
    sample = sample_texts(texts)
    assert len(sample) == len(set(sample)) == 1000
    assert (sample[0], sample[-1]) == ("0", "9990")
    assert sample_texts(texts[:1000]) == texts[:1000]


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (ENGLISH, DEFAULT_MODEL),
        (["42", ""], DEFAULT_MODEL),
        (["退货要多久?"], MULTILINGUAL),
        (["Wie lange dauert die Rückerstattung?"], MULTILINGUAL),
        (["a dog"] * 96 + ["狗"] * 4, DEFAULT_MODEL),
        (["a dog"] * 94 + ["狗"] * 6, MULTILINGUAL),
        (["a dog"] * 50_000 + ["狗"] * 5_000, MULTILINGUAL),  # far behind the beginning
    ],
)
def test_the_writing_decides(models: dict[str, Path | None], texts: list[str], name: str) -> None:
    assert find_model_for(texts) == models[name]


def test_english_texts_never_look_for_the_other_model(models: dict[str, Path | None]) -> None:
    models[MULTILINGUAL] = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_model_for(ENGLISH) == models[DEFAULT_MODEL]


def test_without_the_model_mixed_texts_get_a_warning_and_other_texts_an_error(models: dict[str, Path | None]) -> None:
    models[MULTILINGUAL] = None
    with pytest.warns(UserWarning, match=r"25% of the words are not English; .* is used, because .* Install it\."):
        assert find_model_for(["a dog"] * 3 + ["狗"]) == models[DEFAULT_MODEL]
    with pytest.raises(ModelNotFoundError, match="100% of the words are not English, and no encoder") as caught:
        find_model_for(["狗"])
    assert caught.value.remedy == "Install it."


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        (["退货要多久"], 1),
        (["iPhone 坏"], 1 / 2),
        (["返品の場合"], 0),  # one kana makes it Japanese
        (["반품은 얼마나"], 0),
        (["Wie lange dauert die Rückerstattung", "𠮷"], 1 / 2),
        (["42", ""], 0),
        ([], 0),
    ],
)
def test_the_share_of_chinese_words(texts: list[str], share: float) -> None:
    assert chinese_share(texts) == share


def test_without_the_other_model_mostly_chinese_texts_get_kexues_own(
    models: dict[str, Path | None], make_tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_tiny_model(seed=2)
    monkeypatch.setattr(choice, "tiny_chinese_folder", lambda: own)
    assert find_model_for(["退货要多久"]) == models[MULTILINGUAL]
    models[MULTILINGUAL] = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_model_for(["退货要多久"]) == own
        assert find_model_for(["退货要多久", "银行卡", "a dog"]) == own
        assert find_model_for(ENGLISH) == models[DEFAULT_MODEL]
    for other in (["返品の場合"], ["반품은 얼마나"], ["Где мой заказ"], ["Où étés français"]):
        with pytest.raises(ModelNotFoundError, match="of the words are not English"):
            find_model_for(other)
    with pytest.warns(UserWarning, match="50% of the words are not English"):
        assert find_model_for(["退货", "a dog"]) == models[DEFAULT_MODEL]


def test_the_environment_decides_before_the_texts(
    models: dict[str, Path | None], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEXUE_MODEL", str(tiny_model))
    assert find_model_for(["狗"]) == models[DEFAULT_MODEL]
    assert Encoder().model_id == str(tiny_model)


# -- the encoder -------------------------------------------------------------------------------------------------------


def test_the_first_texts_choose_and_later_ones_change_nothing(models: dict[str, Path | None]) -> None:
    encoder = Encoder()
    chinese = encoder.encode(["狗"])
    assert encoder.model_id == str(models[MULTILINGUAL])
    assert encoder.encode(["a dog"]).shape == (1, 32)
    assert encoder.model_id == str(models[MULTILINGUAL])
    np.testing.assert_array_equal(chinese, Encoder(models[MULTILINGUAL]).encode(["狗"]))
    english = Encoder()
    english.encode(["a dog"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        english.encode(["我的狗"])
    assert english.model_id == str(models[DEFAULT_MODEL])


@pytest.mark.parametrize(
    "read",
    [
        lambda e, t: e.encode(t),
        lambda e, t: e.encode_queries(iter(t)),
        lambda e, t: e.encode_documents(t),
        lambda e, t: e.tokenize(iter(t)),
        lambda e, t: e.encode_tokens(t),
        lambda e, t: e.count_tokens(t),
        lambda e, t: e.cut(t, 3),
        lambda e, t: e.choose_model(t),
    ],
)
def test_every_reader_of_texts_chooses(models: dict[str, Path | None], read: Any) -> None:
    encoder = Encoder()
    read(encoder, ["我的狗"])
    assert encoder.model_id == str(models[MULTILINGUAL])


def test_a_stream_chooses_by_its_beginning_and_a_list_by_all(models: dict[str, Path | None], tmp_path: Path) -> None:
    texts = ["a dog"] * 5000 + ["我的狗"] * 5000
    listed, streamed = Encoder(), Encoder()
    assert listed.encode_to(tmp_path / "list.npy", texts).n == 10_000
    assert streamed.encode_to(tmp_path / "stream.npy", iter(texts)).n == 10_000
    assert (listed.model_id, streamed.model_id) == (str(models[MULTILINGUAL]), str(models[DEFAULT_MODEL]))


def test_a_model_that_was_asked_for_before_the_texts_is_the_english_one_and_warns(
    models: dict[str, Path | None],
) -> None:
    encoder = Encoder()
    assert encoder.dim == 32
    encoder.encode([])
    with pytest.warns(UserWarning, match="opened before there was a text"):
        encoder.encode(["我的狗"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["我的狗"])  # said once
    assert encoder.model_id == str(models[DEFAULT_MODEL])


def test_wrong_settings_are_refused_before_a_model_is_chosen() -> None:
    with pytest.raises(ValueError, match="unknown dtype"):
        Encoder(dtype="int8")
    with pytest.raises(ValueError, match="pooling"):
        Encoder(pooling="middle")


@pytest.mark.filterwarnings("ignore:.*of the tokens are unknown")
def test_threads_that_ask_at_once_read_with_one_model(models, monkeypatch) -> None:
    """A model that a second thread put in place of the first would read ids of another vocabulary."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    opened = []
    load = opening.LoadedModel

    def slow(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        time.sleep(0.2)
        return load(*arguments, **options)

    monkeypatch.setattr("kexue.text.encoder.LoadedModel", slow)
    encoder, together = Encoder(device="cpu"), Barrier(4)

    def ask(text: str) -> np.ndarray:
        together.wait()
        return encoder.encode([text])

    texts = ["A dog runs.", "退货要多久?", "It rains.", "今天天气很好"]
    with ThreadPoolExecutor(4) as pool:
        vectors = np.concatenate(list(pool.map(ask, texts)))
    assert len(opened) == 1
    np.testing.assert_allclose(vectors, np.concatenate([encoder.encode([text]) for text in texts]), atol=1e-6)
