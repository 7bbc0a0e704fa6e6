"""Filters against a plain Python reading of the same words."""

from __future__ import annotations

import json
import operator
import sqlite3
from typing import Any

import pytest
from hypothesis import given, strategies as st

from kexue.search import parse_filter
from kexue.search.filters import CONNECTIVES, DEPTH, OPERATORS, compared_fields, conditions, plain_filter
from kexue.search.store.sqlite.expressions import to_sql

COMPARE = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}


def number(value: Any) -> bool:
    return isinstance(value, int | float)


def equal(a: Any, b: Any) -> bool:
    return ((number(a) and number(b)) or (isinstance(a, str) and isinstance(b, str))) and a == b


def matches(metadata: dict[str, Any], wanted: dict[str, Any]) -> bool:
    if not all(matches(metadata, one) for one in wanted.get("and", ())):
        return False
    if "or" in wanted and not any(matches(metadata, one) for one in wanted["or"]):
        return False
    if "not" in wanted and matches(metadata, wanted["not"]):
        return False
    plain = {field: spec for field, spec in wanted.items() if field not in CONNECTIVES}
    for field, value, op in [(f, v, o) for f, spec in plain.items() for o, v in spec.items()]:
        there = metadata.get(field)
        if op == "exists":
            ok = (there is not None) == value
        elif op in ("in", "nin"):
            ok = any(equal(there, one) for one in value) == (op == "in")
        elif op in ("eq", "ne"):
            same = there is None if value is None else equal(there, value)
            ok = same == (op == "eq")
        else:
            comparable = (number(there) and number(value)) or (isinstance(there, str) and isinstance(value, str))
            ok = comparable and COMPARE[op](there, value)
        if not ok:
            return False
    return True


def select(documents: list[dict[str, Any]], wanted: dict[str, Any]) -> list[int]:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE documents (key INTEGER PRIMARY KEY, metadata TEXT)")
    rows = [(json.dumps(document, ensure_ascii=False),) for document in documents]
    connection.executemany("INSERT INTO documents (metadata) VALUES (?)", rows)
    where, parameters = to_sql(wanted)
    found = connection.execute(f"SELECT key FROM documents WHERE {where} ORDER BY key", parameters).fetchall()
    connection.close()
    return [key - 1 for (key,) in found]


# NUL ends a string for SQLite's JSON functions of before 2023; half surrogates are no text
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
fields = st.sampled_from(["a", "b", 'q"uote', "dot.ted", "é", "$", "", "a b"])
numbers = st.integers(-(2**40), 2**40) | st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
scalars = st.booleans() | numbers | words | st.sampled_from([0, 1, "a", "b"])
values = scalars | st.none() | st.lists(scalars, max_size=2) | st.dictionaries(words, scalars, max_size=2)
clauses = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("lt", "le", "gt", "ge"), scalars),
        **{op: scalars | st.none() for op in ("eq", "ne")},
        "in": st.lists(scalars, max_size=4),
        "nin": st.lists(scalars, max_size=4),
        "exists": st.booleans(),
    },
).filter(bool)


simple = st.dictionaries(fields, clauses, min_size=1, max_size=2)
nested = st.recursive(
    simple,
    lambda inner: st.builds(
        lambda beside, words: {**beside, **words},
        st.dictionaries(fields, clauses, max_size=1),
        st.one_of(
            st.fixed_dictionaries({"and": st.lists(inner, min_size=1, max_size=3)}),
            st.fixed_dictionaries({"or": st.lists(inner, min_size=1, max_size=3)}),
            st.fixed_dictionaries({"not": inner}),
        ),
    ),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(fields, values, max_size=4), max_size=6), nested)
def test_and_or_not_say_what_the_words_say(documents: list[dict[str, Any]], wanted: dict[str, Any]) -> None:
    expected = [i for i, one in enumerate(documents) if matches(one, wanted)]
    assert select(documents, wanted) == expected
    assert select(documents, plain_filter(wanted)) == expected
    assert plain_filter(plain_filter(wanted)) == plain_filter(wanted)


@given(st.lists(st.dictionaries(fields, values, max_size=4), max_size=6), st.dictionaries(fields, clauses, max_size=2))
def test_sql_says_what_the_words_say(documents: list[dict[str, Any]], wanted: dict[str, Any]) -> None:
    assert select(documents, wanted) == [i for i, one in enumerate(documents) if matches(one, wanted)]


@given(st.dictionaries(fields, scalars, max_size=2), fields, scalars)
def test_ne_is_the_negation_of_eq(metadata: dict[str, Any], field: str, value: Any) -> None:
    assert len(select([metadata], {field: value}) + select([metadata], {field: {"ne": value}})) == 1


