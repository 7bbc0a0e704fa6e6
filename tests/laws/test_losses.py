"""What every loss keeps: its dtype, its limits, its sense under the transforms of torch. A new one joins by a line."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kexue import losses, nn

B, C, D = 4, 5, 3
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(make: Callable[[], torch.nn.Module]) -> Callable[[Tensor, Tensor], Tensor]:
    """A module that owns weights, made from a seed, in the dtype of what it is called with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        narrow = make()
    wide = copy.deepcopy(narrow).double()

    def call(x: Tensor, y: Tensor) -> Tensor:
        loss = wide if x.dtype == torch.float64 else narrow
        return (copy.deepcopy(loss).to("meta") if x.is_meta else loss)(x, y)

    return call


@dataclass(frozen=True)
class Example:
    """`loss(x, y)` of numbers x and labels y, both with the samples along the first axis."""

    loss: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    y: Tensor
    kind: str = "scores"  # or "cosines", "distances", "embeddings"
    labels: str = "classes"  # or "numbers", "none"
    alone: bool = True  # whether a sample has a loss of its own
    own_gradient: bool = True  # whether the gradient is that of the value shown


CLASSES = torch.tensor([3, 0, 4, 1])
HOT = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
TWO = torch.tensor([[3, 0], [4, 4], [1, 2], [0, 1]])
GRADES = torch.tensor([0, 2, 1, 1])
SCORES, COSINES, VECTORS, OTHERS = (
    randn(B, C),
    torch.tanh(randn(B, C, seed=1)),
    randn(B, D, seed=2),
    randn(B, D, seed=3),
)
PAIR_COSINES = COSINES[:, 0]


def pick(like: Tensor, x: Tensor) -> Tensor:
    """The first rows of x, in the dtype and on the device of `like`."""
    return x[: len(like)].to(like)


class Beside(torch.nn.Module):
    """A loss of pairs, each row beside a fixed other."""

    def __init__(self, loss: torch.nn.Module, *more: object) -> None:
        super().__init__()
        self.loss, self.more = loss, more

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(x, pick(x, OTHERS), y, *self.more)


