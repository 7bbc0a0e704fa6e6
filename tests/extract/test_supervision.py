"""Features of known triples: what fires, and that a sentence is not told its own answers."""

import numpy as np
import pytest

from kexue.extract import DistantSupervision, Triple, TripleSchema, read_triples
from kexue.extract.triples import lower

SCHEMA = TripleSchema(("作者", "朝代"))
TRIPLES = [[Triple("红楼梦", "作者", "曹雪芹")], [Triple("红楼梦", "作者", "曹雪芹"), Triple("李白", "朝代", "唐代")]]


def test_a_triple_fires_where_both_names_occur():
    features = DistantSupervision(TRIPLES, SCHEMA).features("曹雪芹写红楼梦")
    assert features.subjects.tolist() == [[0, 0]] * 4 + [[1, 0], [0, 0], [0, 1]]
    known = features.of_subject((4, 7))
    assert np.argwhere(known).tolist() == [[0, 0, 0], [2, 0, 1]]
    assert not features.of_subject((0, 3)).any()
    assert not DistantSupervision(TRIPLES, SCHEMA).features("红楼梦").subjects.any()


def test_a_sentence_is_not_told_what_it_alone_knows():
    known = DistantSupervision(TRIPLES, SCHEMA)
    text = "李白是唐代人，红楼梦的作者是曹雪芹"
    assert known.features(text).subjects[:2].tolist() == [[1, 0], [0, 1]]
    assert not known.features(text, exclude_source=1).subjects[:2].any()  # only sentence 1 has it
    assert known.features(text, exclude_source=0).subjects[:2].any()
    for source in (0, 1):  # both have this one
        assert known.features(text, exclude_source=source).subjects[7:].any()


def test_with_the_exclusion_a_training_sentence_sees_what_it_would_see_if_it_were_not_there():
    examples = read_triples("sample")
    schema = TripleSchema.of(examples)
    known = DistantSupervision([example.triples for example in examples], schema)
    for i, example in enumerate(examples):
        others = DistantSupervision([one.triples for j, one in enumerate(examples) if j != i], schema)
        own, wanted = known.features(example.text, exclude_source=i), others.features(example.text)
        assert np.array_equal(own.subjects, wanted.subjects)
        assert {span: sorted(found) for span, found in own.objects.items()} == {
            span: sorted(found) for span, found in wanted.objects.items()
        }


def test_all_places_of_a_name_and_letter_case():
    known = DistantSupervision([[Triple("ABBA", "朝代", "b")]], SCHEMA)
    features = known.features("abba Abba")
    assert set(features.objects) == {(0, 4), (5, 9)}
    assert sorted(features.objects[0, 4]) == [(1, (k, k + 1)) for k, c in enumerate(lower("abba Abba")) if c == "b"]


def test_dump_and_load():
    known = DistantSupervision(TRIPLES, SCHEMA)
    again = DistantSupervision.load(known.dump(), SCHEMA)
    assert again.dump() == known.dump()
    assert DistantSupervision.load([], SCHEMA).features("甲").subjects.shape == (1, 2)


def test_predicates_outside_the_schema_are_left_out():
    known = DistantSupervision([[Triple("甲", "别的", "乙")]], SCHEMA)
    assert not known.features("甲乙").subjects.any()
    with pytest.raises(IndexError):
        known.features("甲乙").of_subject((0, 9)), known.features("甲")[5]
