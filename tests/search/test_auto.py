"""An index whose model its texts choose: once, from all of them, recorded, whatever is asked later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kexue.errors import ModelNotFoundError, SpaceMismatchError
from kexue.search import CosineReranker, Index, add_files, build_index
from kexue.search.encoding import choose_prompt, encode_texts
from kexue.search.records import compare_texts
from kexue.similarity import PairDataset, evaluate_pairs
from kexue.text import Encoder, choice, opening
from kexue.text.models import DEFAULT_MODEL, MULTILINGUAL

MIXED = ["the dog eats"] * 5 + ["我的银行卡怎么办理信用"]


@pytest.fixture
def models(tiny_model: Path, other_tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path | None]:
    """Folders of the English and the other default model; None: not on this machine."""
    folders: dict[str, Path | None] = {DEFAULT_MODEL: tiny_model, MULTILINGUAL: other_tiny_model}

    def find(name: Any) -> Path:
        folder = folders.get(DEFAULT_MODEL if name == "auto" else name, Path(name))
        if folder is None:
            raise ModelNotFoundError(f"no encoder called {name!r} was found.")
        return folder

    monkeypatch.setattr(choice, "find_model", find)
    monkeypatch.setattr(opening, "find_model", find)
    return folders


def model_of(path: Path) -> str:
    with Index.open(path) as index:
        record = index.info().model
    assert record["reference"] == record["id"]  # exact, and never "auto"
    return str(record["id"])


@pytest.mark.parametrize(("texts", "name"), [(["a dog", "a cat"], DEFAULT_MODEL), (MIXED, MULTILINGUAL)])
@pytest.mark.parametrize("way", ["name", "object", "file"])
def test_the_texts_choose_the_model_of_an_index(
    models: dict[str, Path | None], tmp_path: Path, texts: list[str], name: str, way: str
) -> None:
    path = tmp_path / "x.kx"
    texts = [f"{text} {number}" for number, text in enumerate(texts)]
    if way == "file":
        (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
        report = build_index(tmp_path / "texts.txt", path)
        assert report.warnings == []
    else:
        with Index.create(path, "auto" if way == "name" else Encoder()) as index:
            index.add(texts)
    assert model_of(path) == str(models[name])


def test_texts_behind_the_first_batch_count(models: dict[str, Path | None], tmp_path: Path) -> None:
    texts = [f"a dog {number}" for number in range(600)] + [f"我的狗 {number}" for number in range(600)]
    with Index.create(tmp_path / "added.kx") as index:
        index.add(texts)
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    build_index(tmp_path / "texts.txt", tmp_path / "built.kx")
    Index.create(tmp_path / "files.kx").close()
    with Index.open(tmp_path / "files.kx") as index:
        add_files(index, tmp_path / "texts.txt")
    for name in ("added", "built", "files"):
        assert model_of(tmp_path / f"{name}.kx") == str(models[MULTILINGUAL]), name


def test_the_index_decides_about_later_texts_and_queries(models: dict[str, Path | None], tmp_path: Path) -> None:
    path = tmp_path / "x.kx"
    with Index.create(path) as index:
        index.add(["a dog", "a cat"])
    with Index.open(path) as index:
        assert len(index.search("我的狗")[0]) == 2
        index.add(["我的狗"])
    assert model_of(path) == str(models[DEFAULT_MODEL])


def test_vectors_alone_load_no_model(models: dict[str, Path | None], tmp_path: Path) -> None:
    models[DEFAULT_MODEL] = models[MULTILINGUAL] = None
    with Index.create(tmp_path / "x.kx") as index:
        index.add(["狗"], vectors=np.ones((1, 4)))
        [[hit]] = index.search(np.ones((1, 4)), k=1)
        assert (hit.text, index.encoder.encoder) == ("狗", None)


def test_a_resumed_build_keeps_its_model(
    models: dict[str, Path | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(f"我的狗 {n}" for n in range(700)), encoding="utf-8")

    def stop(done: int, total: int | None) -> None:
        if done >= 512:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path / "texts.txt", tmp_path / "x.kx", progress=stop)
    report = build_index(tmp_path / "texts.txt", tmp_path / "x.kx")
    assert (report.added, report.skipped, report.warnings) == (188, 512, [])
    assert report.model["id"] == str(models[MULTILINGUAL])


def test_another_model_than_that_of_the_index_is_refused(models: dict[str, Path | None], tmp_path: Path) -> None:
    with Index.create(tmp_path / "x.kx") as index:
        index.add(["我的狗"])
    with pytest.raises(SpaceMismatchError):
        Index.open(tmp_path / "x.kx", encoder=models[DEFAULT_MODEL])


# -- prompts -----------------------------------------------------------------------------------------------------------


class Recorder:
    """An encoder with E5's prompts, which remembers what it was given."""

    def __init__(self) -> None:
        self.prompts = {"query": "query: ", "passage": "passage: "}
        self.given: list[tuple[str | None, str]] = []

    def encode(self, texts: list[str], *, prompt_name: str | None = None) -> np.ndarray:
        self.given += [(prompt_name, text) for text in texts]
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)


