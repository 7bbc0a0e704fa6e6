"""Every function of the room on every kind of input: the same answer, or a refusal that names what came."""

import numpy as np
import pytest
import torch

from kexue.similarity import (
    GeodesicIndex,
    HubnessReducer,
    ScoreCalibrator,
    TransportIndex,
    Whitening,
    align_mean,
    emd,
    explain,
    geodesic_distances,
    hubness_report,
    k_occurrence,
    knn_graph,
    moments,
    pair_cosine,
    product_upper_bound,
    random_pair_scores,
    relaxed_wmd,
    relaxed_wrd,
    retrieval_metrics,
    rotation_between,
    spearman,
    spearman_ceiling,
    tune_whitening,
    wcd,
    whiten,
    word_movers_distance,
    word_rotators_distance,
    word_rotators_similarity,
    wrd_centroid_bound,
)

LABELS = [0, 1] * 6
CALLS = {
    "moments": lambda x: moments(x).scatter,
    "whiten": whiten,
    "transform": lambda x: Whitening().fit(x).transform(x),
    "inverse_transform": lambda x: Whitening(gamma=0.0).fit(NUMBERS).inverse_transform(x),
    "tune_whitening": lambda x: tune_whitening(x).whitening.kernel_,
    "pair_cosine": lambda x: pair_cosine(x, x[:, :]),
    "retrieval_metrics": lambda x: list(retrieval_metrics(x, LABELS).values()),
    "spearman": lambda x: spearman(x[:, 0], x[:, 1]),
    "spearman_ceiling": lambda x: spearman_ceiling(x[:, 0]),
    "k_occurrence": lambda x: k_occurrence(x, 2),
    "k_occurrence of queries": lambda x: k_occurrence(x, 2, queries=x, metric="cosine"),
    "hubness_report": lambda x: hubness_report(x, 2)[:-1],
    "HubnessReducer": lambda x: HubnessReducer(k=2).fit(x).augment(x),
    "knn_graph": lambda x: knn_graph(x, 2).toarray(),
    "geodesic_distances": lambda x: geodesic_distances(x, k=3),
    "GeodesicIndex": lambda x: GeodesicIndex(3).fit(x).distances(x),
    "rotation_between": lambda x: rotation_between(x[0], x[1]),
    "align_mean": lambda x: align_mean(x, [1.0, 0.0, 0.0, 0.0]),
    "random_pair_scores": lambda x: random_pair_scores(x, 9),
    "ScoreCalibrator": lambda x: ScoreCalibrator().fit(x[:, 0]).percentile(x[:, 1]),
    "word_movers_distance": lambda x: word_movers_distance(x[:5], x[5:]),
    "word_rotators_distance": lambda x: word_rotators_distance(x[:5], x[5:]),
    "word_rotators_similarity": lambda x: word_rotators_similarity(x[:5], x[5:]),
    "relaxed_wmd": lambda x: relaxed_wmd(x[:5], x[5:]),
    "relaxed_wrd": lambda x: relaxed_wrd(x[:5], x[5:]),
    "wcd": lambda x: wcd(x[:5], x[5:]),
    "wrd_centroid_bound": lambda x: wrd_centroid_bound(x[:5], x[5:]),
    "explain": lambda x: explain(x[:5], x[5:], list("abcde"), list("fghijkl")).distance,
    "emd": lambda x: emd(x[:4, 0] ** 2, x[:4, 0] ** 2, x[:4]),
    "product_upper_bound": lambda x: product_upper_bound(x[:4, 0] ** 2, x[:4, 0] ** 2, x[:4]),
    "TransportIndex": lambda x: TransportIndex().add([x[:5], x[5:]]).search(x[:3]).distances,
}
# Eighths: exact in every floating dtype.
NUMBERS = np.round(np.random.default_rng(0).normal(size=(12, 4)) * 8) / 8


def read_only(x):
    x = x.copy()
    x.setflags(write=False)
    return x


KINDS = {
    "flipped": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "fortran": np.asfortranarray,
    "read only": read_only,
    "longdouble": lambda x: x.astype(np.longdouble),
    "float32": lambda x: x.astype(np.float32),
    "float16": lambda x: x.astype(np.float16),
    "tensor": torch.tensor,
    "bfloat16": lambda x: torch.tensor(x, dtype=torch.bfloat16),
    "with a gradient": lambda x: torch.tensor(x, requires_grad=True),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_matrix_changes_no_answer(call, kind):
    answer = CALLS[call](KINDS[kind](NUMBERS))
    if isinstance(answer, torch.Tensor):
        answer = answer.detach().double().numpy()
    # Results are as precise as the dtype they come back in; masses squared in half precision likewise.
    close = {"float16": 5e-3, "bfloat16": 5e-2, "float32": 1e-5}.get(kind, 1e-12)
    np.testing.assert_allclose(np.asarray(answer, np.float64), np.asarray(CALLS[call](NUMBERS)), rtol=close, atol=close)


@pytest.mark.parametrize("call", CALLS)
def test_a_tensor_without_values_is_refused_by_name(call):
    with pytest.raises(ValueError, match="on the meta device and has no values"):
        CALLS[call](torch.ones(12, 4, device="meta"))


@pytest.mark.parametrize("call", [c for c in CALLS if c not in ("spearman", "spearman_ceiling")])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_refused(call, bad):
    x = NUMBERS.copy()
    x[1, 1] = x[0, 0] = bad
    with pytest.raises(ValueError, match=r"(?i)nan|inf"):
        CALLS[call](x)
