"""Lipschitz bounds against exact norms of Jacobians and against pairs of inputs."""

from functools import partial

import pytest
import torch
from _linear_maps import convolutional, dense, largest, number, randn, seeded
from torch import nn

from kexue.errors import NotSupported
from kexue.nn import apply_spectral_normalization, empirical_lipschitz, lipschitz_upper_bound


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, groups=2, padding=2), (4, 6, 6)),
        (nn.Conv2d(2, 2, 3, dilation=2, stride=2), (2, 9, 9)),
        (nn.Conv1d(2, 3, 5, padding=9), (2, 4)),
    ],
)
def test_the_bound_of_a_convolution_is_above_its_norm(layer, shape):
    layer = layer.double()
    assert largest(dense(layer, shape)) <= lipschitz_upper_bound(layer, shape) * (1 + 1e-9)


def test_the_bound_multiplies_layers_and_lets_modules_speak():
    class Residual(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return x + self.inner(x)

        def lipschitz_upper_bound(self, input_shape):
            return 1 + lipschitz_upper_bound(self.inner, input_shape)

    inner = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid())
    norm = nn.BatchNorm1d(3).eval()
    with torch.no_grad():
        inner[0].weight.copy_(torch.diag(torch.tensor([1.0, -8.0, 2.0])))
        norm.weight.copy_(torch.tensor([1.0, -3.0, 2.0]))
        norm.running_var.copy_(torch.tensor([1.0, 4.0, 1.0]))
    net = nn.Sequential(Residual(inner), nn.Dropout(0.5).eval(), norm, nn.LeakyReLU(2.0), nn.Linear(3, 2))
    expected = (1 + 8 * 0.25) * 2 * 2 * number(largest(net[-1].weight.double()))
    assert lipschitz_upper_bound(net, (3,)) == pytest.approx(expected, rel=1e-4)
    net[1].train()
    assert lipschitz_upper_bound(net, (3,)) == pytest.approx(2 * expected, rel=1e-4)


@pytest.mark.parametrize(
    "activation",
    [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.3, 2.0), nn.Tanh(), nn.Softsign(), nn.LogSigmoid(),
     nn.Sigmoid(), nn.Hardsigmoid(), nn.Hardswish(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.SELU(),
     nn.Softplus(), nn.Softplus(7.0, 25.0), nn.ELU(2.0), nn.ELU(0.3), nn.ELU(-3.0), nn.CELU(0.5),
     nn.LeakyReLU(0.2), nn.LeakyReLU(3.0), nn.LeakyReLU(-3.0), nn.PReLU(init=-2.5), nn.PReLU(init=0.1)],
    ids=str,
)  # fmt: skip
def test_slopes_of_activations_are_bounds_and_tight(activation):
    x = torch.linspace(-9, 9, 400_001, dtype=torch.float64, requires_grad=True)
    steepest = number(torch.autograd.grad(activation.double()(x).sum(), x)[0].abs().max())
    bound = lipschitz_upper_bound(activation, (1,))
    assert steepest <= bound * (1 + 1e-9)
    assert bound < steepest * 1.001


def conv(make, *options, **more):
    return lambda: make(2, 4, *options, **more)


