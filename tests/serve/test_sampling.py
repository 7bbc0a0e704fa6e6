"""Sentences over HTTP: events, their oracle on the command line's functions, and what is refused."""

import json

import pytest
from starlette.testclient import TestClient

from kexue.sampling import diagnose
from kexue.sampling.text import NGramLM, load_lm, write_keywords
from kexue.serve import Settings, create_app


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "own"
    NGramLM(3).fit(["我们去广州吃美食", "广州的美食很多", "孩子去广州"]).save(folder)
    with TestClient(create_app(Settings(runs=["ngram-zh", folder], api_keys={}))) as client:
        yield client


def events(answer):
    assert answer.status_code == 200, answer.text
    return [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]


def test_the_events_lead_to_the_sentences_of_the_same_seed(client):
    body = {"words": ["广州", "美食"], "steps": 60, "chains": 3, "seed": 5}
    *steps, last = events(client.post("/v1/sampling", json=body))
    lm = load_lm()
    seen = []
    written = write_keywords(["广州", "美食"], lm, steps=60, chains=3, generator=5, watch=seen.append)
    assert [one["step"] for one in steps] == list(range(2, 121, 2))
    assert [one["gamma"] for one in steps] == [now.gamma for now in seen[1::2]]
    assert [one["sentences"] for one in steps] == [[lm.decode(s) for s in now.states] for now in seen[1::2]]
    assert steps[3]["log_rho"] == pytest.approx(list(seen[7].log_rho))
    assert steps[3]["acceptance"] == pytest.approx(sum(seen[6].accepted + seen[7].accepted) / 6)
    assert [one["text"] for one in last["results"]] == written.sentences
    places = (lambda state, word=word: lm.decode(state).find(word) for word in body["words"])
    judged = diagnose(written.result, len, *places)
    assert (last["rhat"], last["ess"]) == (pytest.approx(judged.rhat), pytest.approx(judged.ess_bulk))
    assert last["flags"] == list(judged.flags)
    assert all("广州" in text and "美食" in text for one in steps for text in one["sentences"])


def test_models_are_listed_and_chosen_by_name(client):
    listed = client.get("/v1/indexes").json()["writers"]
    assert listed == [{"name": "ngram-zh", "model": "5-grams"}, {"name": "own", "model": "3-grams"}]
    *_, last = events(client.post("/v1/sampling", json={"words": ["广州"], "run": "own", "steps": 20}))
    assert set("".join(one["text"] for one in last["results"])) <= set("我们去广州吃美食广州的美食很多孩子去广州")


def test_a_text_is_said_in_other_words(client):
    body = {"text": "故宫的门票多少钱", "steps": 8, "chains": 2}
    *_, last = events(client.post("/v1/sampling", json=body))
    assert last["done"]
    assert all(one["text"] != body["text"] for one in last["results"])
    *_, last = events(client.post("/v1/sampling", json={**body, "length": 5}))
    assert all(len(one["text"]) <= 5 for one in last["results"])


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({}, 400, "words", "give words or text"),
        ({"words": ["好"], "text": "好"}, 400, "text", "one of them"),
        ({"words": []}, 400, "words", "at least one text"),
        ({"words": ["好", " "]}, 400, "words", "words[1] is empty"),
        ({"words": ["龘"]}, 400, "words", "never seen the character '龘'"),
        ({"words": ["好" * 201]}, 413, "words", "201 letters"),
        ({"words": ["好"], "length": 3}, 400, "length", "goes with text"),
        ({"words": ["好"], "run": "films"}, 404, "run", "there are: ngram-zh, own."),
        ({"words": ["好"], "steps": 3}, 400, "steps", "greater than or equal to 4"),
        ({"words": ["好"], "gamma": 0}, 400, "gamma", "greater than 0"),
    ],
)
def test_wrong_requests_get_a_status_and_no_event(client, body, status, param, message):
    answer = client.post("/v1/sampling", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert message in error["message"]
