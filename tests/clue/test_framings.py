"""Examples to rows, losses and answers of every framing, against counting by hand, loops and enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from tests.clue.conftest import CHINESE, IDIOMS, blanks, names, questions, readings

from kexue.clue import (
    Answer,
    ChoiceExample,
    Entity,
    EntityExample,
    IdiomExample,
    RowTokenizer,
    SpanExample,
    TextExample,
    get_task,
)
from kexue.clue.framings.classes import trim_around
from kexue.clue.framings.rows import share_room
from kexue.clue.framings.spans import Found, list_windows
from kexue.clue.framings.units import Unit
from kexue.errors import DataError

CLS, SEP, MASK, UNKNOWN = 2, 3, 4, 1


def read(tokenizer, text):
    return tokenizer.read([text])[0].ids.tolist()


# ---- rows ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 40))
def test_two_parts_share_the_room_as_if_the_longer_lost_one_token_at_a_time(first, second, room):
    a, b = first, second
    while a + b > room:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    kept = share_room(first, second, room)
    assert sum(kept) == a + b
    assert abs(kept[0] - a) <= 1


def test_a_pair_is_one_row_and_its_longer_text_is_cut(tokenizer):
    task = get_task("afqmc")
    [unit] = task.encode(TextExample("0", "怎么还款", "还款" * 100, "1"), tokenizer)
    row = unit.rows[0].tolist()
    assert len(row) == 128
    assert unit.cut
    assert unit.gold == 1
    assert row[:6] == [CLS, *read(tokenizer, "怎么还款"), SEP]
    assert row[-1] == SEP
    assert row.count(SEP) == 2


def test_a_batch_has_no_segments_and_its_mask_has_the_tokens(tokenizer):
    task = get_task("tnews")
    units = [unit for text in ("你好", "今天天气很好") for unit in task.encode(TextExample("0", text), tokenizer)]
    batch = task.collate(units, pad_id=7)
    assert set(batch) == {"token_ids", "mask", "gold"}
    assert batch["mask"].sum(1).tolist() == [4, 8]
    assert batch["token_ids"][0, 4:].tolist() == [7] * 4
    assert batch["gold"].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("task", "example", "says"),
    [
        ("tnews", TextExample("3", " ", None, "100"), "'3' has an empty text"),
        ("afqmc", TextExample("3", "你好", "", "1"), "'3' has an empty text"),
        ("tnews", TextExample("3", "你好", None, "105"), "the label '105'"),
        ("c3", ChoiceExample("3", "", "谁？", ("甲", "乙")), "an empty passage"),
        ("c3", ChoiceExample("3", "甲", "谁？", tuple("甲乙丙丁戊")), "5 options"),
        ("chid", IdiomExample("3", "0", "", "", IDIOMS * 2), "20 candidates"),
        ("cmrc2018", SpanExample("3", "", "谁？"), "an empty context"),
        ("cluener", EntityExample("3", "", ()), "an empty text"),
        ("cluener", EntityExample("3", "王芳", (Entity("person", 0, 1),)), "the type 'person'"),
    ],
)
def test_an_example_that_cannot_be_encoded_is_named(task, example, says, tokenizer):
    with pytest.raises(DataError, match=says):
        get_task(task).encode(example, tokenizer)


def test_a_blank_is_unused1_where_the_vocabulary_has_it(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "心"]))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert RowTokenizer(tmp_path).blank_id == 5
    assert RowTokenizer(CHINESE).blank_id == UNKNOWN


# ---- options and idioms ----------------------------------------------------------------------------------------------


def test_a_question_has_four_rows_and_a_long_passage_loses_its_end(tokenizer):
    task = get_task("c3")
    short, long = (task.encode(questions()[n], tokenizer)[0] for n in (0, 3))
    passage, asked = read(tokenizer, questions()[0].passage), read(tokenizer, "乙去做什么？")
    assert short.rows[1].tolist() == [CLS, *passage, SEP, *asked, SEP, *read(tokenizer, "睡觉"), SEP]
    assert short.rows[2].tolist() == short.rows[3].tolist() == [*short.rows[0][:-3], *read(tokenizer, "无效答案"), SEP]
    assert short.options == 2
    assert not short.cut
    assert [len(row) for row in long.rows] == [512] * 4
    assert long.cut
    assert long.rows[0].tolist()[-10:] == [SEP, *asked, SEP, *read(tokenizer, "买书"), SEP][-10:]


def test_options_that_fill_a_question_up_are_never_chosen():
    task = get_task("c3")
    scores = torch.tensor([[0.0, 1.0, 9.0, 9.0], [0.0, 1.0, 9.0, 2.0]])
    units = [Unit((np.zeros(1),) * 4, options=2), Unit((np.zeros(1),) * 4, options=4)]
    outputs = [[one] for one in task.framing.read_scores(scores, units)]
    assert task.decode(outputs, questions()[:2]) == [1, 2]


def test_the_scores_of_rows_belong_to_their_own_question():
    head = get_task("c3").head(3)
    vectors = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = head(vectors)
        alone = head(vectors[4:])
    assert scores.shape == (2, 4)
    assert torch.equal(scores[1:], alone)


def test_a_blank_is_one_token_and_other_blanks_are_four_masks(tokenizer):
    task = get_task("chid")
    [unit] = task.encode(blanks()[0], tokenizer)
    left, right = read(tokenizer, "他做事总是"), read(tokenizer, "，让人佩服。后来又")
    text = [*left, UNKNOWN, *right, *[MASK] * 4, *read(tokenizer, "了。")]
    assert [row.tolist() for row in unit.rows] == [[CLS, *read(tokenizer, one), SEP, *text, SEP] for one in IDIOMS]
    assert unit.gold == 0
    assert not unit.cut


def test_a_long_text_is_cut_around_its_blank(tokenizer):
    example = IdiomExample("#idiom000000#", "0", "甲" * 90, "乙" * 90, IDIOMS, 0)
    [unit] = get_task("chid").encode(example, tokenizer)
    row = unit.rows[0].tolist()
    assert len(row) == 64
    assert unit.cut
    assert abs((row.index(UNKNOWN) - 6) - (64 - 1 - row.index(UNKNOWN) - 1)) <= 1


def test_the_text_near_a_blank_is_kept_wherever_it_stands(tokenizer):
    example = IdiomExample("#idiom000000#", "0", "甲乙", "丙" * 90, IDIOMS, 0)
    [unit] = get_task("chid").encode(example, tokenizer)
    row = unit.rows[0].tolist()
    assert row[6:8] == read(tokenizer, "甲乙")
    assert row[9:-1] == read(tokenizer, "丙") * 54


def test_a_long_candidate_leaves_half_of_the_row_to_the_text(tokenizer):
    example = IdiomExample("0", "0", "他" * 99, "了" * 99, ("长" * 600, "短"), 0)
    [unit] = get_task("chid").encode(example, tokenizer, 64)
    assert [len(row) for row in unit.rows[:2]] == [64, 64 - 29]
    assert unit.cut


@given(st.lists(st.sampled_from([1, 4]), max_size=8), st.lists(st.sampled_from([1, 4]), max_size=8), st.integers(0, 30))
def test_sides_are_trimmed_as_the_article_does_it(left, right, room):
    """The author's loop drops characters, and masks with the last character behind them, from the longer side."""
    sides = [left[:], right[:]]
    while sum(map(sum, sides)) > room:
        longer = sides[0] if sum(sides[0]) > sum(sides[1]) else sides[1]
        longer.pop()
        while longer and longer[-1] == 4:
            longer.pop()
    kept = trim_around([np.ones(n) for n in left], [np.ones(n) for n in right], room)
    assert [[len(part) for part in side] for side in kept] == sides


