"""Experiment dgcnn-ie: corpora, what tags can hold, runs at small size, and rules of claims that flip."""

import numpy as np
import pytest

from kexue.experiments import dgcnn_ie as module
from kexue.experiments._extractors import SupervisionOfTexts, score, train_plainly
from kexue.experiments._measures import count_multiplications
from kexue.experiments._triple_corpora import PATTERNS, count_taggable, split_article, write_sentences
from kexue.extract import TripleExample, TripleSchema
from kexue.extract.triples import annotate

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def sentences():
    return write_sentences(350, np.random.default_rng(0))


def read(text, *triples):
    return TripleExample(text, tuple(annotate(text, *triple.split()) for triple in triples))


@pytest.mark.slow
def test_runs_at_small_size(tmp_path):
    report = module.run("smoke", 0, None).save(tmp_path)
    verdicts = {claim.text: claim.verdict for claim in report.claims}
    assert report.figures["tags_plain"].value == 1.0
    assert report.figures["tags_nested"].value == 0.0
    assert report.figures["known_seen"].value < 1.0
    assert verdicts["It works at a tenth of the price of a Transformer of the size of BERT-base."] == "not reproduced"
    assert len([note for note in report.notes if "is left out" in note]) == 2
    assert (tmp_path / "figure.png").exists()


# ---- corpora -------------------------------------------------------------------------------------------------------


def test_sentences_are_different_and_their_triples_are_in_them(sentences):
    texts = [one.example.text for one in sentences]
    assert len(set(texts)) == len(texts)
    assert {one.pattern for one in sentences} == set(PATTERNS)
    for _, example in sentences:
        for triple in example.triples:
            assert example.text[slice(*triple.subject_span)] == triple.subject
            assert example.text[slice(*triple.object_span)] == triple.object
            assert example.text.count(triple.object) == 1


def test_each_pattern_overlaps_as_its_name_says(sentences):
    for pattern, (_, triples) in sentences:
        subjects, objects = [{t[at] for t in triples} for at in (0, 2)]
        if pattern == "none":
            assert not triples
        elif pattern == "plain":
            assert len(triples) == 1
        elif pattern == "objects":
            assert len(triples) > len(subjects)
        elif pattern == "subjects":
            assert len(objects) == 1 < len(subjects)
        elif pattern == "pairs":
            assert len(subjects) > 1 < len(objects)
        elif pattern == "predicates":
            assert len({(t.subject, t.object) for t in triples}) < len(triples)
        else:
            [triple] = triples
            assert triple.subject in triple.object
            assert triple.subject_span[0] == triple.object_span[0]


def test_names_from_a_pool_recur():
    examples = [one.example for one in write_sentences(300, np.random.default_rng(0), names=6)]
    assert len({t.subject for e in examples for t in e.triples}) <= 3 * 6


def test_an_article_is_split_into_sentences_with_their_relations():
    text = "春天来\n了。他爱\n花园里的花！她走了。"
    entities = [
        {"id": "T1", "start": 6, "end": 7}, {"id": "T2", "start": 9, "end": 13}, {"id": "T3", "start": 0, "end": 2},
    ]  # fmt: skip
    relations = [
        {"type": "Use", "arg1": "T1", "arg2": "T2"},
        {"type": "Near", "arg1": "T1", "arg2": "T3"},  # of two sentences
        {"type": "Near", "arg1": "T1", "arg2": "T9"},  # of an entity without a span
    ]
    first, second, third = split_article(text, entities, relations)
    assert (first.text, first.triples, third.text) == ("春天来了。", (), "她走了。")
    [triple] = second.triples
    assert (second.text, triple[:5]) == ("他爱花园里的花！", ("他", "Use", "花园里的", (0, 1), (2, 6)))


# ---- what tags can hold --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "held"),
    [
        (read("甲生于乙", "甲 出生地 乙"), 1),
        (read("甲和丙生于乙", "甲 出生地 乙", "丙 出生地 乙"), 2),
        (read("甲自编自导乙", "乙 导演 甲", "乙 编剧 甲"), 1),
        (read("甲乙丙", "乙 导演 甲", "乙 编剧 丙"), 1),
        (read("甲文集", "甲 著有 甲文集"), 0),
        (read("甲生于乙，丙写丁", "甲 出生地 乙", "丁 作者 丙"), 2),
        (read("甲乙丙", "甲 父亲 乙", "乙 父亲 丙"), 1),  # the tag of the one in the middle is subject or object
        (TripleExample("甲", ()), 0),
    ],
)
def test_one_tag_for_each_character_holds(example, held):
    assert count_taggable(example) == held


