"""Times and qualities of the demo: of many searches in turns, with what they leave open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kexue.demo import Entry, chinese, run
from kexue.search import Index
from kexue.text import Encoder


class Searched:
    """An index that takes a known time: more for its first searches, and more while the machine is busy."""

    def __init__(self, clock: Any, log: list[Any], name: str, seconds: float) -> None:
        self.clock, self.log, self.name, self.seconds, self.searches = clock, log, name, seconds, 0

    def search(self, query: np.ndarray[Any, Any], k: int) -> None:
        assert query.shape == (1, 3)
        self.searches += 1
        self.log.append(self.name)
        busy = 10.0 if 40 < len(self.log) <= 60 else 1.0
        self.clock.now += self.seconds * busy + (100.0 if self.searches == 1 else 0.0)


def test_indexes_take_turns_and_first_searches_are_not_counted(fake_clock, monkeypatch) -> None:
    clock, log = fake_clock, []
    monkeypatch.setattr(run, "time", clock)
    indexes = [Searched(clock, log, name, seconds) for name, seconds in (("a", 1.0), ("b", 2.0))]
    times = run.search_times(indexes, np.zeros((50, 3)))
    assert times.shape == (2, 50)
    assert times.max() < 100  # the first searches
    counted = log[-100:]
    assert counted == ["a", "b"] * 50
    np.testing.assert_allclose(times[1], 2 * times[0])  # who was busy was so for both
    assert np.median(times, axis=1).tolist() == pytest.approx([1.0, 2.0])


def test_texts_are_encoded_with_the_prompts_of_their_roles(tiny_model, tmp_path, monkeypatch) -> None:
    """As an index does it: the saved index finds the same as the demo did."""
    names = [f"os.path.thing{number}" for number in range(150)]
    entries = [Entry(name, "function", f"{name}(): the dog number {at} runs", None) for at, name in enumerate(names)]
    monkeypatch.setattr(run, "standard_library", lambda: entries)
    prompts = {"query": "the cat eats ", "document": "the house in the park "}
    encoder = Encoder(tiny_model, device="cpu", dtype="float32", prompts=prompts)
    report = run.run_demo(tmp_path, encoder=encoder)
    with Index.open(tmp_path / "stdlib.kx", encoder=encoder) as index:
        stored = index.vectors(names)[1]
        index.add([entry.text for entry in entries], ids=[f"again {name}" for name in names])
        np.testing.assert_allclose(index.vectors([f"again {name}" for name in names])[1], stored, atol=1e-5)
        index.delete([f"again {name}" for name in names])
        for answer in report.answers:
            [hits] = index.search(answer["question"], k=3)
            assert [one["score"] for one in answer["results"]] == pytest.approx([hit.score for hit in hits], abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*of the tokens are unknown")  # the vocabulary of a test is small
def test_the_question_in_chinese_is_answered_from_an_index_of_the_other_encoder(
    tiny_model, other_tiny_model, tmp_path, monkeypatch
) -> None:
    names = [f"{module}.thing{number}" for module in ("shutil", "os.path", "json") for number in range(50)]
    entries = [Entry(name, "function", f"{name}(): the dog number {at} runs", None) for at, name in enumerate(names)]
    monkeypatch.setattr(run, "standard_library", lambda: entries)
    encoder, other = (Encoder(folder, device="cpu", dtype="float32") for folder in (tiny_model, other_tiny_model))
    report = run.run_demo(tmp_path, encoder=encoder, multilingual=other)
    answer = report.answers[-1]
    assert (len(report.answers), answer["question"]) == (len(run.QUESTIONS) + 1, chinese.QUESTION)
    with Index.open(tmp_path / "stdlib-zh.kx", encoder=other) as index:
        assert {document.id.partition(".")[0] for document in index.sample(200)[0]} == {"shutil", "json"}
        [hits] = index.search(chinese.QUESTION, k=3)
    assert [one["id"] for one in answer["results"]] == [hit.id for hit in hits]
    assert chinese.QUESTION in (tmp_path / "report.html").read_text(encoding="utf-8")
