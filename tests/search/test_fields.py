"""Fields of an index against counting by hand; filters on fields that no document has; pages."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kexue.errors import DataError
from kexue.search import Index
from kexue.search.fields import COMMON, DISTINCT


def make(path: Path, metadata: list[dict[str, Any]]) -> Index:
    index = Index.create(path, encoder=None, overwrite=True)
    if metadata:
        vectors = np.random.default_rng(0).standard_normal((len(metadata), 4))
        index.add([f"t{i}" for i in range(len(metadata))], ids=range(len(metadata)), metadata=metadata, vectors=vectors)
    return index


def test_the_schema_gives_types_counts_ranges_and_common_values(tmp_path: Path) -> None:
    rows = [
        {
            "lang": "zh" if i % 3 else "en",
            "year": 2000 + i % 7,
            "day": f"2024-{i % 12 + 1:02}-01",
            "draft": i % 2 == 0,
            "tags": ["a"],
            "code": "007" if i else 7,
            "nr": f"n{i}",
            **({"rare": {"x": 1}} if i == 5 else {"rare": None}),
        }
        for i in range(DISTINCT + 10)
    ]
    with make(tmp_path / "x.kx", rows) as index:
        schema = index.schema
        assert (schema["text"], schema["id"], schema["metadata"]) == (None, None, [])
        fields = schema["fields"]
        types = {name: field["type"] for name, field in fields.items()}
        assert types == {
            "lang": "text", "year": "number", "day": "date", "draft": "boolean", "tags": "list", "code": "mixed",
            "nr": "text", "rare": "object",
        }  # fmt: skip
        assert list(fields)[-1] == "rare"
        assert fields["rare"]["count"] == 1
        assert (fields["year"]["low"], fields["year"]["high"]) == (2000, 2006)
        assert (fields["day"]["low"], fields["day"]["high"]) == ("2024-01-01", "2024-12-01")
        assert fields["lang"]["common"] == [list(pair) for pair in Counter(row["lang"] for row in rows).most_common()]
        assert fields["year"]["distinct"] == 7
        assert len(fields["year"]["common"]) == COMMON
        assert (fields["nr"]["distinct"], fields["nr"]["common"]) == (None, [])
        json.dumps(schema, allow_nan=False)
        assert index.schema is schema, "not read again"
        index.delete("5")
        assert "rare" not in index.schema["fields"]


values = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "b", "2024-01-01"]) | st.just([1])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), values, max_size=3), max_size=12))
def test_counts_are_those_of_counting(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    with make(tmp_path_factory.mktemp("f") / "x.kx", rows) as index:
        fields = index.schema["fields"]
    for name in "abc":
        there = [row[name] for row in rows if row.get(name) is not None]
        assert (name in fields) == bool(there)
        if there:
            assert fields[name]["count"] == len(there)
            keys = Counter((type(value).__name__, json.dumps(value)) for value in there)
            if all(not isinstance(value, list) for value in there):
                assert fields[name]["distinct"] == len(keys)
                assert sorted(n for _, n in fields[name]["common"]) == sorted(keys.values())[-COMMON:]


def test_a_filter_on_a_field_that_no_document_has_names_those_there_are(tmp_path: Path) -> None:
    with make(tmp_path / "x.kx", [{"lang": "en", "year": 1}, {"lang": "zh", "none": None}]) as index:
        query = np.ones((1, 4))
        for act in (
            lambda f: index.search(query, filter=f),
            lambda f: index.list(filter=f),
            lambda f: index.delete(filter=f),
        ):
            for wrong in ({"langg": "en"}, {"or": [{"lang": "en"}, {"not": {"langg": {"ne": 1}}}]}, {"none": "x"}):
                with pytest.raises(ValueError, match=r"'(langg|none)', which no document has; there are: lang, year$"):
                    act(wrong)
        assert len(index) == 2
        assert [one.id for one in index.list(filter={"langg": {"exists": False}, "lang": "zh"})] == ["1"]
        assert index.list(filter={"langg": None})
        index.add(["new"], ids=["new"], metadata=[{"langg": "en"}], vectors=query)
        assert [one.id for one in index.list(filter={"langg": "en"})] == ["new"], "written after it was refused"
    with make(tmp_path / "y.kx", []) as index:
        assert index.search(query, filter={"any": 1}) == [[]]
        assert index.schema["fields"] == {}


def test_list_gives_pages_and_refuses_none(tmp_path: Path) -> None:
    with make(tmp_path / "x.kx", [{"n": i} for i in range(25)]) as index:
        assert [one.id for one in index.list()] == sorted(map(str, range(25)))
        assert [one.id for one in index.list(limit=3, after="10", filter={"n": {"lt": 20}})] == ["11", "12", "13"]
        assert index.list(after="9") == []
        assert index.list(limit=1)[0] == index.get("0")[0]
        assert len(index.list(limit=10**30, after="")) == 25
        assert [one.id for one in index.list(after=7)] == ["8", "9"]  # type: ignore[arg-type]
        for limit in (0, -1, True, "3", 2.0):
            with pytest.raises(ValueError, match=rf"limit must be a whole number >= 1, got {limit!r}"):
                index.list(limit=limit)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="half a surrogate pair"):
            index.list(after="\udcff")
