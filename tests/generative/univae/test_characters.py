"""The vocabulary of characters: back and forth, unknown characters, sentences that are too long."""

import pytest
import torch

from kexue.generative import CharacterVocabulary


def test_sentences_come_back() -> None:
    texts = ["你好吗?", "", "ab ab", "😀"]
    vocabulary = CharacterVocabulary.from_texts(texts)
    assert len(vocabulary) == 4 + len(set("".join(texts)))
    assert vocabulary.decode(vocabulary.encode(texts, 7)) == texts


def test_rows_are_start_characters_end_padding() -> None:
    assert CharacterVocabulary("ab").encode(["ba", "abx"], 6).tolist() == [[2, 5, 4, 3, 0, 0], [2, 4, 5, 1, 3, 0]]
    assert CharacterVocabulary("ab").decode(torch.tensor([[2, 1, 4]])) == ["\ufffda"]


def test_rare_characters_are_left_out_and_the_frequent_come_first() -> None:
    assert CharacterVocabulary.from_texts(["abb", "bc", "c"], at_least=2).characters == ("b", "c")


def test_a_longer_sentence_is_refused_with_its_number() -> None:
    vocabulary = CharacterVocabulary("ab")
    assert vocabulary.encode(["aaa"], 5).shape == (1, 5)
    with pytest.raises(ValueError, match="sentence 1 has 4 characters, expected at most 3"):
        vocabulary.encode(["a", "abab"], 5)
    with pytest.raises(TypeError, match="list of sentences"):
        vocabulary.encode("ab", 5)
    with pytest.raises(TypeError, match="list of sentences"):
        CharacterVocabulary.from_texts("ab")
    with pytest.raises(ValueError, match=r"at least 2 .*, got 1"):
        vocabulary.encode([""], 1)


@pytest.mark.parametrize("rows", [[[2, 99, 3]], [[2, -1, 3]]])
def test_ids_outside_the_vocabulary(rows: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"token ids must be in \[0, 6\), got"):
        CharacterVocabulary("ab").decode(torch.tensor(rows))
    with pytest.raises(ValueError, match=r"rows \(n, T\) are expected, got shape \(3,\)"):
        CharacterVocabulary("ab").decode(torch.tensor(rows[0]))


@pytest.mark.parametrize("characters", [["a", "a"], ["ab"], [""]])
def test_characters_are_single_and_distinct(characters: list[str]) -> None:
    with pytest.raises(ValueError, match="single and distinct"):
        CharacterVocabulary(characters)
