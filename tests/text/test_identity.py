"""Identity of encoders: what it reads, what it refuses, and its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kexue.errors import SpaceMismatchError
from kexue.text import Encoder, ModelIdentity
from kexue.text.identity import identify


class Counted:
    """An encoder of the caller's own."""

    model_id = "counts"
    dim = 3

    def encode(self, texts: list[str]) -> list[list[float]]:
        return [[len(text), 1.0, 0.0] for text in texts]


def test_an_encoder_states_how_it_is_opened_again(tiny_model: Path) -> None:
    encoder = Encoder(tiny_model, pooling="cls", max_length=9, normalize=False, prompts={"title": "title: "})
    identity = identify(encoder)
    assert identity == encoder.identity
    assert identity.reference == str(tiny_model.resolve())
    settings = {**encoder.prompts, "title": "title: "}
    assert identity.settings() == {"pooling": "cls", "max_length": 9, "normalize": False, "prompts": settings}


def test_a_name_the_caller_gives_is_kept_and_a_folder_made_absolute(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(tiny_model)
    monkeypatch.chdir(tiny_model.parent)
    assert identify(encoder, reference="owner/name").reference == "owner/name"
    assert identify(encoder, reference=tiny_model.name).reference == str(tiny_model.parent.resolve() / tiny_model.name)


def test_an_object_of_the_caller_is_read_by_its_attributes_and_cannot_be_opened_again() -> None:
    assert identify(Counted()) == ModelIdentity("counts", dim=3)
    assert identify(Counted()).reference is None
    assert identify(object()) == ModelIdentity("object")


def test_a_subclass_is_not_opened_as_its_base(tiny_model: Path) -> None:
    class Own(Encoder):
        pass

    encoder = Own(tiny_model)
    assert encoder.identity == Encoder(tiny_model).identity
    assert encoder.identity.reference is None


def test_the_record_survives_json(tiny_model: Path) -> None:
    identity = Encoder(tiny_model).identity
    record = json.loads(json.dumps(identity.to_record()))
    assert record["id"] == identity.model_id
    assert ModelIdentity.from_record(record).to_record() == identity.to_record()
    assert ModelIdentity.from_record({}) == ModelIdentity()
    with pytest.raises(TypeError):
        ModelIdentity.from_record({"colour": "blue"})


def test_unit_length_matters_to_a_whitening_alone() -> None:
    unit, raw = ModelIdentity("a", "x", 3, normalize=True), ModelIdentity("a", "x", 3, normalize=False)
    unit.check(raw)
    with pytest.raises(SpaceMismatchError, match="normalize True is not False"):
        unit.check(raw, whitened=True)