def test_documents_queries_and_pairs_get_their_prompts_and_the_index_records_them(tmp_path: Path) -> None:
    encoder = Recorder()
    documents = ["a" * n for n in range(1, 61)]
    queries = ["ccc", "d", "ee", "ff", "ggg"]
    with Index.create(tmp_path / "x.kx", encoder) as index:
        index.add(documents)
        index.search(queries[0])
        index.calibrate(pairs=[("d", "ee"), ("ff", "ggg")], labels=[1, 0])
        assert index.info().model["prompts"] == encoder.prompts
    roles = dict.fromkeys(documents, "passage") | dict.fromkeys(queries, "query")
    given = {text: prompt for prompt, text in encoder.given}
    assert {text: given[text] for text in roles} == roles


def test_a_reranker_gives_question_and_documents_their_prompts() -> None:
    encoder = Recorder()
    CosineReranker(encoder).rerank("ask", ["one", "two"])
    assert sorted(encoder.given) == [("passage", "one"), ("passage", "two"), ("query", "ask")]


def test_pairs_are_alike_in_comparisons_and_evaluations(tiny_model: Path) -> None:
    prompts = {"query": "the dog ", "document": "the house "}
    encoder = Encoder(tiny_model, prompts=prompts, dtype="float32")
    a, b = "red apple", "blue ball"
    vectors = encoder.encode([f"the dog {a}", f"the dog {b}"])
    assert compare_texts(a, b, encoder).cosine == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-6)
    assert choose_prompt(encoder, "pair") == "query"
    np.testing.assert_array_equal(encode_texts(encoder, [a], "pair"), encoder.encode_queries([a]))
    data = PairDataset("toy", "", [a, b, "a cat"], [b, "dog", "food"], np.array([1.0, 0.0, 0.5]))
    plain = Encoder(tiny_model, dtype="float32", prompts={"query": "", "document": ""})
    spelled = PairDataset(
        "toy", "", *([f"the dog {t}" for t in side] for side in (data.texts_a, data.texts_b)), data.labels
    )  # type: ignore[misc]
    found, expected = (evaluate_pairs(*case, bootstrap=0).rows[0] for case in ((encoder, data), (plain, spelled)))
    assert found.spearman == pytest.approx(expected.spearman)


def test_evaluation_chooses_by_the_pairs(models: dict[str, Path | None]) -> None:
    data = PairDataset("toy", "", ["我的狗", "苹果"], ["我的猫", "银行"], np.array([1.0, 0.0]))
    rows = evaluate_pairs(Encoder(), data, poolings=["mean", "cls"], bootstrap=0).rows
    assert {row.model for row in rows} == {str(models[MULTILINGUAL])}


def test_the_record_of_an_index_opens_the_model_with_its_prompts(
    models: dict[str, Path | None], tmp_path: Path
) -> None:
    with Index.create(tmp_path / "x.kx") as index:
        index.add(["我的狗"])
        record = index.store.metadata()["model"]
    assert json.loads(str(record))["prompts"] == {"query": "search: ", "document": ""}
    with Index.open(tmp_path / "x.kx") as index:
        expected = Encoder(models[MULTILINGUAL]).encode(["search: 狗"])
        np.testing.assert_allclose(index.encode_queries(["狗"]), expected, atol=1e-6)