EXAMPLES = {
    "zlpr_loss": Example(losses.zlpr_loss, SCORES, HOT, labels="numbers"),
    "zlpr_loss soft": Example(
        lambda x, y: losses.zlpr_loss(x, y, label_smoothing=0.1), SCORES, HOT, "smooth scores", "numbers"
    ),
    "zlpr_loss weighted": Example(
        lambda x, y: losses.zlpr_loss(x, y, weight=torch.arange(C, device=x.device)), SCORES, HOT, labels="numbers"
    ),
    "sparse_zlpr_loss": Example(losses.sparse_zlpr_loss, SCORES, TWO),
    "ZLPRLoss": Example(losses.ZLPRLoss(threshold=0.5), SCORES, HOT, labels="numbers"),
    "pairwise_logsumexp_loss": Example(
        lambda x, y: losses.pairwise_logsumexp_loss(x, y, scale=2, margin=0.3), SCORES, HOT, labels="numbers"
    ),
    "combination_softmax_loss": Example(
        lambda x, y: losses.combination_softmax_loss(x, y, k=3, pad_score=0.2), SCORES, HOT, labels="numbers"
    ),
    "nmway_loss": Example(lambda x, y: losses.nmway_loss(x[:, None], y[:, None]), SCORES, CLASSES),
    "nmway_loss centered": Example(
        lambda x, y: losses.nmway_loss(x[:, None], y[:, None], form="centered"), SCORES, CLASSES, kind="finite scores"
    ),
    "NMWayLoss": Example(
        lambda x, y: losses.NMWayLoss()(torch.stack([x, x.flip(-1)], 1), torch.stack([y, y], 1)), SCORES, CLASSES
    ),
    "tailr_loss": Example(lambda x, y: losses.tailr_loss(x, y, 0.3), SCORES, CLASSES, own_gradient=False),
    "tailr_loss integrated": Example(lambda x, y: losses.tailr_loss(x, y, 0.3, form="integrated"), SCORES, CLASSES),
    "tailr_loss gamma 0": Example(lambda x, y: losses.tailr_loss(x, y, 0), SCORES, CLASSES),
    "tailr_loss integrated gamma 0": Example(
        lambda x, y: losses.tailr_loss(x, y, 0, form="integrated"), SCORES, CLASSES
    ),
    "tailr_loss gamma 1": Example(lambda x, y: losses.tailr_loss(x, y, 1, form="integrated"), SCORES, CLASSES),
    "tailr_loss with everything": Example(
        lambda x, y: losses.tailr_loss(
            x, y, 0.7, min_weight=0.01, weight=torch.arange(C, device=x.device) + 1, label_smoothing=0.1
        ),
        SCORES,
        CLASSES,
        kind="finite scores, factors of classes",
        own_gradient=False,
    ),
    "TaiLrLoss": Example(losses.TaiLrLoss(0.5), SCORES, CLASSES, own_gradient=False),
    "am_softmax_loss": Example(losses.am_softmax_loss, COSINES, CLASSES, kind="cosines"),
    "arcface_loss": Example(losses.arcface_loss, COSINES, CLASSES, kind="cosines"),
    "margin_loss": Example(losses.margin_loss, SCORES.abs(), CLASSES, kind="distances"),
    "AMSoftmaxLoss": Example(built(lambda: losses.AMSoftmaxLoss(C, D)), VECTORS, CLASSES, kind="embeddings"),
    "ArcFaceLoss": Example(built(lambda: losses.ArcFaceLoss(C, D)), VECTORS, CLASSES, kind="embeddings"),
    "info_nce": Example(losses.info_nce, SCORES, CLASSES),
    "flat_nce": Example(losses.flat_nce, SCORES, CLASSES),
    "info_nce diagonal": Example(lambda x, y: losses.info_nce(x), SCORES, CLASSES, labels="none", alone=False),
    "InfoNCELoss": Example(
        lambda x, y: losses.InfoNCELoss()(x, pick(x, OTHERS)), VECTORS, CLASSES, "embeddings", "none", False
    ),
    "InfoNCELoss one way": Example(
        lambda x, y: losses.InfoNCELoss(symmetric=False)(x, pick(x, OTHERS)),
        VECTORS,
        CLASSES,
        "embeddings",
        "none",
        False,
    ),
    "FlatNCELoss": Example(
        lambda x, y: losses.FlatNCELoss()(x, pick(x, OTHERS)), VECTORS, CLASSES, "embeddings", "none", False
    ),
    "FlatNCELoss one way": Example(
        lambda x, y: losses.FlatNCELoss(symmetric=False, report="infonce")(x, pick(x, OTHERS)),
        VECTORS,
        CLASSES,
        "embeddings",
        "none",
        False,
        False,
    ),
    "pair_contrastive_loss": Example(
        lambda x, y: losses.pair_contrastive_loss(torch.cat([x, x.flip(1)])[: 2 * len(x)]),
        VECTORS,
        CLASSES,
        "embeddings",
        "none",
        False,
    ),
    "cosent_loss": Example(losses.cosent_loss, PAIR_COSINES, GRADES, "cosines", "numbers", False),
    "cosent_loss pairwise": Example(
        lambda x, y: losses.cosent_loss(x, y, method="pairwise"), PAIR_COSINES, GRADES, "cosines", "numbers", False
    ),
    "CoSENTLoss": Example(
        lambda x, y: losses.CoSENTLoss()(x, pick(x, OTHERS), y), VECTORS, GRADES, "embeddings", "numbers", False
    ),
    "cosine_mse_loss": Example(losses.cosine_mse_loss, PAIR_COSINES, GRADES.clamp(max=1), "cosines", "numbers"),
    "cosine_hinge_loss": Example(losses.cosine_hinge_loss, PAIR_COSINES, GRADES.clamp(max=1), "cosines", "numbers"),
    "PairClassificationLoss": Example(
        built(lambda: Beside(losses.PairClassificationLoss(D, C))), VECTORS, CLASSES, "pairs"
    ),
    "MultiTaskPairLoss": Example(
        built(lambda: Beside(losses.MultiTaskPairLoss(D, tasks={"a": 2, "b": 3}), "b")), VECTORS, GRADES, "pairs"
    ),
    "similarity_distillation_loss": Example(
        lambda x, y: losses.similarity_distillation_loss(x, pick(x, OTHERS)),
        VECTORS,
        CLASSES,
        "embeddings",
        "none",
        False,
    ),
    "seq2seq_loss": Example(
        lambda x, y: losses.seq2seq_loss(
            torch.stack([x, x], 1), y := torch.stack([y, y], 1), torch.ones_like(y, dtype=torch.int64)
        ),
        SCORES,
        CLASSES,
    ),
    "perturb_max_cross_entropy": Example(nn.perturb_max_cross_entropy, SCORES, CLASSES),
    "perturb_max_cross_entropy normal": Example(
        lambda x, y: nn.perturb_max_cross_entropy(x, y, "normal"), SCORES, CLASSES
    ),
}