def test_candidates_of_a_group_are_distinct_and_have_the_largest_sum():
    task, generator = get_task("chid"), np.random.default_rng(5)
    examples = [IdiomExample(f"#idiom{n:06d}#", str(n % 2), "", "", IDIOMS[:5]) for n in range(7)]
    outputs = [[generator.normal(size=5)] for _ in examples]
    chosen = task.decode(outputs, examples)
    for group in (0, 1):
        numbers = range(group, 7, 2)
        best = max(
            itertools.permutations(range(5), len(numbers)),
            key=lambda p: sum(outputs[n][0][c] for n, c in zip(numbers, p, strict=True)),
        )
        assert [chosen[n] for n in numbers] == list(best)


def test_a_group_with_more_blanks_than_candidates_takes_the_best_of_each():
    examples = [IdiomExample(f"#idiom{n:06d}#", "0", "", "", IDIOMS[:2]) for n in range(3)]
    outputs = [[np.array(scores)] for scores in ([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])]
    assert get_task("chid").decode(outputs, examples) == [0, 0, 1]


def test_fewer_candidates_are_filled_up_and_left_out_of_the_softmax(tokenizer):
    task = get_task("chid")
    units = task.encode(IdiomExample("#idiom000000#", "0", "他", "。", IDIOMS[:7], 2), tokenizer)
    scores = torch.randn(1, 10, generator=torch.Generator().manual_seed(0))
    expected = -math.log(float(scores[0, 2].exp() / scores[0, :7].exp().sum()))
    assert float(task.framing.loss(scores, task.collate(units))) == pytest.approx(expected, rel=1e-5)
    assert len(task.framing.read_scores(scores, units)[0]) == 7


