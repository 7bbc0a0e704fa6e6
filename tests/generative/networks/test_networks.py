"""Small networks: shapes, what they depend on, refusals."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from kexue.generative import MLP, ConvDecoder, ConvEncoder, GridDecoder, GridEncoder, MLPDenoiser, ResidualMLP, TinyUNet
from kexue.generative.networks.denoiser import time_features

DENOISERS: list[Callable[..., nn.Module]] = [
    lambda **options: MLPDenoiser((2, 8, 8), hidden=32, **options),
    lambda **options: TinyUNet((2, 8, 8), channels=8, **options),
]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def perturb(net: nn.Module) -> nn.Module:
    """Give every parameter a random value, so that no output is zero by its initial weights."""
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 4) ** 0.5
    return net


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 20), (1, 28, 28)])
def test_images_to_latents_and_back(shape: tuple[int, int, int]) -> None:
    x = randn(3, *shape)
    grid = GridEncoder(shape, 5, channels=8)(x)
    assert grid.shape == (3, 5, shape[1] // 4, shape[2] // 4)
    assert GridDecoder(5, shape, channels=8)(grid).shape == x.shape
    for encoder, decoder in (
        (ConvEncoder(shape, 6, channels=8), ConvDecoder(6, shape, channels=8)),
        (MLP(shape, 6), MLP(6, shape)),
        (ResidualMLP(shape, 6, hidden=16), ResidualMLP(6, shape, hidden=16)),
    ):
        z = encoder(x)
        assert z.shape == (3, 6)
        assert decoder(z).shape == x.shape
        loss = decoder(z).square().mean()
        loss.backward()
        assert all(
            p.grad is not None and p.grad.abs().max() > 0 for p in [*encoder.parameters(), *decoder.parameters()]
        )


def test_mlp_without_hidden_layers_is_one_linear_map() -> None:
    net = MLP((1, 2, 2), 3, hidden=())
    x = randn(5, 1, 2, 2)
    (weight, bias) = net.parameters()
    torch.testing.assert_close(net(x), x.flatten(1) @ weight.T + bias)


def test_residual_mlp_is_the_sum_of_its_blocks() -> None:
    net = ResidualMLP(3, hidden=8, blocks=2)
    x, context = randn(4, 3), randn(4, 8, seed=1)
    h = net.first(x)
    for block in net.blocks:
        h = h + context + block(h + context)
    torch.testing.assert_close(net(x, context), net.last(nn.functional.silu(h)))


@pytest.mark.parametrize("make", DENOISERS)
def test_denoisers_have_the_call_of_diffusers(make: Callable[..., nn.Module]) -> None:
    net = perturb(make(num_classes=10))
    x, t, labels = randn(3, 2, 8, 8), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 9, 10])
    out = net(x, t, class_labels=labels).sample
    assert out.shape == x.shape
    as_tuple = net(x, t, labels, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], out)


@pytest.mark.parametrize("make", DENOISERS)
def test_an_item_depends_on_its_own_time_and_class_alone(make: Callable[..., nn.Module]) -> None:
    net = perturb(make(num_classes=3))
    x, t, labels = randn(4, 2, 8, 8), torch.linspace(0, 1, 4), torch.tensor([0, 1, 2, 3])
    whole = net(x, t, labels).sample
    for i in range(4):
        one = net(x[i : i + 1], t[i], labels[i : i + 1]).sample
        torch.testing.assert_close(one[0], whole[i], rtol=1e-4, atol=1e-5)
    assert (net(x, t.flip(0), labels).sample - whole).abs().amax((1, 2, 3)).min() > 1e-4
    assert (net(x, t, labels.flip(0)).sample - whole).abs().amax((1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("make", DENOISERS)
def test_vectors_as_conditions(make: Callable[..., nn.Module]) -> None:
    net = perturb(make(condition_dim=5))
    x, t, states = randn(4, 2, 8, 8), torch.linspace(0, 1, 4), randn(4, 5, seed=1)
    whole = net(x, t, encoder_hidden_states=states).sample
    for i in range(4):
        one = net(x[i : i + 1], t[i], encoder_hidden_states=states[i : i + 1]).sample
        torch.testing.assert_close(one[0], whole[i], rtol=1e-4, atol=1e-5)
    assert (net(x, t, encoder_hidden_states=states.flip(0)).sample - whole).abs().amax((1, 2, 3)).min() > 1e-4
    zeros = net(x, t, encoder_hidden_states=torch.zeros(4, 5)).sample
    assert torch.equal(net(x, t).sample, zeros)  # "no condition"
    assert net.no_condition == 0
    with pytest.raises(ValueError, match=r"encoder_hidden_states must be \(4, 5\), got \(4, 6\)"):
        net(x, t, encoder_hidden_states=torch.zeros(4, 6))
    with pytest.raises(ValueError, match="set condition_dim"):
        make()(x, t, encoder_hidden_states=states)
    with pytest.raises(ValueError, match="num_classes or condition_dim, not both"):
        make(num_classes=2, condition_dim=5)
    with pytest.raises(ValueError, match="condition_dim must be >= 1"):
        make(condition_dim=0)


@pytest.mark.parametrize("make", DENOISERS)
def test_no_label_is_the_last_row_and_a_number_is_a_time_of_all(make: Callable[..., nn.Module]) -> None:
    net = perturb(make(num_classes=3))
    x = randn(2, 2, 8, 8)
    torch.testing.assert_close(net(x, 0.5).sample, net(x, torch.full((2,), 0.5), torch.tensor([3, 3])).sample)
    torch.testing.assert_close(net(x, 7).sample, net(x, torch.tensor([7, 7])).sample)
    assert not torch.equal(net(x, 1).sample, net(x, 1.0).sample)  # a number of a step is not a time in [0, 1]


def test_untrained_unet_returns_zeros_and_sees_every_pixel() -> None:
    net = TinyUNet((1, 16, 16), channels=8, mult=(1, 2, 2))
    x = randn(1, 1, 16, 16).requires_grad_()
    assert not net(x, 0.5).sample.any()
    perturb(net)(x, 0.5).sample[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert bool((x.grad != 0).all())  # attention joins all places


@pytest.mark.parametrize("channels", [1, 6, 12, 32])
def test_unet_of_any_number_of_channels(channels: int) -> None:
    assert TinyUNet((1, 4, 4), channels=channels)(randn(2, 1, 4, 4), 0.5).sample.shape == (2, 1, 4, 4)


def test_time_features_are_those_of_the_formulas() -> None:
    t = torch.tensor([0.3])
    frequencies = [1000 ** (i / 31) for i in range(32)]
    wanted = [f(0.3 * w) for f in (math.sin, math.cos) for w in frequencies]
    torch.testing.assert_close(time_features(t)[0], torch.tensor(wanted), rtol=0, atol=2e-4)
    frequencies = [10_000 ** (-i / 32) for i in range(32)]
    wanted = [f(17 * w) for f in (math.sin, math.cos) for w in frequencies]
    torch.testing.assert_close(time_features(torch.tensor([17]))[0], torch.tensor(wanted), rtol=0, atol=2e-5)


def test_unet_learns_to_return_its_input_by_class() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TinyUNet((1, 4, 4), channels=8, num_classes=2)
    x, labels = randn(64, 1, 4, 4), torch.arange(64) % 2
    target = torch.where(labels == 1, 1.0, -1.0)[:, None, None, None] * x
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(100):
        loss = (net(x, 0.0, labels).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2  # 1 for a network that does not see the class


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="divisible by 4"):
        ConvEncoder((1, 30, 28), 2)
    with pytest.raises(ValueError, match="image_size"):
        TinyUNet((1, 7, 7))
    with pytest.raises(ValueError, match="size >= 1"):
        MLP(0, 2)
    with pytest.raises(ValueError, match="hidden must be"):
        ResidualMLP(2, hidden=0)
    with pytest.raises(ValueError, match="num_classes"):
        MLPDenoiser(2, num_classes=0)
    with pytest.raises(ValueError, match=r"\(B, 1, 8, 8\).*got \(2, 64\)"):
        MLP((1, 8, 8), 2)(torch.zeros(2, 64))
    net = MLPDenoiser(2, num_classes=3)
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        net(x, 0.5, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="one for each"):
        net(x, torch.zeros(3))
    with pytest.raises(ValueError, match="class_labels must have shape"):
        net(x, 0.5, torch.tensor([0]))
    with pytest.raises(ValueError, match="without classes"):
        MLPDenoiser(2)(x, 0.5, torch.tensor([0, 1]))