def every(keep: Callable[[Example], bool] = lambda _: True):
    return pytest.mark.parametrize("e", [pytest.param(e, id=name) for name, e in EXAMPLES.items() if keep(e)])


def test_every_loss_is_here():
    elsewhere = {"GammaWarmup", "AdaptiveMarginSchedule", "contrastive_diagnostics", "estimate_class_diameter",
                 "fit_temperature", "zlpr_predict", "zlpr_proba"}  # fmt: skip
    assert set(losses.__all__) - elsewhere <= {name.split(" ")[0] for name in EXAMPLES}


@every()
def test_float64_is_computed_in_float64(e, widths):
    with widths:
        value = e.loss(e.x.clone(), e.y)
    assert value.dtype == torch.float64
    assert not widths.narrow


@every()
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_dtype_changes_nothing(e, default):
    x = e.x.float()
    expected = e.loss(x, e.y)
    torch.set_default_dtype(default)
    try:
        value = e.loss(x, e.y)
    finally:
        torch.set_default_dtype(torch.float32)
    assert value.dtype == torch.float32
    assert value == expected


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["AMSoftmaxLoss", "ArcFaceLoss", "PairClassificationLoss", "MultiTaskPairLoss"])
def test_a_loss_with_weights_is_born_in_any_default_dtype(name, default, given):
    torch.set_default_dtype(default)
    try:
        loss = (
            getattr(losses, name)(D)
            if name == "MultiTaskPairLoss"
            else getattr(losses, name)(*((D, C) if "Pair" in name else (C, D)))
        )
        x = VECTORS.to(given, copy=True).requires_grad_()
        rest = (x.flip(0), GRADES.clamp(max=1), "binary") if name == "MultiTaskPairLoss" else (GRADES,)
        value = loss(x, *((x.flip(0), GRADES) if name == "PairClassificationLoss" else rest))
    finally:
        torch.set_default_dtype(torch.float32)
    value.backward()
    assert value.isfinite()
    assert x.grad.isfinite().all()


@every(lambda e: e.labels != "none")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_labels_are_integers_of_any_width(e, dtype):
    assert e.loss(e.x, e.y.to(dtype)) == e.loss(e.x, e.y)


@every(lambda e: e.labels == "classes")
@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.float16])
def test_what_is_no_class_number_is_refused_by_name(e, dtype):
    with pytest.raises(
        (TypeError, ValueError), match=f"torch.{dtype}".replace("torch.torch", "torch") + "|float labels"
    ):
        e.loss(e.x, e.y.to(dtype))


@every(lambda e: e.labels == "numbers")
def test_numbers_are_real(e):
    with pytest.raises(TypeError, match="complex64"):
        e.loss(e.x, e.y.to(torch.complex64))
    bools = e.y.bool()
    assert e.loss(e.x, bools) == e.loss(e.x, bools.to(torch.float16)) == e.loss(e.x, bools.long())


@every()
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_what_is_no_float_is_refused_by_name(e, dtype):
    with pytest.raises(TypeError, match=str(dtype).removeprefix("torch.")):
        e.loss(e.x.to(dtype), e.y)


