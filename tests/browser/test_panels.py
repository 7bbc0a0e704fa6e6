"""Each panel against the server's own answers: what it shows, what its address says, and the keys."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import numpy as np
import pytest

import kexue.sampling
import kexue.search
import kexue.serve

from .conftest import HOSTILE, TEXTS

pytestmark = pytest.mark.xdist_group("browser")
QUERY = "the dog eats"


def texts(page, selector):
    return page.locator(selector).all_inner_texts()


# Search


def test_the_box_has_the_focus_and_slash_returns_to_it(visit) -> None:
    page = visit().page
    box = page.get_by_label("What are you looking for?")
    assert box.evaluate("box => box === document.activeElement")
    page.get_by_role("button", name="Dark").focus()
    page.keyboard.press("/")
    assert box.evaluate("box => box === document.activeElement")
    page.keyboard.type("a/b")
    assert box.input_value() == "a/b"


def test_hits_are_those_of_the_server_as_one_types(visit, server) -> None:
    here = visit()
    page = here.page
    asked: list[str] = []
    page.on("request", lambda request: request.url.endswith("/v1/search") and asked.append(request.post_data))
    page.keyboard.type(QUERY, delay=15)
    here.settle()
    wanted = server.ask("v1/search", {"query": QUERY, "index": "faq"})["results"]
    assert texts(page, ".hit .text") == [hit.get("passage", hit["document"])["text"] for hit in wanted]
    assert json.loads(asked[-1])["query"] == QUERY
    assert len(asked) < len(QUERY)  # not one a letter
    first, score = page.locator(".hit").first, wanted[0]
    assert f"{score['score']:.3f}" in first.inner_text()
    assert re.search(
        r"(1 in \d+ unrelated questions finds|\d+ % of unrelated questions find) a hit", first.inner_text()
    )
    chance = score["probability"]
    low, high = (f"{100 * chance[name]:.0f}" for name in ("low", "high"))
    assert f"{low} to {high} %" in first.inner_text()
    assert page.get_by_role("status").first.inner_text().startswith("10 hits in ")
    assert here.state == {"q": QUERY, "index": "faq"}


@pytest.mark.parametrize("zh", [False, True])
def test_a_weak_match_and_its_doubts_are_told_in_words(visit, zh) -> None:
    here = visit(zh=zh)
    hit = {"id": "a", "index": "faq", "score": 0.3, "percentile": 99.0, "chance": 0.42, "document": {"text": "no"}}
    answer = {"match": "weak", "results": [hit, {**hit, "id": "b", "chance": 1 / 150}], "timings": {"total": 0.1}}
    told = [
        "the calibration is too old: it saw 1,000 documents, and 300 have been added, changed or removed since. Again.",
        "the model does not know these parts of the query: 退, <b>x</b>.",
        "another sentence.",
    ]
    here.page.route("**/v1/search", lambda route: route.fulfill(json={**answer, "warnings": told}))
    here.go("search", index="faq", q="anything")
    banner = here.page.locator(".doubts").inner_text()
    assert all(part in banner for part in ("1,000", "300", "kexue index calibrate faq", "退, <b>x</b>", told[2]))
    assert ("too old" in banner) is not zh
    weak = here.page.locator(".weak-match").inner_text()
    assert ("没有好的匹配" if zh else "No good match") in weak
    first, second = texts(here.page, ".weak .hit")
    assert ("42% 的无关问题" if zh else "42 % of unrelated questions find") in first
    assert ("每 150 个" if zh else "1 in 150 unrelated questions") in second
    assert "99" not in first
    colour = "one => getComputedStyle(one).color"
    grey = here.page.locator(".hit .text").first.evaluate(colour)
    here.page.unroute("**/v1/search")
    here.page.route("**/v1/search", lambda route: route.fulfill(json={**answer, "match": "good", "warnings": []}))
    here.go("search", index="faq", q="something else")
    assert here.page.locator(".doubts, .weak-match, .hits.weak").count() == 0
    assert here.page.locator(".hit .text").first.evaluate(colour) != grey


def test_every_sentence_of_the_server_has_words_on_the_page() -> None:
    web = Path(kexue.serve.__file__).parent / "web"
    begun = re.findall(r"\[/\^([^(/\\]{1,30})", (web / "doubts.js").read_text(encoding="utf-8"))
    assert len(begun) == 17
    search, sampling = Path(kexue.search.__file__).parent, Path(kexue.sampling.__file__).parent
    files = (search / "meaning.py", search / "warnings.py", sampling / "result.py")
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    assert [words for words in begun if words not in source] == []


def test_an_older_question_is_given_up(visit) -> None:
    here = visit()
    page = here.page
    failed: list[str] = []
    held = []
    page.on("requestfailed", lambda request: failed.append(request.post_data_json["query"]))
    page.route("**/v1/search", lambda route: held.append(route) if not held else route.continue_())
    page.keyboard.type("cat")
    page.wait_for_timeout(400)
    page.keyboard.type(" sleeps")
    page.wait_for_selector(".hit")
    assert failed[0] == "cat"  # on a busy machine also what was typed in between
    assert "cat sleeps" not in failed
    assert page.get_by_label("What are you looking for?").input_value() == "cat sleeps"


def test_an_address_reproduces_a_search_and_back_undoes_it(visit, server) -> None:
    filters = [["size", "in", ["big", "old"]], ["n", "lt", 70]]
    state = {"index": "faq", "q": QUERY, "k": 3, "rerank": "wrd", "dehub": "none", "f": json.dumps(filters)}
    here = visit(**state)
    page = here.page
    body = {"query": QUERY, "index": "faq", "top_k": 3, "rerank": "wrd", "dehub": "none"}
    body["filter"] = {"size": {"in": ["big", "old"]}, "n": {"lt": 70}}
    wanted = server.ask("v1/search", body)["results"]
    assert texts(page, ".hit .id") == [hit["id"] for hit in wanted]
    assert page.locator(".hit .meaning dt").first.inner_text() == "WRD similarity"
    page.get_by_role("button", name="Remove the filter n < 70").click()
    here.settle()
    assert json.loads(here.state["f"]) == filters[:1]
    less = texts(page, ".hit .id")
    page.go_back()
    here.settle()
    assert texts(page, ".hit .id") == [hit["id"] for hit in wanted]
    page.go_forward()
    here.settle()
    assert texts(page, ".hit .id") == less
    page.reload()
    here.settle()
    assert texts(page, ".hit .id") == less
    assert page.get_by_label("Rerank word by word").input_value() == "wrd"


def test_keys_walk_the_hits_and_open_the_reason(visit, server) -> None:
    here = visit(q=QUERY, index="faq")
    page = here.page
    focused = "document.activeElement.querySelector('.id')?.textContent ?? document.activeElement.type"
    ids = texts(page, ".hit .id")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == ids[1]
    page.keyboard.press("Enter")
    here.settle()
    assert here.state["open"] == ids[1]
    text = page.locator(".hit.open .text").inner_text()
    explained = server.ask("v1/compare", {"texts": [QUERY, text], "explain": True, "index": "faq"})["explanation"]
    assert page.locator(".hit.open svg .move").count() == len({(p["source"], p["target"]) for p in explained["pairs"]})
    page.keyboard.press("Escape")
    assert "open" not in here.state
    assert page.locator(".hit.open").count() == 0
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == "search"
    page.keyboard.press("Escape")
    here.settle()
    assert here.state == {"index": "faq"}
    assert page.locator(".hit").count() == 0


def test_the_table_of_a_reason_adds_up_to_the_distance(visit, server) -> None:
    here = visit(q=QUERY, index="faq", open="t0", f='[["n","eq",0]]')
    page = here.page
    page.get_by_text("As a table").click()
    explained = server.ask("v1/compare", {"texts": [QUERY, TEXTS[0]], "explain": True, "index": "faq"})["explanation"]
    rows = [line.split("\t") for line in texts(page, ".alignment tbody tr")]
    assert sum(float(row[4]) for row in rows) == pytest.approx(explained["distance"], abs=5e-5 * len(rows))
    total = page.locator(".alignment tfoot tr").inner_text().split("\t")
    assert float(total[4]) == pytest.approx(explained["distance"], abs=1e-4)
    assert total[2] == "100.0 %"
    masses: dict[tuple[str, str], float] = {}
    for pair in explained["pairs"]:
        key = (pair["source"], pair["target"])
        masses[key] = masses.get(key, 0.0) + 100 * pair["mass"]
    assert {(row[0], row[1]): float(row[2][:-2]) for row in rows} == pytest.approx(masses, abs=0.051)
    for side, text in (("0", QUERY), ("1", TEXTS[0])):
        ends = set(page.locator(".move").evaluate_all(f"all => all.map(one => one.getAttribute('data-{side}'))"))
        shown = page.locator(".picture svg text").all_text_contents()
        assert ends == set(text.split()) <= set(shown)


def test_chips_and_the_form_add_filters(visit) -> None:
    here = visit(q=QUERY, index="faq")
    page = here.page
    page.get_by_role("button", name="Show only size: old").first.click()
    here.settle()
    assert all(" old " in text for text in texts(page, ".hit .text"))
    page.get_by_text("Options and filters").click()
    page.get_by_label("Field").fill("n")
    page.get_by_label("Condition").select_option("ge")
    page.get_by_label("Value").fill("50")
    page.keyboard.press("Enter")
    here.settle()
    assert json.loads(here.state["f"]) == [["size", "eq", "old"], ["n", "ge", 50]]
    assert all(" old " in text and TEXTS.index(text) >= 50 for text in texts(page, ".hit .text"))
    page.get_by_label("Number of hits").fill("2")
    page.keyboard.press("Tab")
    here.settle()
    assert page.locator(".hit").count() == 2


# Compare


def test_compare_agrees_with_the_server_and_its_address(visit, server) -> None:
    here = visit("compare", index="faq")
    page = here.page
    a, b = "a dog eats food", "the old cat sleeps, where?"
    page.get_by_label("One text").fill(a)
    page.get_by_label("Another text").fill(b)
    here.settle()
    page.wait_for_selector(".alignment svg")
    said = server.ask("v1/compare", {"texts": [a, b], "explain": True, "index": "faq"})
    facts = page.locator(".meaning").inner_text()
    assert f"{said['cosine']:.3f}" in facts
    assert f"{said['distance']:.3f}" in facts
    assert "of random pairs" in facts
    assert here.state == {"index": "faq", "a": a, "b": b}
    page.get_by_label("Distance between words").select_option("wmd")
    here.settle()
    moved = server.ask("v1/compare", {"texts": [a, b], "explain": True, "index": "faq", "kind": "wmd"})
    assert f"WMD distance\n{moved['distance']:.3f}" in page.locator(".meaning").inner_text()
    page.reload()
    here.settle()
    assert f"WMD distance\n{moved['distance']:.3f}" in page.locator(".meaning").inner_text()
    page.go_back()
    here.settle()
    assert f"{said['distance']:.3f}" in page.locator(".meaning").inner_text()


# Map


def pixels(page) -> int:
    """How many pixels of the map have the colour of hits."""
    return page.evaluate("""() => {
      const canvas = document.querySelector("canvas");
      const [r, g, b] = getComputedStyle(canvas).outlineColor.match(/\\d+/g).map(Number);
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let n = 0;
      for (let i = 0; i < data.length; i += 4) n += data[i] === r && data[i + 1] === g && data[i + 2] === b;
      return n;
    }""")


def in_view(page) -> int:
    return int(page.locator("h2").inner_text().split()[0])


def test_the_map_marks_hits(visit, server) -> None:
    here = visit("map", index="faq")
    page = here.page
    assert in_view(page) == len(server.ask("v1/indexes/faq/map")["points"])
    assert pixels(page) == 0
    page.get_by_label("Mark the hits of a query").fill(QUERY)
    here.settle()
    assert pixels(page) > 20 * 20
    assert page.get_by_role("status").inner_text() == f"{len(TEXTS) + 4} documents. 20 of 20 hits are marked."
    hits = [
        hit["document"]["text"]
        for hit in server.ask("v1/search", {"query": QUERY, "index": "faq", "top_k": 20})["results"]
    ]
    assert sorted(texts(page, ".hit-point a")) == sorted(hits)


def test_hits_that_a_sample_misses_are_drawn_too(visit, server) -> None:
    found = server.ask("v1/search", {"query": QUERY, "index": "faq", "top_k": 20})["results"]
    sample = server.ask("v1/indexes/faq/map?sample=500")
    drawn, others = sample["points"][:7], [hit["id"] for hit in found]
    placed = {point["id"]: point for point in sample["points"]}
    here = visit()
    page = here.page
    asked: list[str] = []

    def answer(route) -> None:
        if "&id=" not in route.request.url:
            return route.fulfill(json={**sample, "points": drawn})
        asked.append(route.request.url)
        return route.continue_()

    page.route("**/v1/indexes/faq/map?*", answer)
    here.go("map", index="faq", q=QUERY)
    known = {point["id"] for point in drawn}
    outside = [one for one in others if one not in known]
    said = page.get_by_role("status").inner_text()
    assert said.startswith(f"7 of {len(TEXTS) + 4} documents, drawn at random.")
    assert f"20 of 20 hits are marked; {len(outside)} of them are not in the sample" in said
    assert sorted(texts(page, ".hit-point a")) == sorted(hit["document"]["text"] for hit in found)
    [url] = asked
    assert all(f"id={one}" in url for one in outside)
    # The same plane: what is placed by id stands where the sample has it.
    again = server.ask("v1/indexes/faq/map?" + "&".join(["sample=500", *(f"id={one}" for one in others)]))
    assert [(point["id"], point["x"], point["y"]) for point in again["points"]] == [
        (one, pytest.approx(placed[one]["x"], abs=1e-4), pytest.approx(placed[one]["y"], abs=1e-4)) for one in others
    ]
    page.get_by_label("Mark the hits of a query").fill("")
    here.settle()
    assert in_view(page) == 7


def test_the_map_zooms_and_pans_and_its_address_follows(visit) -> None:
    here = visit("map", index="faq")
    page = here.page
    everything = in_view(page)
    page.get_by_role("button", name="Zoom in").click()
    here.settle()
    x, y, zoom = map(float, here.state["view"].split(","))
    assert zoom == pytest.approx(1.4)
    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    here.settle()
    right, same, _ = map(float, here.state["view"].split(","))
    assert right > x
    assert same == pytest.approx(y)
    for _ in range(8):
        page.keyboard.press("+")
    here.settle()
    few = in_view(page)
    assert few < everything
    page.reload()
    here.settle()
    assert in_view(page) == few
    page.locator("canvas").focus()
    page.keyboard.press("0")
    here.settle()
    assert "view" not in here.state
    assert in_view(page) == everything
    page.locator("canvas").hover()
    page.mouse.wheel(0, -400)
    here.settle()
    wheeled = float(here.state["view"].split(",")[2])
    assert wheeled > 1
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 200, steps=4)
    page.mouse.up()
    here.settle()
    before, after = float(here.state["view"].split(",")[0]), wheeled
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 200, steps=4)
    page.mouse.up()
    here.settle()
    assert float(here.state["view"].split(",")[0]) < before  # what is dragged to the right uncovers the left
    assert float(here.state["view"].split(",")[2]) == pytest.approx(after)


def test_the_map_tells_the_text_under_the_pointer_and_of_the_list(visit, server) -> None:
    points = server.ask("v1/indexes/faq/map")["points"]
    far = max(points, key=lambda point: point["x"])
    here = visit("map", index="faq", view=f"{far['x']},{far['y']},50")
    page = here.page
    tip = page.locator(".tip")
    assert not tip.is_visible()
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 2, box["y"] + box["height"] / 2 + 2)
    assert tip.inner_text() == far["text"]
    page.mouse.click(box["x"] + box["width"] / 2 + 2, box["y"] + box["height"] / 2 + 2)
    assert here.state["id"] == far["id"]
    page.mouse.move(0, 0)
    page.reload()
    here.settle()
    assert tip.inner_text() == far["text"]
    page.get_by_role("button", name="Show everything").click()
    high = max(points, key=lambda point: point["y"])
    spans = [[point[axis] for point in points] for axis in "xy"]
    fit = 0.92 * min(box[side] / (max(span) - min(span)) for side, span in zip(("width", "height"), spans, strict=True))
    at = [fit * (high[axis] - (max(span) + min(span)) / 2) for axis, span in zip("xy", spans, strict=True)]
    page.mouse.move(box["x"] + box["width"] / 2 + at[0], box["y"] + box["height"] / 2 - at[1])
    assert tip.inner_text() == high["text"]
    page.mouse.move(0, 0)
    here.go("map", index="faq", view=f"{far['x']},{far['y']},50")
    link = page.locator(".points a").first
    link.focus()
    assert tip.inner_text() == link.inner_text()
    page.keyboard.press("Enter")
    here.settle()
    assert page.locator("h1").inner_text() == "Search"
    assert page.locator(".hit .text").first.inner_text() == far["text"]


# Whitening


def test_sliders_pick_measured_rows(visit, server) -> None:
    rows = server.ask("v1/indexes/faq/whitening")["rows"]
    here = visit("whitening", index="faq")
    page = here.page
    raw = rows[0]  # the index is not whitened
    facts = page.locator(".meaning")
    assert f"{raw['score']:.3f}" in facts.inner_text()
    assert "These are the settings of this index." in page.inner_text("main")
    page.get_by_label("k: number of dimensions").focus()
    page.keyboard.press("Home")
    here.settle()
    least = min(row["k"] for row in rows)
    row = next(one for one in rows if (one["beta"], one["gamma"], one["k"]) == (0, 0, least))
    assert here.state == {"index": "faq", "beta": "0", "gamma": "0", "dims": str(least)}
    assert f"{row['score']:.3f}" in facts.inner_text()
    assert f"memory {100 * row['memory_bytes'] / raw['memory_bytes']:.0f} %" in facts.inner_text()
    assert page.locator(".mark.own").count() == 2
    page.get_by_label("γ: variances made equal").focus()
    page.keyboard.press("End")  # nothing was measured at beta 0, gamma 1: beta follows
    here.settle()
    row = next(one for one in rows if (one["beta"], one["gamma"], one["k"]) == (1, 1, least))
    assert f"{row['score']:.3f}" in facts.inner_text()
    page.reload()
    here.settle()
    assert f"{row['score']:.3f}" in facts.inner_text()
    assert page.get_by_label("β: mean removed").get_attribute("aria-valuetext") == "1"
    page.get_by_text("As a table").click()
    assert page.locator("tbody tr").count() == len(rows)


def test_the_nearest_measured_row_stands_for_what_was_not_measured(visit) -> None:
    grid = [(0, 0), (1, 0), (1, 0.5), (1, 1)]
    rows = [
        {
            "beta": beta,
            "gamma": gamma,
            "k": k,
            "score": k / 1000 + beta / 100 + gamma / 10,
            "metric": "MRR",
            "memory_bytes": k,
        }
        for beta, gamma in grid
        for k in (16, 32, 64, 128)
    ]
    here = visit()
    page = here.page
    page.route("**/v1/indexes/faq/whitening", lambda route: route.fulfill(json={"rows": rows}))
    here.go("whitening", index="faq", beta=0.9, gamma=0.6, dims=70)
    facts = page.locator(".meaning")
    assert "MRR\n0.124" in facts.inner_text()  # 1, 0.5, 64
    page.get_by_label("γ: variances made equal").focus()
    page.keyboard.press("End")
    here.settle()
    assert here.state == {"index": "faq", "beta": "1", "gamma": "1", "dims": "64"}
    page.get_by_label("β: mean removed").focus()
    page.keyboard.press("Home")
    here.settle()
    assert here.state == {"index": "faq", "beta": "0", "gamma": "0", "dims": "64"}
    assert "MRR\n0.064" in facts.inner_text()


def whitening_rows(scores: list[float], n: int) -> list[dict[str, object]]:
    from kexue.similarity.probability import clopper_pearson

    rows = []
    for k, score in zip((16, 32, 64, 128), scores, strict=True):
        low, high = (float(end[0]) for end in clopper_pearson(np.array([score * n]), np.array([n])))
        row = {"beta": 0, "gamma": 0, "k": k, "score": score, "low": low, "high": high}
        rows.append({**row, "metric": "MRR", "memory_bytes": k})
    return rows


@pytest.mark.parametrize(
    ("scores", "n", "signal"),
    [([0.02, 0.03, 0.02, 0.01], 60, False), ([0.02, 0.03, 0.02, 0.2], 60, True), ([0.02] * 4, 5000, True)],
)
def test_where_chance_does_as_well_no_curve_is_drawn(visit, scores, n, signal) -> None:
    chance = sum(1 / rank for rank in range(1, 11)) / n
    answer = {"rows": whitening_rows(scores, n), "texts": n, "sample": n, "documents": 9000, "chance": chance}
    here = visit()
    page = here.page
    page.route("**/v1/indexes/faq/whitening", lambda route: route.fulfill(json=answer))
    here.go("whitening", index="faq", dims=16)
    page.locator(".meaning").wait_for()
    words = page.inner_text("main")
    assert ("No setting is better than chance" in words) is not signal
    assert page.locator("svg .curve").count() == (2 if signal else 0)
    assert page.locator("svg .band").count() == signal
    low, high = answer["rows"][0]["low"], answer["rows"][0]["high"]
    assert f"{scores[0]:.3f} ({low:.3f} to {high:.3f})" in page.locator(".meaning").inner_text()
    assert f"Measured on {n:,} texts of this index’s 9,000 documents" in words


def test_a_difference_within_the_doubt_is_called_so(visit, server) -> None:
    dims = server.ask("v1/indexes/faq")["dims"]
    rows = [{**row, "k": dims} if row["k"] == 128 else row for row in whitening_rows([0.5, 0.1, 0.5, 0.51], 100)]
    here = visit()
    page = here.page
    page.route(
        "**/v1/indexes/faq/whitening",
        lambda route: route.fulfill(json={"rows": rows, "texts": 100, "documents": 100, "chance": 0.03}),
    )
    for k, doubt in ((16, True), (32, False)):
        rows[1]["k"], rows[0]["k"] = (33, 16) if k == 16 else (32, 15)
        here.go("compare", index="faq")
        here.go("whitening", index="faq", dims=rows[0]["k"] if k == 16 else 33)
        assert ("(within the uncertainty)" in page.locator(".meaning").inner_text()) is doubt


def test_without_measurements_the_command_is_named(visit) -> None:
    page = visit("whitening", index="few").page
    assert "kexue whiten tune" in page.inner_text("main pre")
    assert page.locator("svg").count() == 0


# Hubness


def test_hubness_agrees_with_the_server(visit, server) -> None:
    here = visit("hubness", index="faq", k=5, top=4)
    page = here.page
    said = server.ask("v1/hubness?index=faq&k=5&top=4")
    reading = page.locator(".reading").inner_text()
    assert f"skewness {said['k_skewness']:.2f}" in reading
    assert f"makes up {100 * said['top20_share']:.0f} % of all nearest neighbours" in reading
    assert f"found {said['max']} times" in reading
    worst = page.get_by_role("region", name="Largest hubs").locator("tbody tr")
    assert [row.split("\t")[0] for row in worst.all_inner_texts()] == [str(hub["count"]) for hub in said["top"]]
    page.get_by_text("As a table").click()
    bins = page.get_by_role("region", name="How often documents are found").locator("tbody tr")
    assert sum(int(row.split("\t")[1]) for row in bins.all_inner_texts()) == said["n"]
    assert page.locator("svg .column").count() == bins.count()
    page.get_by_label("Number of hubs shown").fill("2")
    page.keyboard.press("Enter")
    here.settle()
    assert here.state["top"] == "2"
    assert worst.count() == 2
    page.go_back()
    here.settle()
    assert worst.count() == 4


def test_a_sample_and_few_documents_are_called_so(visit, server) -> None:
    said = server.ask("v1/hubness?index=faq&k=5&top=4")
    here = visit("hubness", index="faq", k=5, top=4)
    page = here.page
    few = f"With {said['n']} documents these numbers are rough."
    assert few in page.inner_text("main")
    assert "drawn at random from" not in page.inner_text("main")
    more = {**said, "n": 20_000, "documents": 150_000}
    page.route("**/v1/hubness?*", lambda route: route.fulfill(json=more))
    here.go("hubness", index="faq", k=6, top=4)
    assert "Counted among 20,000 documents drawn at random from 150,000" in page.inner_text("main")
    assert "these numbers are rough" not in page.inner_text("main")


# Long words, and long texts


@pytest.mark.parametrize("zh", [False, True])
def test_a_long_word_is_explained_at_once_and_cut(visit, zh) -> None:
    word = "A" * 20_000
    here = visit(zh=zh)
    page = here.page
    label = "A" * 40 + "... (20,000 letters)"
    reason = {"distance": 0.5, "kind": "wrd", "pairs": []}
    reason["pairs"] = [
        {"source": "refund", "target": name, "mass": 0.5, "cost": 0.5, "contribution": 0.25}
        for name in ("refund", label)
    ]
    hit = {"id": "x" * 5000, "index": "faq", "score": 0.5, "percentile": None}
    hit["document"] = {"text": f"refund {word}", "metadata": {"y" * 5000: "z" * 5000}}
    page.route("**/v1/search", lambda route: route.fulfill(json={"results": [hit], "timings": {"total": 0.1}}))
    page.route(
        "**/v1/compare",
        lambda route: route.fulfill(
            json={"explanation": reason, "warnings": ["1 text was cut: at most 256 tokens are read."]}
        ),
    )
    here.go("search", index="faq", q="refund")
    page.locator(".ask-why").click()
    page.wait_for_selector(".why svg", timeout=10_000)
    assert page.locator(".why svg .move").count() == 2
    assert max(map(len, page.locator(".why svg text").all_text_contents())) < 90
    assert "256" in page.locator(".why .note").last.inner_text()
    assert len(page.inner_text("body")) < 8000
    assert "(20007)" in page.locator(".hit .text").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1180


@pytest.mark.parametrize("words", [["A" * 20_000], ["A" * 20_000] * 28], ids=["one", "many"])
def test_the_picture_bounds_words_whatever_the_server_sends(visit, words) -> None:
    here = visit("compare", index="faq")
    pairs = [
        {"source": f"{n}{one}", "target": one, "mass": 1 / len(words), "cost": 0.5, "contribution": 0.5 / len(words)}
        for n, one in enumerate(words)
    ]
    reason = {"distance": 0.5, "kind": "wrd", "pairs": pairs}
    drawn = here.page.evaluate(
        """async (reason) => {
            const { alignment } = await import("./web/alignment.js");
            const figure = alignment(reason, "a", "b");
            document.querySelector("main").replaceChildren(figure);
            await new Promise((done) => setTimeout(done, 300));
            return figure.querySelectorAll("svg .move").length;
        }""",
        reason,
    )
    assert drawn == len(words)


# Keys, errors, hostile texts


def test_a_key_is_asked_for_and_forgotten(visit, guarded) -> None:
    here = visit(at=guarded)
    page = here.page
    here.expect_complaint("401")
    assert "A valid API key is needed" in page.get_by_role("alert").inner_text()
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    here.settle()
    here.expect_complaint("401")
    page.get_by_label("API key").fill("reader-key")
    page.get_by_role("button", name="Use this key").click()
    here.settle()
    page.keyboard.type(QUERY)
    here.settle()
    assert page.locator(".hit").count() == 10
    assert page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href").find("reader-key") < 0
    page.get_by_role("button", name="Forget the API key").click()
    page.keyboard.press("/")
    page.keyboard.type(" music")
    here.settle()
    here.expect_complaint("401")
    assert page.get_by_label("API key").is_visible()


@pytest.mark.parametrize(
    ("panel", "state", "message", "status"),
    [
        ("search", {"q": "dog", "index": "gone"}, "no index 'gone'", "404"),
        ("compare", {"a": "dog", "b": "cat", "index": "gone"}, "no index 'gone'", "404"),
        ("map", {"index": "gone"}, "no index 'gone'", "404"),
        ("whitening", {"index": "gone"}, "no index 'gone'", "404"),
        ("hubness", {"index": "few"}, "k", "400"),
    ],
)
def test_errors_are_shown_in_place_in_the_server_s_words(visit, panel, state, message, status) -> None:
    here = visit(panel, **state)
    here.expect_complaint(status)
    assert message in here.page.get_by_role("alert").inner_text()
    assert here.page.get_by_role("button", name="Try again").is_visible()


def test_a_server_that_is_gone_is_said_to_be(visit) -> None:
    here = visit()
    here.page.route("**/v1/search", lambda route: route.abort())
    here.page.keyboard.type("dog")
    here.settle()
    here.expect_complaint("ERR_FAILED")
    assert "cannot be reached" in here.page.get_by_role("alert").inner_text()
    here.page.unroute("**/v1/search")
    here.page.get_by_role("button", name="Try again").click()
    here.settle()
    assert here.page.locator(".hit").count() == 10


def test_texts_are_never_markup(visit) -> None:
    here = visit(q=HOSTILE, index="faq", open="t108")
    page = here.page
    shown = page.locator(".hit .text").first.inner_text()  # the passage that fits best
    assert shown in HOSTILE
    assert "pwned=1</" in shown
    assert page.locator(".hit.open svg .move").count() > 0
    page.get_by_role("button", name="Show only <b>note</b>").click()
    here.settle()
    assert page.locator(".chip.on").inner_text().startswith(f"<b>note</b> = {HOSTILE[:20]}")
    here.go("compare", index="faq", a=HOSTILE, b=HOSTILE)
    assert page.locator(".picture text").count() > 0
    here.go("map", index="faq", q=HOSTILE, id="t108")
    assert page.locator(".tip").inner_text() == HOSTILE
    here.go("hubness", index="faq", top=200)
    assert HOSTILE in page.inner_text("main")
    for panel in ("search", "whitening"):
        here.go(panel, index=HOSTILE, q=HOSTILE)
        here.expect_complaint("404")
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main script, main b").count() == 0


# Diffusion


def drawn(server, **body):
    """The events of the server's own answer."""
    with httpx.stream("POST", f"{server.url}/v1/diffusion", json=body, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def answer_with(body):
    return lambda route: route.fulfill(body=body, content_type="text/event-stream")


def sources(page):
    return page.locator(".pictures img").evaluate_all("all => all.map(one => one.src.split(',')[1])")


@pytest.mark.parametrize("zh", [False, True])
def test_images_are_those_of_the_server_step_by_step(visit, server, zh) -> None:
    here = visit("diffusion", zh=zh, steps=4, seed=5, **{"class": "3"}, scale=2)
    page = here.page
    events = drawn(server, n=16, steps=4, seed=5, condition="3", scale=2, eta=0)
    assert ("16 张图" if zh else "16 images in") in page.locator("p.status").inner_text()
    assert sources(page) == [events[-1]["image"]] * 2
    page.locator(".trajectory input").fill("2")
    assert sources(page) == [events[1]["image"], events[1]["estimate"]]
    assert ("第 2 步,共 4 步" if zh else "Step 2 of 4") in page.locator("p.status").inner_text()


def test_settings_change_the_address_and_the_images(visit, server) -> None:
    here = visit("diffusion", steps=4)
    page = here.page
    before = sources(page)
    page.get_by_label("Steps").fill("6")
    here.settle()
    assert here.state["steps"] == "6"
    assert page.locator(".trajectory input").get_attribute("max") == "7"
    page.get_by_role("button", name="Another seed").click()
    here.settle()
    assert here.state["seed"] == "1"
    assert sources(page)[0] == drawn(server, n=16, steps=6, seed=1, eta=0, scale=1.5)[-1]["image"] != before[0]
    page.get_by_label("Solver").select_option("heun")
    here.settle()
    assert page.get_by_label("New noise").is_disabled()
    assert sources(page)[0] == drawn(server, n=16, steps=6, seed=1, solver="heun", scale=1.5)[-1]["image"]


def test_what_fails_in_a_sampling_is_told(visit) -> None:
    here = visit("compare")
    refusal = {"error": {"message": "The server is busy."}}
    here.page.route("**/v1/diffusion", lambda route: route.fulfill(json=refusal, status=429))
    here.go("diffusion")
    assert "The server is busy." in here.page.get_by_role("alert").inner_text()
    here.expect_complaint("429")
    here.page.unroute("**/v1/diffusion")
    cut = 'data: {"step": 1, "steps": 9, "time": 0.5, "image": "", "estimate": ""}\n\n'
    for body, words in (
        (cut + 'data: {"error": {"message": "the events are not finite"}}\n\n', "the events are not finite"),
        (cut, "The server cannot be reached."),
    ):
        here.page.route("**/v1/diffusion", answer_with(body))
        here.page.reload()
        here.settle()
        assert words in here.page.get_by_role("alert").inner_text()
        here.page.unroute("**/v1/diffusion")
    here.page.get_by_role("button", name="Try again").click()
    here.settle()
    assert "16 images" in here.page.locator("p.status").inner_text()


# Triples

SENTENCE = "《红楼梦》的作者是曹雪芹"
FOUND = {
    "results": [
        [
            {
                "subject": "红楼梦",
                "predicate": "作者",
                "object": "曹雪芹",
                "subject_span": [1, 4],
                "object_span": [9, 12],
                "score": 0.9,
            },
            {
                "subject": "曹雪芹",
                "predicate": "著有",
                "object": "红楼梦",
                "subject_span": [9, 12],
                "object_span": [1, 4],
                "score": 0.25,
            },
        ]
    ]
}


def test_arcs_lead_from_the_subject_to_the_object(visit) -> None:
    here = visit("compare")
    page = here.page
    page.route("**/v1/extract", lambda route: route.fulfill(json=FOUND))
    here.go("extract", text=SENTENCE)
    assert page.locator("p.status").inner_text() == "2 triples"
    assert page.locator(".arc text").all_text_contents() == ["作者", "著有"]
    assert page.locator(".arc title").all_text_contents() == ["红楼梦 · 作者 · 曹雪芹", "曹雪芹 · 著有 · 红楼梦"]
    boxes = [one.bounding_box() for one in page.locator(".arc path:not(.tip-of-arc)").all()]
    tips = [one.bounding_box() for one in page.locator(".tip-of-arc").all()]
    middle = [tip["x"] + tip["width"] / 2 for tip in tips]
    assert abs(middle[0] - (boxes[0]["x"] + boxes[0]["width"])) < 5  # the first points to the right, the second back
    assert abs(middle[1] - boxes[1]["x"]) < 5
    assert [cells.split("\t") for cells in page.locator("tbody tr").all_inner_texts()] == [
        ["红楼梦", "作者", "曹雪芹", "0.90"],
        ["曹雪芹", "著有", "红楼梦", "0.25"],
    ]
    page.set_viewport_size({"width": 180, "height": 800})  # the text takes two lines, and every arc has two parts
    here.settle()
    tops = [one.bounding_box()["y"] for one in page.locator(".arcs rect").all()]
    assert max(tops) - min(tops) > 30
    assert page.locator(".arc text").all_text_contents() == ["作者", "作者", "著有", "著有"]
    assert page.locator(".tip-of-arc").count() == 2
    page.unroute("**/v1/extract")


def test_what_is_drawn_as_one_letter_stays_one(visit) -> None:
    family = "👨\u200d👩\u200d👧"
    text = f"{family}❤\ufe0f与李白e\u0301s\r\n写诗"
    spans = {name: [text.index(name), text.index(name) + len(name)] for name in ("李白", "诗")}
    subject, object = spans
    triple = {"subject": subject, "predicate": "写", "object": object, "score": 0.5}
    triple |= {"subject_span": spans[subject], "object_span": spans[object]}
    here = visit("compare")
    here.page.route("**/v1/extract", lambda route: route.fulfill(json={"results": [[triple]]}))
    here.go("extract", text=text)
    words = here.page.locator(".arcs svg > text")
    drawn = words.all_text_contents()
    assert [word.strip() for word in drawn] == [family, "❤\ufe0f", "与", "李", "白e\u0301s", "写", "诗"]
    for name, kind in ((subject, "subject"), (object, "object")):
        first, rect = words.nth(drawn.index(name[0])), here.page.locator(f".arcs rect.{kind}")
        assert rect.get_attribute("x") == first.get_attribute("x")
        letter, box = first.bounding_box(), rect.bounding_box()
        assert box["y"] < letter["y"] + letter["height"] / 2 < box["y"] + box["height"]
    here.page.unroute("**/v1/extract")


def test_thresholds_go_to_the_server_and_into_the_address(visit, server) -> None:
    here = visit("extract", text=SENTENCE)
    page = here.page
    page.get_by_label("Threshold of beginnings").fill("0.05")
    page.get_by_label("Threshold of ends").fill("0.05")
    here.settle()
    assert (here.state["head"], here.state["tail"]) == ("0.05", "0.05")  # neither change is lost by the other
    body = {"texts": [SENTENCE], "head_threshold": 0.05, "tail_threshold": 0.05}
    found = server.ask("v1/extract", body)["results"][0]
    assert page.locator("tbody tr").count() == len(found) > 0
    page.get_by_label("Sentence").fill("   ")
    here.settle()
    assert page.locator("p.status").inner_text() == "The triples of a sentence appear as you type."
    assert page.locator(".arcs").count() == 0


# Sentences


def test_sentences_are_those_of_the_server_with_what_is_doubted(visit, server) -> None:
    here = visit("sampling", q="广州，美食", steps=100, seed=2)
    page = here.page
    page.locator("p.status", has_text="R-hat").wait_for()
    body = {"words": ["广州", "美食"], "steps": 100, "seed": 2}
    with httpx.stream("POST", f"{server.url}/v1/sampling", json=body, timeout=60) as answer:
        last = json.loads([line for line in answer.iter_lines() if line][-1].removeprefix("data: "))
    assert page.locator(".sentences .text").all_inner_texts() == [one["text"] for one in last["results"]]
    assert {"广州", "美食"} == set(page.locator(".sentences mark").all_inner_texts())
    assert page.locator(".doubts li").count() == len(last["flags"]) > 0
    assert [page.locator("svg.chart").nth(i).locator("polyline").count() for i in range(3)] == [8, 1, 1]
    page.get_by_role("button", name="Write").click()  # the same words again: with another seed
    here.settle()
    assert here.state["seed"] == "3"
    page.locator("p.status", has_text="R-hat").wait_for()
    page.get_by_label("Words, or a sentence").fill("龘")
    page.get_by_role("button", name="Write").click()
    here.settle()
    assert "never seen the character" in page.get_by_role("alert").inner_text()
    here.expect_complaint("400")