# ---- training ------------------------------------------------------------------------------------------------------


def test_a_training_sentence_is_told_its_own_triples_only_where_asked():
    examples = [read("甲生于乙", "甲 出生地 乙"), read("丙生于丁", "丙 出生地 丁"), read("丙在丁出生", "丙 出生地 丁")]
    schema = TripleSchema.of(examples)
    own, told = (SupervisionOfTexts(examples, schema, told=told) for told in (False, True))
    assert (own.share_known(examples), told.share_known(examples)) == (2 / 3, 1.0)
    assert not own.features(examples[0].text).subjects.any()
    assert own.features("在乙的甲").subjects.any()


def test_a_training_that_diverges_is_told_apart(sentences):
    examples = [one.example for one in sentences[:64]]
    good, bad = (train_plainly(examples, 0, epochs=4, dim=16, lr=lr) for lr in (1e-3, 1e30))
    assert (good.diverged, bad.diverged) == (False, True)
    assert score(None, examples).f1 == 0.0


def test_work_of_an_encoder_is_that_of_its_matrices():
    readers = module.build_readers(8, small=True)
    with module.counting_attention():
        work = count_multiplications(readers["same_width"])
    assert work == 2 * (8 * 12 * 128**2 + 2 * 8 * 8 * 128)  # maps of width d and 4 d, products of queries and keys


# ---- rules ---------------------------------------------------------------------------------------------------------


def judge(**changed):
    """Verdicts by the first words of claims, where everything holds unless `changed`."""
    runs = np.array([0.0, 0.01, 0.02])
    values = {f"f1_{p}": 0.96 + runs for p in ("all", *module._OVERLAPS)} | {"tags_all": 0.8 + runs}
    values |= {f"tags_{p}": 0.6 + runs for p in module._OVERLAPS}
    values |= {f"{what}_{tail}": 1 - tail + runs for what in ("recall", "precision", "f1") for tail in module._TAILS}
    values |= {"f1_mixed": 0.8 + runs, "f1_gold": 0.7 + runs}
    values |= {f"{where}_{p}": 0.8 + runs for where in ("seen", "new") for p in module._PRIORS}
    values |= {"seen_told": 0.99 + runs / 10, "new_told": 0.5 + runs}
    values |= {f"diverged_{name}_{lr}": 0 * runs for name in ("warm", "cold") for lr in module._RATES}
    values |= {"diverged_cold_0.001": np.array([0.0, 0.0, 1.0])}
    work = {"work_dgcnn": 1.0, "work_bert_base": 20.0, "work_ratio_bert_base": 0.05, "work_ratio_same_width": 0.9}
    values |= {name: np.array(value) for name, value in changed.items() if name not in work}
    return [claim.verdict for claim in module._claims(values, work | {k: v for k, v in changed.items() if k in work})]


def test_claims_hold_where_everything_does():
    assert set(judge()) == {"reproduced"}


@pytest.mark.parametrize(
    ("place", "verdict", "changed"),
    [
        (0, "partly", {"f1_nested": [0.96, 0.97, 0.94]}),
        (1, "partly", {"tags_nested": [0.6, 0.6, 0.97]}),
        (1, "partly", {"tags_predicates": [0.6, 0.6, 0.951]}),
        (2, "not reproduced", {"recall_0.4": [0.5, 0.49, 0.53]}),
        (3, "not reproduced", {"f1_0.4": [0.5, 0.49, 0.53]}),
        (4, "not reproduced", {"f1_gold": [0.8, 0.83, 0.8]}),
        (5, "partly", {"new_told": [0.8, 0.83, 0.8]}),
        (5, "partly", {"seen_told": [0.8, 0.83, 0.8]}),
        (6, "not reproduced", {"diverged_cold_0.001": [0.0, 0.0, 0.0]}),
        (6, "not reproduced", {"diverged_warm_0.001": [1.0, 0.0, 0.0]}),
        (7, "not reproduced", {"work_ratio_bert_base": 0.2}),
    ],
)
def test_each_rule_flips(place, verdict, changed):
    verdicts = judge(**changed)
    assert verdicts.pop(place) == verdict
    assert set(verdicts) == {"reproduced"}