# ---- spans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 400, 401, 1500])
def test_every_answer_up_to_the_width_less_the_stride_lies_in_a_window(length):
    width = 400
    starts = list_windows(length, width)
    assert starts[-1] + width >= length
    assert all(one + width < length for one in starts[:-1])
    longest = width - 128
    for start in range(length):
        end = min(start + longest, length)
        assert any(one <= start and end <= one + width for one in starts)


def test_windows_hold_the_question_and_their_characters_and_the_answer_or_nothing(tokenizer):
    task, example = get_task("cmrc2018"), readings()[1]
    units = task.encode(example, tokenizer)
    asked = read(tokenizer, example.question)
    width = 512 - 3 - len(asked)
    assert len(units) == len(list_windows(len(example.context), width)) > 1
    for number, unit in enumerate(units):
        row, window = unit.rows[0].tolist(), example.context[128 * number : 128 * number + width]
        assert row == [CLS, *asked, SEP, *read(tokenizer, window), SEP]
        [(_, first, last)] = unit.gold
        answer = example.answers[0]
        inside = 128 * number <= answer.start and answer.start + len(answer.text) <= 128 * number + width
        assert (first > 0) == inside
        if inside:
            assert example.context[unit.places[first, 0] : unit.places[last, 1]] == "城市"
    assert any(unit.gold == ((0, 0, 0),) for unit in units)


def test_the_loss_of_a_window_is_the_softmax_over_all_its_spans(tokenizer):
    task = get_task("cmrc2018")
    units = [unit for example in (readings()[0], readings()[2]) for unit in task.encode(example, tokenizer)]
    units[1] = units[1]._replace(gold=((0, 0, 0),))
    batch = task.collate(units)
    length = batch["mask"].shape[1]
    scores = torch.randn(2, 1, length, length, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).triu(), -torch.inf)
    losses = []
    for number, unit in enumerate(units):
        context = [place for place in range(len(unit.places)) if unit.places[place, 0] >= 0]
        cells = [(0, 0), *((i, j) for i in context for j in context if j >= i)]
        total = sum(math.exp(scores[number, 0, i, j]) for i, j in cells)
        [(_, start, end)] = unit.gold
        losses.append(math.log(total) - float(scores[number, 0, start, end]))
    assert float(task.framing.loss(scores, batch)) == pytest.approx(sum(losses) / 2, rel=1e-12)


def test_the_best_span_of_a_window_is_found_by_enumeration(tokenizer):
    task, example = get_task("cmrc2018"), readings()[0]
    units = task.encode(example, tokenizer)
    length = len(units[0].places) + 3  # with padding
    scores = torch.randn(1, 1, length, length, generator=torch.Generator().manual_seed(2))
    scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).triu(), -torch.inf)
    scores[0, 0, 0] += 9
    context = [place for place in range(len(units[0].places)) if units[0].places[place, 0] >= 0]
    first, last = max(((i, j) for i in context for j in context if j >= i), key=lambda c: float(scores[0, 0, *c]))
    [one] = task.framing.read_scores(scores, units)
    expected = Found(float(scores[0, 0, first, last]), units[0].places[first, 0], units[0].places[last, 1])
    assert one == expected
    assert task.decode([[one, one._replace(score=one.score + 1, start=0, end=2)]], [example]) == ["北京"]


def test_answers_are_cut_from_the_original_text_also_where_lower_case_is_longer(tokenizer):
    context = "İİİ人İ住在Berlin。"  # the lower case of İ has two characters
    example = SpanExample("0", context, "住哪？", (Answer("Berlin", context.index("Berlin")),))
    task = get_task("cmrc2018")
    [unit] = task.encode(example, tokenizer)
    [(_, first, last)] = unit.gold
    found = Found(0.0, int(unit.places[first, 0]), int(unit.places[last, 1]))
    assert task.decode([[found]], [example]) == ["Berlin"]


def test_an_answer_that_splits_a_token_is_lost_for_training_only(tokenizer):
    context = "它是①ﬁ。"  # two characters that are one unknown token
    example = SpanExample("0", context, "什么？", (Answer("①", 2),))
    [unit] = get_task("cmrc2018").encode(example, tokenizer)
    assert unit.lost == 1
    assert unit.gold == ((0, 0, 0),)


