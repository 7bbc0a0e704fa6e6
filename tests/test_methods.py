import importlib
import re
from pathlib import Path

import pytest

from kexue.methods import METHODS, get_method, list_methods

ROOT = Path(__file__).parents[1]


def test_there_are_39_articles_with_distinct_slugs_and_numbers():
    assert len(METHODS) == 39
    assert len({m.slug for m in METHODS}) == 39
    numbers = [number for m in METHODS for number in (m.archive, *m.also)]
    assert len(set(numbers)) == len(numbers)
    assert get_method("zlpr").also == (9064,)


def test_later_archives_were_published_later():
    # The blog counts its articles upwards, so numbers and dates must sort alike.
    by_number = sorted(METHODS, key=lambda m: m.archive)
    assert [m.date for m in by_number] == sorted(m.date for m in METHODS)


def test_an_unknown_slug_names_its_neighbours():
    with pytest.raises(KeyError, match="whitening"):
        get_method("whitning")


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.slug)
def test_an_article_is_found_by_slug_number_and_address(method):
    for number in (method.archive, *method.also):
        for name in (
            number,
            str(number),
            f"https://kexue.fm/archives/{number}",
            f"http://www.kexue.fm/archives/{number}/comment",
        ):
            assert get_method(name) is method
    assert get_method(method.slug.upper()) is method
    assert get_method(method.slug.replace("-", "_")) is method


@pytest.mark.parametrize("name", ["8454x", "kexue.fm/archives/", "99999", "", "https://example.org/archives/8453"])
def test_what_is_no_article_is_a_key_error_in_words(name):
    with pytest.raises(KeyError, match="did you mean"):
        get_method(name)


@pytest.mark.parametrize("method", list_methods(status="working"), ids=lambda m: m.slug)
def test_a_working_article_has_code_experiment_page_and_record(method):
    for entry in method.objects:
        module, _, name = entry.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
    importlib.import_module(f"kexue.experiments.{method.experiment.replace('-', '_')}")
    page = ROOT / "docs" / method.page
    assert page.is_file()
    text = page.read_text(encoding="utf-8")
    assert method.title_zh in text
    assert method.url in text
    assert (ROOT / "docs" / "results" / method.slug / "report.json").is_file()
    assert (ROOT / "docs" / "results" / method.slug / "figure.png").is_file()


@pytest.mark.parametrize("method", list_methods(status="working"), ids=lambda m: m.slug)
def test_the_page_of_an_article_says_where_its_equations_are_in_the_code(method):
    page = (ROOT / "docs" / method.page).read_text(encoding="utf-8")
    assert "## Where in the code" in page
    section = page.partition("## Where in the code")[2].partition("\n## ")[0]
    sources = {path.as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("[st]*/**/*.py")}
    names = set(re.findall(r"`([\w/]+(?:\.\w+)*)`", section))
    files = {name for name in names if name.endswith(".py")}
    texts = [text for path, text in sources.items() if any(path.endswith(f"/{name}") for name in files)]
    for name in files:
        assert any(path.endswith(f"/{name}") for path in sources), f"there is no file {name}"
    for name in names - files - {name for name in names if "/" in name}:
        last = name.rpartition(".")[2]
        assert any(re.search(rf"\b{last}\b", text) for text in sources.values()), f"nothing is called {name}"
    equation = re.compile(r"#.*(\beq\. \(?\d|section \")")
    assert any(equation.search(text) for text in texts), "no line says which equation it computes"
