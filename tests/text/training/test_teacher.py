"""Vectors of a teacher: encoded once, centred, brought to the student's width."""

import numpy as np
import pytest

from kexue.text import Encoder
from kexue.text.training import teacher as module
from kexue.text.training.teacher import reduce_targets, teach

TEXTS = ["怎么退货", "今天天气好", "怎么退货呢", "手机"]


def test_texts_are_encoded_once(teacher, tmp_path, monkeypatch):
    vectors = teach(TEXTS, str(teacher), tmp_path / "run")
    np.testing.assert_allclose(vectors, Encoder(teacher).encode(TEXTS), atol=1e-6)
    calls = []
    encode_to = module.Encoder.encode_to
    monkeypatch.setattr(module.Encoder, "encode_to", lambda *args, **kw: calls.append(1) or encode_to(*args, **kw))
    np.testing.assert_array_equal(teach(TEXTS, str(teacher), tmp_path / "run"), vectors)
    assert not calls
    assert len(teach(TEXTS[:3], str(teacher), tmp_path / "run")) == 3  # other texts
    assert len(calls) == 1


@pytest.mark.parametrize("width", [8, 12])
def test_all_cosines_of_centred_vectors_are_kept_where_nothing_is_cut(width):
    vectors = np.random.default_rng(0).normal(size=(50, 8)) + 3
    targets = reduce_targets(vectors.astype(np.float32), width)
    assert targets.shape == (50, width)
    centred = vectors - vectors.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    ours = targets / np.linalg.norm(targets, axis=1, keepdims=True)
    np.testing.assert_allclose(ours @ ours.T, unit @ unit.T, atol=1e-5)


def test_a_narrower_student_learns_the_best_approximation():
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(200, 10)) * np.linspace(3, 0.1, 10)
    targets = reduce_targets(vectors.astype(np.float32), 4)
    u, s, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    best = (u[:, :4] * s[:4] ** 2) @ u[:, :4].T
    np.testing.assert_allclose(targets @ targets.T, best, atol=1e-3)