LAYERS = {
    "linear": (partial(nn.Linear, 5, 3), (5,)),
    "linear on rows": (partial(nn.Linear, 5, 3), (2, 5)),
    **{
        f"conv1d {options}": (conv(nn.Conv1d, 3, **options), (2, 7))
        for options in ({}, {"padding": 2}, {"padding": "same"}, {"stride": 2}, {"dilation": 2, "padding": 3},
                        {"groups": 2}, {"stride": 3, "dilation": 3, "padding": 4, "groups": 2})
    },
    "conv2d": (conv(nn.Conv2d, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), (2, 4, 5)),
    "conv3d": (conv(nn.Conv3d, 2, padding=1), (2, 2, 2, 3)),
    **{
        f"{make.__name__} {options}": (lambda make=make, options=options: make(**options), (2, 9))
        for make in (nn.MaxPool1d, nn.AvgPool1d)
        for options in ({"kernel_size": 2}, {"kernel_size": 2, "stride": 3}, {"kernel_size": 4, "ceil_mode": True},
                        {"kernel_size": 3, "padding": 1}, {"kernel_size": 4, "padding": 2, "ceil_mode": True})
    },
    "average without padding": (lambda: nn.AvgPool1d(4, padding=2, count_include_pad=False), (2, 9)),
    "average over one": (lambda: nn.AvgPool2d(2, divisor_override=1), (1, 4, 4)),
    "average over a negative number": (lambda: nn.AvgPool2d((2, 3), divisor_override=-2), (1, 4, 6)),
    "average in three axes": (lambda: nn.AvgPool3d(2, divisor_override=3, ceil_mode=True), (1, 3, 2, 2)),
    "dilated maximum": (lambda: nn.MaxPool1d(2, stride=3, dilation=2), (2, 9)),
    "batch norm": (lambda: nn.BatchNorm1d(4).eval(), (4, 3)),
    "batch norm without weights": (lambda: nn.BatchNorm2d(2, affine=False).eval(), (2, 2, 2)),
    "dropout": (lambda: nn.Dropout(0.75), (12,)),
    "dropout of channels": (lambda: nn.Dropout2d(0.5), (4, 2, 2)),
    "flatten": (nn.Flatten, (2, 3)),
    "unflatten": (lambda: nn.Unflatten(1, (2, 3)), (6,)),
}  # fmt: skip


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("seed", range(3))
def test_no_pair_of_inputs_exceeds_the_bound(make, shape, seed):
    """Against the exact norms of Jacobians at random points, in every layer and option that has a bound."""
    layer = seeded(make, seed)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.running_var.copy_(randn(*layer.running_var.shape, seed=seed) ** 2)
    bound = lipschitz_upper_bound(layer, shape)

    def f(x):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of dropout
            return layer(x[None]).flatten()

    steepest = 0.0
    for point in range(30):
        x = 3 * randn(*shape, seed=100 * seed + point)
        jacobian = torch.autograd.functional.jacobian(f, x).reshape(-1, x.numel())
        far = x + 10 ** (point % 5 - 3) * randn(*shape, seed=point)
        steepest = max(steepest, number(largest(jacobian)), number((f(far) - f(x)).norm() / (far - x).norm()))
    assert steepest <= bound * (1 + 1e-6)
    assert bound <= 4 * steepest


class Doubled(nn.ReLU):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize(
    "layer",
    [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False).eval(),
     nn.MaxPool1d(3, stride=1), nn.MaxPool1d(2, stride=2, dilation=2), nn.MaxPool1d(2, return_indices=True),
     nn.AvgPool1d(3, stride=2), nn.Conv1d(4, 4, 3, padding_mode="reflect"), nn.Conv1d(4, 4, 3, padding_mode="circular"),
     nn.Conv1d(4, 4, 3, padding_mode="replicate"), nn.Conv1d(4, 4, 2, padding="same"), nn.ConvTranspose1d(4, 4, 3),
     nn.Softplus(threshold=1.0), nn.Softplus(-1.0), nn.CELU(-1.0), nn.Threshold(0.0, 5.0), nn.Hardshrink(), nn.GLU(1),
     nn.Upsample(scale_factor=2), nn.ConstantPad1d(1, 3.0), nn.Embedding(3, 4), nn.Bilinear(2, 2, 2),
     nn.MultiheadAttention(4, 2), nn.AlphaDropout(), Doubled()],
    ids=str,
)  # fmt: skip
def test_no_bound_is_invented(layer):
    with pytest.raises(NotSupported):
        lipschitz_upper_bound(layer, (4, 8))


def test_a_bound_draws_no_random_number():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))
    before = torch.get_rng_state()
    lipschitz_upper_bound(net, (3,))
    assert torch.equal(before, torch.get_rng_state())


def test_lower_and_upper_bound_meet_on_a_linear_map_and_enclose_a_network():
    linear = seeded(lambda: nn.Linear(6, 4))
    found = empirical_lipschitz(linear, randn(3, 6), generator=0)
    assert found <= lipschitz_upper_bound(linear, (6,)) * (1 + 1e-9)
    assert found == pytest.approx(lipschitz_upper_bound(linear, (6,)), rel=1e-3)
    net = convolutional()
    low, high = empirical_lipschitz(net, randn(20, 1, 8, 8), generator=0), lipschitz_upper_bound(net, (1, 8, 8))
    assert 0.02 * high < low < high
    assert empirical_lipschitz(lambda x: 3 * x.abs(), randn(5, 2), n=8, generator=1) == pytest.approx(3)
    assert empirical_lipschitz(lambda x: 0 * x, randn(5, 2), n=8, generator=1) == 0


@pytest.mark.parametrize("normalise", [apply_spectral_normalization, nn.utils.parametrizations.spectral_norm])
def test_a_bound_leaves_the_vectors_of_normalised_layers_alone(normalise):
    layer = normalise(seeded(lambda: nn.Linear(6, 4))).train()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert lipschitz_upper_bound(layer, (6,)) == pytest.approx(1, abs=0.2)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(part.training for part in layer.modules())