def test_a_plain_value_is_equality_and_a_list_is_all_of_it() -> None:
    assert conditions({"a": 1}) == conditions({"a": {"eq": 1}})
    assert select([{"a": 1}, {"a": 2}, {"a": 3}], {"a": [{"ne": 1}, {"ne": 3}]}) == [1]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"a": {"like": "x"}}, ", ".join(OPERATORS)),
        ({"a": {}}, ", ".join(OPERATORS)),
        ({"a": {"in": "abc"}}, "list"),
        ({"a": {"exists": 1}}, "true or false"),
        ({"a": {"gt": None}}, "string, number or boolean"),
        ({"a": {"eq": [1]}}, "string, number or boolean"),
        ({"a": float("nan")}, "nan"),
        ({"a": {"nin": "abc"}}, "'nin'.*list"),
        ({"or": {"a": 1}}, "'or'.*list of filters"),
        ({"and": 5}, "'and'.*list of filters"),
        ({"or": []}, "match everything"),
        ({"or": [{"a": 1}, {}]}, "match everything"),
        ({"not": {}}, "match everything"),
        ({"not": [1]}, "'not'.*must hold filters"),
        ({"or": [5]}, "'or'.*must hold filters"),
    ],
)
def test_illegal_filters_name_what_is_legal(wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        conditions(wanted)


def test_nesting_has_a_limit() -> None:
    deep: dict[str, Any] = {"a": 1}
    for _ in range(DEPTH):
        deep = {"not": deep}
    assert select([{"a": 1}, {"a": 2}], deep) == [0]
    with pytest.raises(ValueError, match="nested too deeply"):
        conditions({"not": deep})


def test_dates_in_iso_form_compare_by_time() -> None:
    days = [{"day": day} for day in ("2023-12-31", "2024-01-01", "2024-01-01T09:30:00", "2024-02-01", "2024-10-01")]
    assert select(days, {"day": {"ge": "2024-01-01", "lt": "2024-02-01"}}) == [1, 2]


def test_the_fields_a_filter_compares() -> None:
    wanted = {"a": 1, "or": [{"b": {"in": [1]}}, {"not": {"c": {"lt": 2}}}], "d": {"exists": False}, "e": None}
    assert compared_fields(wanted) == ["a", "b", "c"]


@pytest.mark.parametrize("wanted", ["a=1", {1: 2}, None])
def test_filters_are_dictionaries_of_fields(wanted: Any) -> None:
    with pytest.raises(TypeError):
        conditions(wanted)


@pytest.mark.parametrize(
    ("expression", "parsed"),
    [
        ("a=1", {"in": [1, "1"]}),
        (" a b != x y ", {"ne": "x y"}),
        ("a<=-2.50", {"le": -2.5}),
        ("a<1", {"lt": 1}),
        ("a>1", {"gt": 1}),
        ("a>=2020", {"ge": 2020}),
        ("a=true", {"in": [True, "true"]}),
        ("a!=3.10", {"nin": [3.1, "3.10"]}),
        ("a>=2024/5/1", {"ge": "2024-05-01"}),
        ("a=2024年5月1日", {"eq": "2024-05-01"}),
        ("a=007", {"eq": "007"}),
        ('a="7"', {"eq": "7"}),
        ('a="=x"', {"eq": "=x"}),
        ('a="open', {"eq": '"open'}),
        ("a=x<y", {"eq": "x<y"}),
        ("a=退货", {"eq": "退货"}),
        ("a=zh|en", {"in": ["zh", "en"]}),
        ("a!= 1 | 2", {"nin": [1, "1", 2, "2"]}),
        ('a="x|y"', {"eq": "x|y"}),
        ('a="x|y"|z|"3"', {"in": ["x|y", "z", "3"]}),
        ("a=x||y|", {"in": ["x", "", "y", ""]}),
        ('a="x" y|z', {"in": ['"x" y', "z"]}),
        ("a=", {"eq": ""}),
    ],
)
def test_expressions_are_read(expression: str, parsed: dict[str, Any]) -> None:
    [read] = parse_filter([expression]).values()
    assert read == parsed
    assert [type(value) for value in read.values()] == [type(value) for value in parsed.values()]


def test_conditions_on_one_field_all_apply() -> None:
    wanted = parse_filter(["a>=1", "a<5", "a!=3", "a!=4", "b=x"])
    documents = [{"a": i, "b": "x"} for i in range(7)] + [{"a": 2, "b": "y"}]
    assert select(documents, wanted) == [1, 2]


def test_an_expression_in_braces_is_a_filter_in_json() -> None:
    wanted = parse_filter(['{"or": [{"a": 1}, {"b": "x"}]}', "a<5", '{"not": {"a": 1}}'])
    documents = [{"a": 1}, {"a": 2, "b": "x"}, {"a": 6, "b": "x"}, {"b": "x"}]
    assert select(documents, wanted) == [1]
    for wrong in ('{"a": ', '{"or": 5}', '{"a": {"like": 1}}'):
        with pytest.raises(ValueError, match=r"JSON|list of filters|unknown operator"):
            parse_filter([wrong])
    for wrong in ("or=5", "a<1|2"):
        with pytest.raises(ValueError, match=r"need"):
            parse_filter([wrong])


@pytest.mark.parametrize("expression", ["a", "=1", "a==1", "a=>1", "", "a!1", "!=x", "a<>b"])
def test_malformed_expressions_say_the_grammar(expression: str) -> None:
    with pytest.raises(ValueError, match="field=value"):
        parse_filter([expression])


@pytest.mark.parametrize(("value", "message"), [([], "empty list"), ({"lt": 10**400}, "too large for a float")])
def test_what_would_match_everything_or_nothing_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        conditions({"year": value})
