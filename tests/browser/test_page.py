"""The page as a whole: words, colours, widths, accessibility, and what its files may not contain."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kexue.serve

pytestmark = pytest.mark.xdist_group("browser")
WEB = Path(kexue.serve.__file__).parent / "web"
PANELS = {
    "search": {"q": "the dog eats", "index": "faq", "open": "t0", "f": '[["n","lt",3]]'},
    "compare": {"a": "a dog eats food", "b": "the old cat sleeps", "index": "faq"},
    "map": {"q": "the dog eats", "index": "faq", "id": "t0"},
    "whitening": {"index": "faq", "dims": "16"},
    "hubness": {"index": "faq", "k": "5"},
    "extract": {"text": "《红楼梦》的作者是曹雪芹", "head": "0.05"},
    "sampling": {"q": "广州 美食", "steps": "100"},
    "diffusion": {"steps": "3", "class": "7"},
}


def test_files_hold_no_inline_code_no_markup_from_strings_and_no_other_origin() -> None:
    page = (WEB / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    for file in WEB.iterdir():
        source = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", source), (
            file
        )
        found = set(re.findall(r"(?:https?:)?//[a-z0-9][\w.-]*\.[a-z]+[\w/.-]*", source))
        assert found <= {"http://www.w3.org/2000/svg"}, file


def test_the_server_sends_the_policy_with_the_page(server) -> None:
    import httpx

    policy = httpx.get(server.url).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


def test_both_languages_have_every_word(visit) -> None:
    page = visit().page
    words = page.evaluate("import('./web/i18n.js').then(m => m.DICTIONARIES)")
    flat = {name: {k: v if isinstance(v, list) else [v] for k, v in words[name].items()} for name in words}
    assert flat["en"].keys() == flat["zh"].keys()
    for key, english in flat["en"].items():
        names = {name for one in english for name in re.findall(r"\{(\w+)\}", one)}
        [chinese] = flat["zh"][key]
        assert set(re.findall(r"\{(\w+)\}", chinese)) == names, key
        assert all(names == set(re.findall(r"\{(\w+)\}", one)) for one in english[1:]), key
        if key not in ("otherLanguage", "pair"):
            assert re.search(r"[\u4e00-\u9fff]", chinese), key
            assert not re.search(r"[\u4e00-\u9fff]", "".join(english)), key
    used = {key for file in WEB.glob("*.js") for key in re.findall(r'\bt\("(\w+)"', file.read_text(encoding="utf-8"))}
    used |= set(re.findall(r'data-t(?:-label)?="(\w+)"', (WEB / "index.html").read_text(encoding="utf-8")))
    assert used <= flat["en"].keys()


@pytest.mark.parametrize("panel", PANELS)
def test_chinese_leaves_no_english_words(visit, panel) -> None:
    here = visit(panel, **PANELS[panel])
    page = here.page
    english = page.evaluate("import('./web/i18n.js').then(m => Object.values(m.DICTIONARIES.en).flat())")
    whole = [words for words in english if "{" not in words and len(words) > 4 and words != "English"]
    shown = page.inner_text("body")
    assert sum(words in shown for words in whole) > 8
    page.get_by_role("button", name="中文").click()
    here.settle()
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    shown = page.inner_text("body") + " ".join(
        page.locator("[aria-label]").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    )
    assert [words for words in whole if re.search(rf"\b{re.escape(words)}\b", shown)] == []
    assert {k: v for k, v in here.state.items() if k in PANELS[panel]} == PANELS[panel]
    page.reload()
    here.settle()
    assert page.get_by_role("button", name="English").is_visible()


def test_the_browser_s_language_and_colours_are_the_first_choice(visit) -> None:
    page = visit(zh=True, dark=True).page
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.locator("h1").inner_text() == "搜索"
    dark = page.evaluate(ground)
    assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 3 * 64
    page.get_by_role("button", name="浅色").click()
    light = page.evaluate(ground)
    assert sum(map(int, re.findall(r"\d+", light)[:3])) > 3 * 192
    page.reload()
    page.wait_for_selector("h1")
    assert page.evaluate(ground) == light


@pytest.mark.parametrize("width", [360, 768, 1920])
def test_nothing_is_wider_than_the_window(visit, width) -> None:
    here = visit(width=width)
    for panel, state in PANELS.items():
        here.go(panel, **state)
        assert here.page.evaluate("document.documentElement.scrollWidth") <= width, panel


def test_links_between_panels_keep_the_index(visit) -> None:
    here = visit(index="few")
    for name, title in (("Hubness", "Hubness"), ("Map", "Map"), ("Compare", "Compare")):
        here.page.get_by_role("link", name=name).click()
        here.settle()
        assert here.page.locator("h1").inner_text() == title
        assert here.state == {"index": "few"}
        assert here.page.title() == f"{title} · kexue"
    here.expect_complaint("400")  # three documents have no ten neighbours


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("panel", PANELS)
def test_accessibility_and_a_picture(visit, artefacts, panel, dark) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs axe-playwright-python (extra `dev`)"
    )
    here = visit(panel, dark=dark, **PANELS[panel])
    picture = artefacts / f"{panel}-{'dark' if dark else 'light'}.png"
    here.page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 10_000
    here.page.locator("details").evaluate_all("all => all.forEach(one => (one.open = true))")
    found = axe.Axe().run(here.page).response["violations"]
    bad = [
        (one["id"], [node["html"] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert bad == []


def test_small_sums(visit) -> None:
    page = visit().page
    told = page.evaluate("""async () => {
      const { tail } = await import("./web/hits.js");
      const { binned } = await import("./web/hubness.js");
      const { merged } = await import("./web/alignment.js");
      const { wire } = await import("./web/search.js");
      return {
        tails: [12.345, 99.7, 99.96, 99.9996, 99.99999].map(tail),
        pairs: binned([[0, 5], [1, 2], [120, 1]]),
        ranges: binned([{ count_from: 0, count_to: 0, documents: 5 }, { count_from: 1, count_to: 120, documents: 3 }]),
        merged: merged([
          { source: "a", target: "b", mass: 0.1, cost: 1, contribution: 0.1 },
          { source: "c", target: "b", mass: 0.6, cost: 0.5, contribution: 0.3 },
          { source: "a", target: "b", mass: 0.3, cost: 0.2, contribution: 0.06 },
        ]),
        wire: wire([["year", "ge", 2020], ["lang", "eq", "en"], ["year", "lt", 2024]]),
      };
    }""")
    assert told["tails"] == ["12.3", "99.7", "99.96", "99.9996", "99.9999"]  # never rounded up
    for bins in (told["pairs"], told["ranges"]):
        assert len(bins) <= 61
        assert sum(one["documents"] for one in bins) == 8
    first, second = told["merged"]
    assert (first["source"], second["source"]) == ("c", "a")
    assert second["mass"] == pytest.approx(0.4)
    assert second["cost"] == pytest.approx(0.16 / 0.4)
    assert told["wire"] == {"year": [{"ge": 2020}, {"lt": 2024}], "lang": {"eq": "en"}}
