"""The laws of every transform in float64, and what single transforms are beyond them."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kexue.generative import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Chain,
    CouplingConv,
    CouplingMLP,
    Flatten,
    InvertibleConv1x1,
    Logit,
    Permutation,
    Scaling,
    Split,
    Squeeze,
    Transform,
    checkerboard,
    glow,
    nice,
    realnvp,
)

VECTOR, IMAGE, WIDE = (5,), (2, 4, 4), (3, 2, 2)
STRIPES = torch.tensor([True, False, False, True, False])


def vector_net(n_in: int, n_out: int, classes: int | None = None) -> nn.Module:
    return CouplingMLP(n_in, n_out, (8, 8), condition=None if classes is None else nn.Embedding(classes, 8))


def image_net(n_in: int, n_out: int, classes: int | None = None) -> nn.Module:
    return CouplingConv(n_in, n_out, 8, condition=None if classes is None else nn.Embedding(classes, 8))


TRANSFORMS: dict[str, tuple[Callable[[], Transform], tuple[int, ...]]] = {
    "scaling": (lambda: Scaling(IMAGE), IMAGE),
    "logit": (lambda: Logit(0.05), IMAGE),
    "actnorm of vectors": (lambda: ActNorm(5), VECTOR),
    "actnorm of images": (lambda: ActNorm(2), IMAGE),
    "permutation": (lambda: Permutation([3, 0, 4, 1, 2]), VECTOR),
    "permutation of channels": (lambda: Permutation.reverse(3), WIDE),
    "squeeze": (Squeeze, IMAGE),
    "flatten": (lambda: Flatten(IMAGE), IMAGE),
    "1x1 of vectors": (lambda: InvertibleConv1x1(5, generator=0), VECTOR),
    "1x1 of images": (lambda: InvertibleConv1x1(3, generator=0), WIDE),
    "additive": (lambda: AdditiveCoupling(vector_net(2, 3)), VECTOR),
    "additive, swapped": (lambda: AdditiveCoupling(vector_net(3, 2), swap=True), VECTOR),
    "additive, mask": (lambda: AdditiveCoupling(vector_net(5, 5), mask=STRIPES), VECTOR),
    "affine, tanh": (lambda: AffineCoupling(vector_net(2, 6)), VECTOR),
    "affine, sigmoid": (lambda: AffineCoupling(image_net(1, 2), scale="sigmoid"), IMAGE),
    "affine, exp, swapped": (lambda: AffineCoupling(image_net(1, 2), scale="exp", swap=True), IMAGE),
    "affine, mask": (lambda: AffineCoupling(vector_net(5, 10), mask=STRIPES, scale="sigmoid"), VECTOR),
    "affine, checkerboard": (lambda: AffineCoupling(image_net(2, 4), mask=checkerboard(IMAGE)), IMAGE),
    "split of vectors": (lambda: Split(VECTOR, [ActNorm(3)]), VECTOR),
    "split of images": (lambda: Split(WIDE, [ActNorm(2), Flatten((2, 2, 2))]), WIDE),
    "chain": (lambda: Chain([ActNorm(5), Permutation.random(5, 0), Scaling((5,))]), VECTOR),
    "actnorm and 1x1": (lambda: Chain([ActNorm(3), InvertibleConv1x1(3), ActNorm(3)]), WIDE),
    "nothing": (lambda: Chain([]), VECTOR),
    "nice": (lambda: nice(5, hidden=(8, 8)).transforms, VECTOR),
    "realnvp": (lambda: realnvp(5, couplings=3, hidden=(8,), mixing="linear").transforms, VECTOR),
    "realnvp of images": (lambda: realnvp((1, 4, 4), couplings=2, hidden=(4,), margin=0.1).transforms, (1, 4, 4)),
    "glow": (lambda: glow((1, 4, 4), levels=2, steps=2, hidden=4).transforms, (1, 4, 4)),
    "additive glow": (lambda: glow((1, 4, 4), levels=1, steps=2, hidden=4, kind="additive").transforms, (1, 4, 4)),
}


def disturb(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move all weights away from where they start, so that nothing is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return module


def largest(x: Tensor) -> float:
    return float(x.detach().abs().max())


def jacobian_logdet(transform: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """log |det| of the Jacobian of each event, by automatic differentiation."""
    flat = x[0].numel()

    def one(event: Tensor) -> Tensor:
        return transform(event[None])[0].flatten()

    matrices = [torch.autograd.functional.jacobian(one, event).reshape(flat, flat) for event in x]
    return torch.stack([torch.linalg.slogdet(matrix)[1] for matrix in matrices])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inverse_and_volume_are_exact(name: str) -> None:
    make, shape = TRANSFORMS[name]
    torch.manual_seed(0)
    transform = disturb(make().double())
    x = torch.rand(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z, logdet = transform(x)
    back, inverse_logdet = transform.inverse(z)
    assert logdet.shape == inverse_logdet.shape == (3,)
    assert largest(back - x) <= 1e-10
    assert largest(logdet + inverse_logdet) <= 1e-10
    assert largest(logdet - jacobian_logdet(lambda e: transform(e)[0], x)) <= 1e-9
    assert largest(inverse_logdet - jacobian_logdet(lambda e: transform.inverse(e)[0], z.detach())) <= 1e-9


@pytest.mark.parametrize("kind", [AdditiveCoupling, AffineCoupling])
@pytest.mark.parametrize("shape", [VECTOR, IMAGE])
def test_classes_reach_couplings(kind: type[Transform], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    factor = 2 if kind is AffineCoupling else 1
    net = vector_net(2, 3 * factor, 4) if shape == VECTOR else image_net(1, factor, 4)
    transform = disturb(kind(net).double())
    x = torch.rand(4, *shape, dtype=torch.float64)
    classes = torch.tensor([0, 1, 2, 0])
    z = transform(x, classes)[0]
    assert torch.allclose(transform.inverse(z, classes)[0], x, atol=1e-12)
    other = transform(x, torch.tensor([0, 2, 2, 1]))[0]
    assert [torch.equal(a, b) for a, b in zip(z, other, strict=True)] == [True, False, True, False]


def test_factors_of_the_scales() -> None:
    r = torch.tensor([[0.0], [3.0], [-3.0], [100.0]])
    expected = {
        "tanh": 2 * torch.tanh(r / 2),
        "sigmoid": torch.log(torch.sigmoid(r + 2)),
        "exp": r,
    }
    for scale, s in expected.items():
        layer = AffineCoupling(lambda stays, condition: torch.cat([r, 0 * r], 1), scale=scale)  # type: ignore[arg-type]
        assert torch.allclose(layer(torch.ones(4, 2))[1], s[:, 0]), scale


def test_values_that_stay_are_untouched_and_hidden_ones_are_not_read() -> None:
    layer = disturb(AffineCoupling(vector_net(5, 10), mask=STRIPES).double())
    x = torch.randn(3, 5, dtype=torch.float64)
    z, logdet = layer(x)
    assert torch.equal(z[:, STRIPES], x[:, STRIPES])
    changed = torch.where(STRIPES, x, x + 1)
    assert torch.equal(layer(changed)[1], logdet)


def test_actnorm_starts_with_mean_0_and_deviation_1() -> None:
    x = 3 + 5 * torch.randn(40, 2, 4, 4, dtype=torch.float64) * torch.tensor([1.0, 0.01]).reshape(2, 1, 1)
    layer = ActNorm(2).double()
    z = layer.initialize(x)
    assert torch.equal(z, layer(x)[0])
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(z.std((0, 2, 3), correction=0), torch.ones(2, dtype=torch.float64), atol=1e-12)
    zeros = ActNorm(2, init="zeros").double()
    assert torch.equal(zeros.initialize(x), x)


def test_actnorm_refuses_one_event_and_warns_of_constant_channels() -> None:
    with pytest.raises(ValueError, match="a batch of >= 2 events, got 1"):
        ActNorm(2).initialize(torch.randn(1, 2, 4, 4))
    x = torch.randn(8, 3)
    x[:, 1] = 7.3
    layer = ActNorm(3)
    with pytest.warns(UserWarning, match="1 of 3 channels, first channel 1, are constant"):
        z = layer.initialize(x)
    assert torch.allclose(z[:, 1], torch.zeros(8), atol=1e-5)
    assert float(layer.log_scale[1].detach()) == 0
    assert bool(layer(torch.randn(4, 3))[0].isfinite().all())


def test_a_chain_is_set_from_what_comes_before() -> None:
    x = 2 + 3 * torch.randn(50, 4, dtype=torch.float64)
    chain = Chain([ActNorm(4), InvertibleConv1x1(4), ActNorm(4)]).double()
    z = chain.initialize(x)
    assert torch.allclose(z.std(0, correction=0), torch.ones(4, dtype=torch.float64))
    assert not z.requires_grad


def test_squeeze_orders_blocks_as_written() -> None:
    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    z = Squeeze()(x)[0]
    for c in range(2):
        for p in range(2):
            for q in range(2):
                assert torch.equal(z[0, 4 * c + 2 * p + q], x[0, c, p::2, q::2])
    with pytest.raises(ValueError, match=r"even height and width are expected, got \(1, 1, 3, 4\)"):
        Squeeze()(torch.zeros(1, 1, 3, 4))
    for z in (torch.zeros(1, 3, 2, 2), torch.zeros(1, 4)):
        with pytest.raises(ValueError, match="C divisible by 4 are expected"):
            Squeeze().inverse(z)
    assert Squeeze()(torch.zeros(0, 1, 4, 4))[0].shape == (0, 4, 2, 2)
    assert Squeeze().inverse(torch.zeros(0, 4, 2, 2))[0].shape == (0, 1, 4, 4)


def test_volume_of_images_counts_every_place() -> None:
    layer = InvertibleConv1x1(3).double()
    with torch.no_grad():
        layer.log_scale += 0.3
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    expected = 35 * torch.linalg.slogdet(layer.matrix)[1]
    assert torch.allclose(layer(x)[1], expected.expand(2))
    assert torch.allclose(layer(x)[0], torch.einsum("dc,bchw->bdhw", layer.matrix, x))


def test_a_given_matrix_is_factored() -> None:
    W = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, -3.0], [1.0, 0.5, 0.0]], dtype=torch.float64)
    layer = InvertibleConv1x1.from_matrix(W)
    assert torch.allclose(layer.matrix, W, atol=1e-15)
    assert torch.allclose(layer.inverse_matrix @ W, torch.eye(3, dtype=torch.float64), atol=1e-14)
    assert float(layer(torch.ones(1, 3, dtype=torch.float64))[1].detach()) == pytest.approx(math.log(6))


def test_singular_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="must be invertible, got one with singular values from 2 to 0"):
        InvertibleConv1x1.from_matrix(torch.ones(2, 2))
    with pytest.raises(ValueError, match="square and finite"):
        InvertibleConv1x1.from_matrix(torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="square and finite"):
        InvertibleConv1x1.from_matrix(torch.ones(2, 3))
    with pytest.raises(ValueError, match="square and finite"):
        InvertibleConv1x1.from_matrix(torch.ones(0, 0))
    for matrix in ([[1.0]], torch.tensor([[1]])):
        with pytest.raises(TypeError, match="matrix must be a tensor of floats"):
            InvertibleConv1x1.from_matrix(matrix)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channels must be a whole number >= 1, got 0"):
        InvertibleConv1x1(0)


def test_an_ill_conditioned_matrix_is_inverted_by_its_factors() -> None:
    layer = InvertibleConv1x1(4, generator=0).double()
    with torch.no_grad():
        layer.log_scale += torch.tensor([0.0, -6.0, 0.0, -12.0], dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    assert largest(layer.inverse(layer(x)[0])[0] - x) < 1e-4  # condition number about 1e7


def test_the_first_matrix_is_a_rotation_from_the_seed() -> None:
    W = InvertibleConv1x1(6, generator=3).double().matrix
    assert torch.allclose(W @ W.T, torch.eye(6, dtype=torch.float64), atol=1e-6)
    assert torch.equal(InvertibleConv1x1(6, generator=3).matrix, InvertibleConv1x1(6, generator=3).matrix)
    assert not torch.equal(InvertibleConv1x1(6, generator=3).matrix, InvertibleConv1x1(6, generator=4).matrix)


def test_the_early_half_is_standardised_by_the_other() -> None:
    layer = Split((4,), [Scaling((2,))]).double()
    with torch.no_grad():
        layer.prior.weight[:2] = torch.eye(2)  # the mean of x1 is x2
        layer.prior.bias[2:] = 5 * math.atanh(math.log(2.0) / 5)  # u = log 2
    x = torch.randn(6, 4, dtype=torch.float64)
    z, logdet = layer(x)
    assert torch.allclose(z[:, :2], (x[:, :2] - x[:, 2:]) / 2)
    assert torch.equal(z[:, 2:], x[:, 2:])
    assert torch.allclose(logdet, torch.full((6,), -2 * math.log(2), dtype=torch.float64))
    with pytest.raises(ValueError, match="rest must end with Flatten or Split"):
        Split((2, 2, 2), [])(torch.zeros(1, 2, 2, 2))
    with pytest.raises(ValueError, match="2 channels is expected"):
        Split((1, 2, 2), [])


def test_logits_need_the_unit_interval() -> None:
    for value in (-0.01, 1.01, math.nan):
        with pytest.raises(ValueError, match=r"x must be in \[0, 1\]"):
            Logit()(torch.tensor([[0.5, value]]))
    assert bool(Logit()(torch.tensor([[0.0, 1.0]]))[0].isfinite().all())
    with pytest.raises(ValueError, match="margin must be in"):
        Logit(0.0)


@pytest.mark.parametrize("order", [[0, 0, 1], [1, 2, 3], [[0, 1]], [], [1.0, 0.0], [True, False]])
def test_other_orders_are_refused(order: list[int]) -> None:
    with pytest.raises(ValueError, match="order must be a permutation"):
        Permutation(order)


@pytest.mark.parametrize(
    "mask", [torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool), torch.tensor([1.0, 0.0])]
)
def test_masks_that_move_all_or_nothing_are_refused(mask: Tensor) -> None:
    with pytest.raises(ValueError, match="mask must be bool"):
        AdditiveCoupling(vector_net(3, 3), mask=mask)


@pytest.mark.parametrize(
    ("transform", "x"),
    [
        (Scaling((1,)), torch.zeros(2, 3)),
        (Scaling((3,)), torch.zeros(2, 2, 3)),
        (ActNorm(1), torch.zeros(2, 3)),
        (Permutation([1, 0]), torch.zeros(2, 3)),
        (Permutation([1, 0, 2]), torch.zeros(2, 2)),
        (InvertibleConv1x1(2), torch.zeros(2, 3)),
        (Flatten((2, 2)), torch.zeros(2, 8)),
        (Chain([ActNorm(2), InvertibleConv1x1(2)]), torch.zeros(2, 3)),
    ],
)
def test_events_that_would_be_broadcast_or_cut_are_refused(transform: Transform, x: Tensor) -> None:
    """Their log-determinants would be those of other events."""
    for direction in (transform, transform.inverse):
        with pytest.raises(ValueError, match=r"got shape \("):
            direction(x)


def test_answers_of_another_shape_are_refused() -> None:
    x = torch.zeros(4, 6)
    for layer, expected in (
        (AffineCoupling(lambda a, c: torch.ones(4, 2)), 6),
        (AdditiveCoupling(lambda a, c: a[:1]), 3),
    ):
        for direction in (layer, layer.inverse):
            with pytest.raises(ValueError, match=rf"the network of the coupling must answer \(4, {expected}\), got"):
                direction(x)
    with pytest.raises(ValueError, match="swap is of couplings without a mask"):
        AdditiveCoupling(vector_net(5, 5), mask=STRIPES, swap=True)


def test_both_directions_must_be_stated() -> None:
    class OneWay(Transform):
        def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return x, x.new_zeros(len(x))

    with pytest.raises(TypeError, match=r"abstract method '?inverse"):
        OneWay()  # type: ignore[abstract]


def test_names_of_scale_and_init_are_checked() -> None:
    with pytest.raises(ValueError, match="scale must be"):
        AffineCoupling(vector_net(1, 2), scale="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="init must be"):
        ActNorm(2, init="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hidden must name"):
        CouplingMLP(1, 1, ())


def test_networks_start_at_zero_so_that_couplings_start_as_the_identity() -> None:
    x = torch.randn(3, *IMAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(AdditiveCoupling(image_net(1, 1))(x)[0], x)
        z, logdet = AffineCoupling(image_net(1, 2))(x)
    assert torch.equal(z, x)
    assert torch.equal(logdet, torch.zeros(3))
    z, logdet = AffineCoupling(image_net(1, 2), scale="sigmoid")(x)
    assert torch.allclose(z[:, 1:], 0.8808 * x[:, 1:], atol=1e-4)
    assert torch.allclose(logdet, torch.full((3,), -0.12693 * 16), atol=1e-3)


def test_matrices_and_factors_keep_float32_under_autocast() -> None:
    x = torch.randn(3, 4, 2, 2)
    chain = disturb(Chain([ActNorm(4), InvertibleConv1x1(4), ActNorm(4)]))
    z = chain(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(chain(x)[0], z)
        layer = disturb(AffineCoupling(image_net(2, 4)))
        moved, logdet = layer(x)
        assert moved.dtype == logdet.dtype == torch.float32
        assert torch.allclose(layer.inverse(moved)[0], x, atol=1e-5)
