"""Every estimator keeps scikit-learn's contract, and none of them imports scikit-learn to do so."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from kexue.similarity import Whitening

ESTIMATORS = [
    Whitening(),
    Whitening(1, beta=0.0, gamma=0.0),
    Whitening(beta=0.5, gamma=0.5, ddof=1, normalize=True),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.filterwarnings("ignore")  # the checks feed rank-deficient data on purpose
def test_sklearn_s_own_checks(estimator):
    results = check_estimator(estimator, on_skip=None, on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed
    assert sum(r["status"] == "passed" for r in results) > 30


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_clone_params_and_repr(estimator):
    twin = clone(estimator)
    assert twin is not estimator
    assert twin.get_params() == estimator.get_params()
    assert repr(twin) == repr(estimator) == repr(eval(repr(estimator)))
    assert vars(twin).keys() == estimator.get_params().keys()  # the constructor stores, and does nothing else
    with pytest.raises(ValueError, match="unknown parameter 'k'"):
        twin.set_params(k=3)
    assert twin.set_params(**estimator.get_params()) is twin


def test_in_a_pipeline():
    random = np.random.default_rng(0)
    X = random.normal(size=(200, 5)) * [100, 1, 1, 1, 1]
    y = X[:, 3] > 0
    pipeline = make_pipeline(Whitening(), LogisticRegression()).fit(X, y)
    assert pipeline.score(X, y) > 0.95
    assert pipeline.set_params(whitening__gamma=0.0)[0].gamma == 0.0
    assert clone(pipeline)[0].get_params() == pipeline[0].get_params()


def test_nothing_heavy_is_imported():
    code = (
        "import sys, numpy as np\n"
        "from kexue.similarity import *\n"
        "from kexue.similarity import Whitening, tune_whitening, evaluate_pairs\n"
        "Whitening(2).fit(np.random.default_rng(0).normal(size=(20, 3))).get_params()\n"
        "print([m for m in ('sklearn', 'torch', 'transformers', 'faiss', 'scipy.stats') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_fitted_copy_survives_deepcopy():
    import copy

    X = np.random.default_rng(0).normal(size=(30, 4))
    fitted = Whitening(2).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (copy.deepcopy(fitted).transform(X) == fitted.transform(X)).all()
