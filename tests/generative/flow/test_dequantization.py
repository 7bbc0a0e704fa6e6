"""Images with levels: the noise, the bits of a uniform model, bounds, rounding back."""

import math

import pytest
import torch
from torch import Tensor

from kexue.errors import NotSupported
from kexue.generative import (
    DequantizedFlow,
    Flow,
    Logit,
    Noise,
    Scaling,
    StandardNormal,
    Transform,
    VariationalDequantizer,
    bits_per_dim,
    dequantize,
    glow,
    realnvp,
)

SHAPE = (1, 4, 4)


class Cube:
    """The uniform distribution over [0, 1)^D."""

    shape = SHAPE

    def log_prob(self, z: Tensor, *, temperature: float = 1.0) -> Tensor:
        inside = ((z >= 0) & (z < 1)).flatten(1).all(1)
        return torch.zeros(len(z)).masked_fill(~inside, -math.inf)

    def draw(self, noise: Noise, *, temperature: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return noise.uniform(self.shape, dtype)


def images(n: int, levels: int, seed: int = 0) -> Tensor:
    k = torch.randint(levels, (n, *SHAPE), generator=torch.Generator().manual_seed(seed))
    return 2 * k.float() / (levels - 1) - 1


@pytest.mark.parametrize(("levels", "bits"), [(256, 8.0), (17, math.log2(17)), (2, 1.0)])
def test_the_uniform_model_costs_log2_of_the_levels(levels: int, bits: float) -> None:
    x = images(6, levels)
    u = dequantize(x, levels, generator=0)
    density = Cube().log_prob(u)
    assert bits_per_dim(density, SHAPE, levels=levels) == bits
    wide = density.double() - 16 * math.log(2)  # the density over [-1, 1)
    assert bits_per_dim(wide, SHAPE, levels=levels, scale=2.0) == pytest.approx(bits, abs=1e-12)
    model = DequantizedFlow(Flow([], Cube()), levels)
    bound = model.log_prob_bound(x, draws=3, generator=1)
    assert bits_per_dim(bound, SHAPE, levels=1) == pytest.approx(bits, abs=1e-6)
    assert float(model.loss(x).parts["bits_per_dim"]) == pytest.approx(bits, abs=1e-5)


def test_digits_cost_4_0875_bits_at_most() -> None:
    assert bits_per_dim(torch.zeros(1), (1, 8, 8), levels=17) == pytest.approx(4.0875, abs=5e-5)


def test_noise_fills_the_step_of_each_level() -> None:
    k = torch.arange(256).repeat(200, 1)
    u = dequantize(k, 256, generator=0)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    inside = u.double() * 256 - k
    assert float(inside.min()) >= 0
    assert float(inside.max()) <= 1
    assert float(inside.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(inside.var()) == pytest.approx(1 / 12, abs=0.002)
    assert torch.equal(dequantize(2 * k / 255 - 1, 256, generator=0), u)


def test_an_image_has_its_own_noise() -> None:
    x = images(5, 17)
    assert torch.equal(dequantize(x, 17, generator=4)[:2], dequantize(x[:2], 17, generator=4))
    stream = torch.Generator().manual_seed(0)
    assert not torch.equal(dequantize(x, 17, generator=stream), dequantize(x, 17, generator=stream))


@pytest.mark.parametrize(
    ("x", "levels", "words"),
    [
        (torch.tensor([[0.0, 255.0]]), 256, r"floats in \[-1, 1\], got values in \[0, 255\]"),
        (torch.tensor([[0, 17]]), 17, "integers from 0 to 16, got values in"),
        (torch.tensor([[-1]]), 17, "integers from 0 to 16"),
        (torch.tensor([[math.nan]]), 17, "x must be floats"),
        (torch.tensor([[0.03]]), 17, "between the levels 2 k"),
        (torch.tensor([[0.0]]), 1, "levels must be a whole number >= 2, got 1"),
        (torch.tensor([[0.0]]), 17.0, "levels must be a whole number >= 2, got 17.0"),
    ],
)
def test_other_values_are_refused(x: Tensor, levels: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dequantize(x, levels)


def mixed(seed: int = 0) -> DequantizedFlow:
    torch.manual_seed(seed)
    model = DequantizedFlow(realnvp(SHAPE, couplings=2, hidden=(8,), margin=0.05), 17)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def test_bound_is_below_the_probability() -> None:
    """One pixel, whose probability is an integral over its step; uniform noise loses what Jensen says."""
    flow = Flow([Logit(0.05), Scaling((1,))], StandardNormal((1,))).double()
    with torch.no_grad():
        flow.transforms.parts[1].log_scale.fill_(1.0)  # type: ignore[union-attr, operator]
    model = DequantizedFlow(flow, 4)
    x = torch.tensor([[-1.0], [-1 / 3], [1 / 3], [1.0]], dtype=torch.float64)
    edges = (torch.logit(0.05 + 0.9 * torch.arange(5, dtype=torch.float64) / 4)) * math.e
    exact = torch.special.ndtr(edges).diff().log()
    with torch.no_grad():
        bound = model.log_prob_bound(x, draws=2000, generator=0)
    middle = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for k in range(4):
        with torch.no_grad():
            expected = flow.log_prob(((k + middle) / 4)[:, None]).mean() - math.log(4)
        assert float(bound[k]) == pytest.approx(float(expected), abs=0.1)
        assert float(expected) <= float(exact[k])


def test_samples_are_images_with_levels() -> None:
    model = mixed()
    x = model.sample(20, generator=0)
    assert float(x.min()) >= -1
    assert float(x.max()) <= 1
    assert torch.allclose(x * 8, (x * 8).round(), atol=1e-5)
    assert torch.equal(model.sample(20, generator=0, batch_size=3), x)
    assert float(model.sample(50, generator=0, temperature=0.1).std(0).mean()) < float(
        model.sample(50, generator=0).std(0).mean()
    )


def test_images_come_back_from_their_latents() -> None:
    model = mixed()
    x = images(8, 17)
    assert torch.allclose(model.decode(model.encode(x)), x, atol=1e-6)


def test_exact_probabilities_are_refused() -> None:
    model = mixed()
    assert model.operations == ("sample", "log_prob_bound", "encode", "decode", "loss")
    with pytest.raises(NotSupported, match="DequantizedFlow does not support log_prob; it supports: sample, log_prob"):
        model.log_prob(images(1, 17))


def test_variational_noise_starts_uniform_and_has_the_density_it_says() -> None:
    torch.manual_seed(0)
    filler = VariationalDequantizer(SHAPE, hidden=8).double()
    x = images(4, 17).double()
    v, log_density = filler(x, Noise(0, 4))
    assert torch.allclose(v, Noise(0, 4).uniform(SHAPE, torch.float64), atol=1e-12)
    assert float(log_density.detach().abs().max()) < 1e-9
    with torch.no_grad():
        for weight in filler.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    v, log_density = filler(x, Noise(0, 4))
    start = Noise(0, 4).uniform(SHAPE, torch.float64)

    def push(u: Tensor) -> Tensor:
        return filler.transforms(torch.logit(u.reshape(1, *SHAPE)), x[:1])[0].sigmoid().flatten()

    jacobian = torch.autograd.functional.jacobian(push, start[0].flatten())
    assert float(log_density[0].detach()) == pytest.approx(-float(torch.linalg.slogdet(jacobian)[1]), abs=1e-9)
    assert bool(((v > 0) & (v < 1)).all())


def test_variational_noise_is_trained_with_the_model() -> None:
    """A model with a steep density gains from noise that avoids its tails."""
    torch.manual_seed(0)
    flow = Flow([Logit(0.05), Steep()], StandardNormal(SHAPE))
    x = images(32, 4)
    uniform = float(DequantizedFlow(flow, 4).log_prob_bound(x, draws=8, generator=0).mean())
    filler = VariationalDequantizer(SHAPE, hidden=16)
    model = DequantizedFlow(flow, 4, dequantizer=filler)
    optimizer = torch.optim.Adam(filler.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(x, generator=generator).loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert float(model.log_prob_bound(x, draws=8, generator=0).mean()) > uniform + 0.5


class Steep(Transform):
    """z = 3 x."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return 3 * x, torch.full((len(x),), 16 * math.log(3))

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z / 3, torch.full((len(z),), -16 * math.log(3))


def test_classes_pass_through() -> None:
    torch.manual_seed(0)
    model = DequantizedFlow(glow(SHAPE, levels=1, steps=1, hidden=4, num_classes=3), 17)
    x, classes = images(6, 17), torch.tensor([0, 1, 2, 0, 1, 2])
    model.initialize((x, classes))
    assert torch.isfinite(model.loss((x, classes)).loss)
    assert model.sample(4, condition=2, generator=0).shape == (4, *SHAPE)
    assert torch.allclose(model.decode(model.encode(x, condition=classes), condition=classes), x, atol=1e-5)
    with pytest.raises(ValueError, match="has 3 classes, got none"):
        model.loss(x)


def test_no_image_has_no_probability() -> None:
    model = mixed()
    assert model.log_prob_bound(torch.zeros(0, *SHAPE)).shape == (0,)
    assert model.sample(0).shape == (0, *SHAPE)
    with pytest.raises(ValueError, match=r"shape must be \(C, H, W\), of an image, got \(4,\)"):
        VariationalDequantizer((4,))


def test_bad_numbers_and_images_are_refused(tmp_path: object) -> None:
    model = mixed()
    with pytest.raises(ValueError, match="draws must be a whole number >= 1, got 0"):
        model.log_prob_bound(images(1, 17), draws=0)
    with pytest.raises(ValueError, match="levels must be a whole number >= 2"):
        DequantizedFlow(realnvp(SHAPE, couplings=2, hidden=(4,)), 1)
    with pytest.raises(ValueError, match=r"shape \(B, 1, 4, 4\)"):
        model.loss(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="between the levels 2 k"):
        model.loss(torch.full((2, *SHAPE), 0.03))
    with pytest.raises(ValueError, match=">= 2 events"):
        model.initialize(images(1, 17))
    model.save(f"{tmp_path}/model.safetensors")
    again = mixed(1).load(f"{tmp_path}/model.safetensors")
    assert torch.equal(again.sample(2, generator=0), model.sample(2, generator=0))