def test_an_answer_that_no_window_has_is_lost_once(tokenizer):
    task, context = get_task("cmrc2018"), "北京是首都。" * 40
    lost = (Answer(context[:60], 0), Answer("上海", -1))  # longer than a window, and no span of the text
    for answer in (*lost, Answer("首都", 3)):
        units = task.encode(SpanExample("0", context, "哪里？", (answer,)), tokenizer, 40)
        assert len(units) > 3
        assert sum(unit.lost for unit in units) == (answer in lost)


def test_a_context_may_begin_with_a_long_blank(tokenizer):
    task, context = get_task("cmrc2018"), " " * 600 + "北京是首都"
    units = task.encode(SpanExample("0", context, "哪里？", (Answer("首都", 603),)), tokenizer)
    assert [unit.lost for unit in units] == [0, 0]
    assert units[-1].gold != ((0, 0, 0),)
    with pytest.raises(DataError, match="empty context"):
        task.encode(SpanExample("0", " " * 600, "哪里？"), tokenizer)


# ---- entities --------------------------------------------------------------------------------------------------------


def test_entities_are_spans_of_tokens_and_back(tokenizer):
    task, example = get_task("cluener"), names()[1]
    [unit] = task.encode(example, tokenizer)
    length = len(unit.places) + 2
    scores = torch.full((1, 10, length, length), -1.0)
    for kind, first, last in unit.gold:
        scores[0, kind, first, last] = 0.5
    scores[0, 3, 0, 4] = 2.0  # begins at [CLS]
    scores[0, 3, 2, len(unit.places) - 1] = 2.0  # ends at [SEP]
    outputs = [task.framing.read_scores(torch.nn.functional.pad(scores, (0, 0)), [unit])]
    assert task.decode(outputs, [example]) == [example.mentions]


def test_entities_are_read_as_a_loop_over_all_cells_reads_them(tokenizer):
    task, example = get_task("cluener"), names()[2]
    [unit] = task.encode(example, tokenizer)
    length = len(unit.places)
    scores = torch.randn(1, 10, length, length, generator=torch.Generator().manual_seed(4)) - 1.5
    expected = {
        (task.info.labels[kind], int(unit.places[i, 0]), int(unit.places[j, 1]) - 1)
        for kind in range(10)
        for i in range(1, length - 1)
        for j in range(1, length - 1)
        if scores[0, kind, i, j] > 0
    }
    [spans] = task.framing.read_scores(scores, [unit])
    assert len(spans) == len(expected)
    assert set(spans) == expected


def test_the_loss_of_entities_is_the_mean_over_texts_and_types(tokenizer):
    task = get_task("cluener")
    units = [unit for example in names()[:2] for unit in task.encode(example, tokenizer)]
    batch = task.collate(units)
    length = batch["mask"].shape[1]
    scores = torch.randn(2, 10, length, length, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).triu(), -torch.inf)
    values = []
    for text, kind in itertools.product(range(2), range(10)):
        gold = {(i, j) for k, i, j in units[text].gold if k == kind}
        cells = {(i, j): float(scores[text, kind, i, j]) for i in range(length) for j in range(i, length)}
        negative = 1 + sum(math.exp(s) for cell, s in cells.items() if cell not in gold)
        positive = 1 + sum(math.exp(-s) for cell, s in cells.items() if cell in gold)
        values.append(math.log(negative) + math.log(positive))
    assert float(task.framing.loss(scores, batch)) == pytest.approx(sum(values) / 20, rel=1e-12)


def test_entities_that_split_a_token_or_are_cut_off_are_counted_and_stay_gold(tokenizer):
    task = get_task("cluener")
    text = "它是①ﬁ，" + "很" * 300 + "王芳"
    example = EntityExample("0", text, (Entity("game", 2, 2), Entity("name", 305, 306), Entity("book", 0, 1)))
    [unit] = task.encode(example, tokenizer)
    assert unit.lost == 2
    assert unit.cut
    assert len(unit.gold) == 1
    assert len(unit.rows[0]) == 256
    only_learnable = [{"book": {"它是": [[0, 1]]}}]
    assert task.metric(only_learnable, [example])["micro_f1"] == pytest.approx(0.5)  # precision 1, recall 1/3


def test_a_span_of_several_tokens_of_one_character_is_one_answer(tokenizer):
    task = get_task("cluener")
    [unit] = task.encode(EntityExample("0", "王芳", ()), tokenizer)
    unit = unit._replace(places=np.array([[-1, -1], [0, 1], [0, 1], [-1, -1]]))
    scores = torch.full((1, 10, 4, 4), -1.0)
    scores[0, 0, 1, 1] = scores[0, 0, 1, 2] = 1.0
    assert task.framing.read_scores(scores, [unit]) == [[("address", 0, 0)]]