@every()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_it_in_full_precision(e, dtype):
    x = e.x.float().requires_grad_()
    expected = e.loss(x, e.y)
    [right] = torch.autograd.grad(expected, x)
    with torch.autocast("cpu", dtype=dtype):
        value = e.loss(x, e.y)
    [gradient] = torch.autograd.grad(value, x)
    assert value.dtype == torch.float32
    near = {"rtol": 0.05, "atol": 0.05} if e.kind == "pairs" else {}  # the linear head is the caller's to narrow
    torch.testing.assert_close(value, expected, **near)
    torch.testing.assert_close(gradient, right, **near)


@every()
def test_on_the_meta_device_shapes_come_out(e):
    value = e.loss(e.x.to("meta"), e.y.to("meta"))
    assert value.device.type == "meta"
    assert value.shape == e.loss(e.x, e.y).shape
    assert value.dtype == torch.float64


@every()
def test_inference_mode_and_no_grad_change_nothing(e):
    expected = e.loss(e.x, e.y)
    with torch.no_grad():
        assert e.loss(e.x, e.y) == expected
    with torch.inference_mode():
        assert e.loss(e.x, e.y) == expected
    x = e.x.clone().requires_grad_()
    e.loss(x, e.y).backward()
    assert x.grad.isfinite().all()


@every()
def test_transforms_of_torch_func_agree_with_autograd(e):
    def loss(x):
        return e.loss(x, e.y)

    x, step = e.x.clone().requires_grad_(), randn(*e.x.shape, seed=9)
    [right] = torch.autograd.grad(loss(x), x)
    x = x.detach()
    torch.testing.assert_close(torch.func.grad(loss)(x), right)
    torch.testing.assert_close(torch.func.jacrev(loss)(x), right)
    torch.testing.assert_close(torch.func.jacfwd(loss)(x), right)
    torch.testing.assert_close(torch.func.jvp(loss, (x,), (step,))[1], (right * step).sum())
    torch.testing.assert_close(torch.func.vjp(loss, x)[1](torch.tensor(2.0, dtype=x.dtype))[0], 2 * right)
    hessian = torch.autograd.functional.hessian(loss, x)
    torch.testing.assert_close(torch.func.hessian(loss)(x), hessian, rtol=1e-6, atol=1e-9)


@every(lambda e: e.alone and e.kind != "pairs")
def test_gradients_of_single_samples_by_vmap(e):
    def loss(x, y):
        return e.loss(x[None], y[None])

    gradients, values = torch.func.vmap(torch.func.grad_and_value(loss))(e.x, e.y)
    for x, y, gradient, value in zip(e.x, e.y, gradients, values, strict=True):
        right, expected = torch.func.grad_and_value(loss)(x, y)
        torch.testing.assert_close(gradient, right)
        torch.testing.assert_close(value, expected)
    batch = e.loss(e.x, e.y)
    if "factor" not in e.kind:
        torch.testing.assert_close(values.mean(), batch)


@every(lambda e: not e.alone)
def test_whole_batches_by_vmap(e):
    batches = torch.stack([e.x, e.x.flip(0)])
    labels = torch.stack([e.y, e.y])
    values = torch.func.vmap(e.loss)(batches, labels)
    torch.testing.assert_close(values, torch.stack([e.loss(x, y) for x, y in zip(batches, labels, strict=True)]))


@every()
def test_an_empty_batch_is_zero_with_a_graph(e):
    x = e.x[:0].clone().requires_grad_()
    value = e.loss(x, e.y[:0])
    value.backward()
    assert value == 0
    assert x.grad.shape == x.shape


@every()
def test_a_last_batch_of_one(e):
    x = e.x[:1].clone().requires_grad_()
    value = e.loss(x, e.y[:1])
    value.backward()
    assert value.isfinite()
    assert x.grad.isfinite().all()


@every(lambda e: e.kind == "embeddings")
def test_an_embedding_of_zeros_has_a_bounded_gradient(e):
    for length in (0.0, 1e-30, 1e-13):
        x = e.x.clone()
        x[1] *= length
        x.requires_grad_()
        value = e.loss(x, e.y)
        value.backward()
        assert value.isfinite()
        assert x.grad.norm(dim=1).max() < 1e3


