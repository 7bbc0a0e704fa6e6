"""Samples of a diffusion as events: what each shows, what is refused, and clients that leave."""

import base64
import dataclasses
import json
import time

import httpx
import pytest
from starlette.testclient import TestClient

from kexue.errors import NotSupported
from kexue.generative import ModelConfig, open_run, train_model
from kexue.serve import Settings, create_app

SMALL = {"steps": 2, "batch_size": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a diffusion of digits, and of a VAE, after two steps of training."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("diffusion", "vae"):
        train_model(ModelConfig(name, "digits", folder / name, **SMALL))
    return folder


@pytest.fixture(scope="module")
def client(runs):
    settings = Settings(runs=[f"digits={runs / 'diffusion'}"], api_keys={}, device="cpu")
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def events(answer):
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]


def test_the_events_are_the_steps_of_the_sampling_and_its_images(client, runs):
    body = {"n": 4, "steps": 5, "seed": 3, "condition": "7", "scale": 1.5, "eta": 0.5}
    *steps, last = events(client.post("/v1/diffusion", json=body))
    assert [(one["step"], one["steps"]) for one in steps] == [(i, 5) for i in range(1, 6)]
    times = [one["time"] for one in steps]
    assert times == sorted(times, reverse=True)
    run = open_run(runs / "diffusion", device="cpu")
    seen = []
    x = run.model.sample(
        4, generator=3, steps=5, condition=7, scale=1.5, eta=0.5, callback=lambda i, t, made: seen.append(made)
    )
    for one, made in zip(steps, seen, strict=True):
        assert base64.b64decode(one["image"]) == run.medium.draw(made.x)
        assert base64.b64decode(one["estimate"]) == run.medium.draw(made.prediction.x0)
    assert base64.b64decode(last["image"]) == run.medium.draw(x)
    assert (last["done"], last["n"], last["seconds"] > 0, "warnings" in last) == (True, 4, True, False)


def test_defaults_null_and_unknown_fields(client):
    assert len(events(client.post("/v1/diffusion", json={"n": 1}))) == 51
    *_, last = events(client.post("/v1/diffusion", json={"n": 1, "steps": 2, "condition": None, "colour": 1}))
    assert last["warnings"] == ["unknown field 'colour' was ignored."]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"run": "letters"}, 404, "no run 'letters'; there are: digits."),
        ({"condition": "ten"}, 400, "the class must be one of 0, 1, 2"),
        ({"solver": "magic"}, 400, "solver must be one of ddim"),
        ({"eta": 0.5, "solver": "heun"}, 400, "eta goes with the solver ddim, not with heun"),
        ({"n": 65}, 400, "n must be less than or equal to 64"),
        ({"n": True}, 400, "n must be a whole number, got true"),
        ({"seed": False}, 400, "seed must be a whole number, got false"),
        ({"scale": True}, 400, "scale must be a number, got true"),
        ({"steps": 0}, 400, "steps must be greater than or equal to 1"),
        ({"eta": 1.5}, 400, "eta must be less than or equal to 1"),
        ({"seed": -1}, 400, "seed must be greater than or equal to 0"),
    ],
)
def test_wrong_requests_get_a_status_the_field_and_no_event(client, body, status, message):
    answer = client.post("/v1/diffusion", json=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == next(iter(body))


@pytest.mark.parametrize("body", [{"scale": 2.0}, {"condition": "3"}])
def test_a_model_without_classes_has_neither_guidance_nor_conditions(client, monkeypatch, body):
    runs = client.app.state.service.runs
    bare = dataclasses.replace(runs["digits"].medium, classes=(), class_shares=())
    monkeypatch.setitem(runs, "digits", dataclasses.replace(runs["digits"], medium=bare))
    answer = client.post("/v1/diffusion", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(body)))
    assert "classes" in answer.json()["error"]["message"]


def test_a_failure_on_the_way_is_an_event(client, monkeypatch):
    from kexue.generative.run.images import Images

    drawn = []

    def draw(self, items):
        drawn.append(items)
        if len(drawn) > 4:
            raise ValueError("the pencil broke")
        return b"png"

    monkeypatch.setattr(Images, "draw", draw)
    *steps, last = events(client.post("/v1/diffusion", json={"n": 1, "steps": 9}))
    assert [one["step"] for one in steps] == [1, 2]
    assert last["error"]["message"] == "the pencil broke"


def test_the_list_of_indexes_names_the_runs(client):
    assert client.get("/v1/indexes").json() == {
        "indexes": [],
        "runs": [{"name": "digits", "model": "diffusion", "classes": list("0123456789")}],
    }


def test_the_route_is_there_with_runs_only(client):
    assert "/v1/diffusion" in client.get("/openapi.json").json()["paths"]
    assert "/v1/diffusion" not in create_app(Settings(indexes=["any.kx"], api_keys={})).openapi()["paths"]


def test_a_run_of_another_model_and_two_of_one_name_are_refused(runs):
    def start(*given):
        with TestClient(create_app(Settings(runs=given, api_keys={}, device="cpu"))):
            pass

    with pytest.raises(NotSupported, match="is a run of vae; the server draws from diffusion and flow-matching"):
        start(runs / "vae")
    with pytest.raises(ValueError, match="two runs are named 'diffusion'"):
        start(runs / "diffusion", f"diffusion={runs / 'diffusion'}")


def test_a_client_that_leaves_ends_the_sampling(runs, start_server):
    running = start_server(runs=[runs / "diffusion"], device="cpu")
    run = running.app.state.service.find_run(None)
    calls = []
    run.model.diffusion.net.register_forward_hook(lambda *_: calls.append(1))
    try:
        body = {"n": 64, "steps": 500}
        with httpx.stream("POST", f"{running.url}/v1/diffusion", json=body, timeout=60) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
        before = -1
        while len(calls) != before:  # until nothing happens any more
            before = len(calls)
            time.sleep(1.0)
        assert 0 < before < 500
    finally:
        running.stop()
