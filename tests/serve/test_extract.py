"""Triples over HTTP: what is found, by which model, and what is refused."""

import pytest
from starlette.testclient import TestClient

from kexue.extract import open_extractor
from kexue.serve import Settings, create_app

SENTENCE = "《红楼梦》的作者是曹雪芹"
LOW = {"head_threshold": 0.0, "tail_threshold": 0.0}  # whatever the network says


@pytest.fixture(scope="module")
def client(extractor_folder):
    settings = Settings(runs=[extractor_folder, f"other={extractor_folder}"], api_keys={}, device="cpu")
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def test_the_triples_are_those_of_the_model_for_each_text_in_order(client, extractor_folder):
    answer = client.post("/v1/extract", json={"texts": [SENTENCE, "李白", SENTENCE], **LOW})
    assert answer.status_code == 200, answer.text
    content = answer.json()
    extractor = open_extractor(extractor_folder)
    with pytest.warns(UserWarning, match="thresholds are low"):
        expected = extractor.extract([SENTENCE, "李白", SENTENCE], **LOW)
    assert len(expected[0]) > 0
    names = [[(one["subject"], one["predicate"], one["object"]) for one in found] for found in content["results"]]
    assert names == [[triple[:3] for triple in found] for found in expected]
    assert names[0] == names[2] != names[1]
    for one, triple in zip(content["results"][0], expected[0], strict=True):
        start, end = one["object_span"]
        assert SENTENCE[start:end] == one["object"]
        assert one["score"] == pytest.approx(triple.score, abs=1e-5)
    assert content["usage"]["total_tokens"] == 2 * len(SENTENCE) + 2
    assert content["timings"]["total"] >= content["timings"]["extract"] > 0
    assert "thresholds are low" in content["warnings"][0]


def test_models_are_listed_and_chosen_by_name(client):
    listed = client.get("/v1/indexes").json()["extractors"]
    assert [(one["name"], one["model"], one["head_threshold"], one["tail_threshold"]) for one in listed] == [
        ("books", "dgcnn", 0.5, 0.4),
        ("other", "dgcnn", 0.5, 0.4),
    ]
    assert "作者" in listed[0]["predicates"]
    body = {"texts": [SENTENCE], **LOW}
    answers = [client.post("/v1/extract", json={**body, "model": name}).json() for name in (None, "other")]
    assert answers[0]["results"] == answers[1]["results"]


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"texts": []}, 400, "texts", "at least one text"),
        ({"texts": ["好", " "]}, 400, "texts", "texts[1] is empty"),
        ({"texts": ["好"], "model": ""}, 404, "model", "no extraction model ''; there are: books, other."),
        ({"texts": ["好"], "model": "films"}, 404, "model", "no extraction model 'films'; there are: books, other."),
        ({"texts": ["好"], "head_threshold": 1}, 400, "head_threshold", "less than 1"),
        ({"texts": ["好"], "tail_threshold": -0.1}, 400, "tail_threshold", "greater than or equal to 0"),
        ({"texts": "好"}, 400, "texts", "list"),
    ],
)
def test_wrong_requests_are_refused(client, body, status, param, message):
    answer = client.post("/v1/extract", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert message in error["message"]


def test_a_text_longer_than_the_model_reads_is_told(client):
    content = client.post("/v1/extract", json={"texts": ["水" * 600]}).json()
    assert "1 text longer than 512" in content["warnings"][0]


def test_a_server_without_such_a_model_says_how_to_start_one(tiny_model):
    with TestClient(create_app(Settings(models=[tiny_model], api_keys={}))) as client:
        answer = client.post("/v1/extract", json={"texts": ["好"]})
    assert answer.status_code == 404
    remedy = "there are: none; start the server with --run RUN of kexue extract train."
    assert answer.json()["error"]["message"] == f"no extraction model; {remedy}"


def test_two_runs_of_one_name_are_refused(extractor_folder):
    with (
        pytest.raises(ValueError, match="two runs are named 'books'"),
        TestClient(create_app(Settings(runs=[extractor_folder, extractor_folder], api_keys={}))),
    ):
        pass