@every(lambda e: e.kind == "cosines")
@pytest.mark.parametrize("wrong", [1.01, -1.01, 20.0, math.inf, -math.inf])
def test_cosines_lie_between_minus_one_and_one(e, wrong):
    x = e.x.clone()
    x.view(-1)[1] = wrong
    with pytest.raises(ValueError, match=r"cosines must lie in \[-1, 1\]"):
        e.loss(x, e.y)
    x.view(-1)[1] = 1 + 1e-6
    assert e.loss(x, e.y).isfinite()


@every(lambda e: e.kind == "scores" and e.alone)
@pytest.mark.parametrize("place", range(C))
def test_a_masked_score_is_the_limit_of_low_ones(e, place):
    """Value and gradient at -inf, against those at -1e4 (where exp is 0), in each place, the target's among them."""
    at = {}
    for low in (-1e4, -math.inf):
        x = e.x[:1].clone()
        x[0, place] = low
        x.requires_grad_()
        try:
            value = e.loss(x, e.y[:1])
        except ValueError:
            return  # refused in words
        [gradient] = torch.autograd.grad(value, x)
        at[low] = value.detach(), gradient
    value, gradient = at[-math.inf]
    assert not value.isnan()
    assert not gradient.isnan().any()
    limit, slope = at[-1e4]
    dropped = e.labels == "numbers" or e.y.ndim > 1  # there -inf drops a class
    if dropped and place in (e.y[0].nonzero() if e.labels == "numbers" else e.y[0]):
        return
    torch.testing.assert_close(value, limit if limit < 1e3 else torch.full_like(limit, math.inf))
    if value.isfinite():
        torch.testing.assert_close(gradient, slope)


@every(lambda e: e.labels == "classes" and e.kind != "embeddings")
def test_a_row_that_is_ignored_may_hold_anything(e):
    ignored = e.y.clone()
    ignored[1] = -100
    try:
        expected = e.loss(e.x, ignored)
    except ValueError:
        return  # this one has no label to ignore
    for content in (math.nan, -math.inf):
        if e.kind != "scores" or e.y.ndim > 1:
            continue
        x = e.x.clone()
        x[1] = content
        x.requires_grad_()
        value = e.loss(x, ignored)
        [gradient] = torch.autograd.grad(value, x)
        assert value == expected
        assert (gradient[1] == 0).all()
        assert gradient.isfinite().all()


@every(lambda e: e.own_gradient)
def test_gradients_by_differences(e):
    assert torch.autograd.gradcheck(lambda x: e.loss(x, e.y), e.x.clone().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda x: e.loss(x, e.y), e.x.clone().requires_grad_(), check_forward_ad=True, check_backward_ad=False
    )


WITH_IGNORED = torch.tensor([1, 2, -100, 0])
SHARES = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.4, 0.6]])
WITH_A_ROW_LEFT_OUT = {
    "nmway": lambda s: losses.nmway_loss(s, WITH_IGNORED),
    "nmway centered": lambda s: losses.nmway_loss(s, WITH_IGNORED, form="centered"),
    "nmway soft": lambda s: losses.nmway_loss(s, SHARES),
    "nmway soft centered": lambda s: losses.nmway_loss(s, SHARES, form="centered"),
    "tailr": lambda s: losses.tailr_loss(
        s, WITH_IGNORED, 0.3, label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 3.0])
    ),
    "tailr integrated": lambda s: losses.tailr_loss(s, WITH_IGNORED, 0.3, form="integrated"),
    "am-softmax": lambda s: losses.am_softmax_loss(s, WITH_IGNORED),
    "arcface": lambda s: losses.arcface_loss(s, WITH_IGNORED),
    "margin": lambda s: losses.margin_loss(s, WITH_IGNORED),
    "perturbed maximum": lambda s: nn.perturb_max_cross_entropy(s, WITH_IGNORED, "normal"),
}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 7.0])
@pytest.mark.parametrize("name", WITH_A_ROW_LEFT_OUT)
def test_a_row_that_is_left_out_may_hold_anything(name, bad):
    """A gradient of 0 times NaN would be NaN: the row is emptied before anything is computed."""
    loss = WITH_A_ROW_LEFT_OUT[name]
    scores = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.func.grad(loss)(scores)
    scores[2] = bad
    scores.requires_grad_()
    loss(scores).backward()
    torch.testing.assert_close(scores.grad, expected)
    assert not scores.grad[2].any()
