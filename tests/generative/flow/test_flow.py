"""Flows as densities: they integrate to 1, agree with their samples, keep classes, seeds and files."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kexue.errors import CheckpointError, NotSupported
from kexue.generative import Flow, Permutation, Scaling, Squeeze, StandardNormal, glow, nice, realnvp, sample_generators


def disturb(module: nn.Module, size: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def made(flow: Flow, size: float = 0.3) -> Flow:
    disturb(flow.double(), size)
    return flow


def grid(n: int) -> tuple[Tensor, Tensor]:
    """n x n points of the plane, dense near 0 and up to 200 far from it, and the area of the cell of each."""
    step = 12 / n
    t = (torch.arange(n, dtype=torch.float64) + 0.5) * step - 6
    return torch.cartesian_prod(t.sinh(), t.sinh()), torch.cartesian_prod(t.cosh(), t.cosh()).prod(1) * step**2


@pytest.mark.parametrize("name", ["nice", "realnvp swap", "realnvp random", "realnvp linear", "additive", "classes"])
def test_density_of_the_plane_integrates_to_1(name: str) -> None:
    torch.manual_seed(1)
    flow = made(
        {
            "nice": lambda: nice(2, hidden=(16, 16)),
            "realnvp swap": lambda: realnvp(2, couplings=4, hidden=(16, 16), mixing="swap"),
            "realnvp random": lambda: realnvp(2, couplings=4, hidden=(16, 16)),
            "realnvp linear": lambda: realnvp(2, couplings=4, hidden=(16, 16), mixing="linear"),
            "additive": lambda: realnvp(2, couplings=4, hidden=(16, 16), kind="additive", mixing="reverse"),
            "classes": lambda: realnvp(2, couplings=4, hidden=(16, 16), num_classes=3),
        }[name](),
        0.2,
    )
    points, area = grid(500)
    condition = torch.full((len(points),), 2) if name == "classes" else None
    with torch.no_grad():
        mass = flow.log_prob(points, condition=condition).exp() @ area
    assert float(mass) == pytest.approx(1, abs=0.01)


def test_samples_have_the_density_they_come_with() -> None:
    flow = made(realnvp(3, couplings=4, hidden=(8,)))
    x, log_prob = flow.sample_and_log_prob(20, generator=0)
    assert torch.allclose(log_prob, flow.log_prob(x), atol=1e-10)
    assert torch.equal(x, flow.sample(20, generator=0))
    assert x.requires_grad
    assert not flow.sample(2).requires_grad
    tempered, density = flow.sample_and_log_prob(20, generator=0, temperature=0.5)
    z = flow.encode(tempered)
    normal = torch.distributions.Normal(0.0, 0.5).log_prob(z).sum(1)
    assert torch.allclose(density, normal + flow.log_prob(tempered) - flow.base.log_prob(z), atol=1e-10)


def test_density_is_that_of_an_affine_normal() -> None:
    flow = made(Flow([Scaling((3,))], StandardNormal((3,))))
    scale = (-flow.transforms.parts[0].log_scale).exp()  # type: ignore[union-attr, operator]
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.allclose(flow.log_prob(x), torch.distributions.Normal(0.0, scale).log_prob(x).sum(1))


def test_latents_come_back() -> None:
    flow = made(glow((1, 8, 8), levels=3, steps=2, hidden=8), 0.1)
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    z = flow.encode(x)
    assert z.shape == (4, 64)
    assert torch.allclose(flow.decode(z), x, atol=1e-9)
    with pytest.raises(ValueError, match=r"z must have shape \(B, 64\), got \(4, 1, 8, 8\)"):
        flow.decode(x)


def test_temperature_scales_the_latents_of_every_level() -> None:
    flow = made(glow((1, 4, 4), levels=2, steps=1, hidden=8), 0.1)
    warm = flow.encode(flow.sample(6, generator=2))
    cool = flow.encode(flow.sample(6, generator=2, temperature=0.7))
    assert torch.allclose(cool, 0.7 * warm, atol=1e-8)
    mode = flow.sample(3, generator=1, temperature=0)
    assert torch.allclose(flow.encode(mode), torch.zeros(3, 16, dtype=torch.float64), atol=1e-9)
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be >= 0"):
            flow.sample(1, temperature=bad)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        flow.sample_and_log_prob(1, temperature=0)


def test_an_event_has_its_own_noise() -> None:
    flow = made(realnvp((1, 4, 4), couplings=2, hidden=(4,)), 0.1)
    whole = flow.sample(5, generator=9)
    assert torch.allclose(flow.sample(5, generator=9, batch_size=2), whole, atol=1e-12)
    assert torch.allclose(flow.sample(2, generator=sample_generators(9, 2, start=3)), whole[3:], atol=1e-12)


def test_conditions_change_the_distribution() -> None:
    flow = made(glow((1, 4, 4), levels=1, steps=2, hidden=8, num_classes=3), 0.2)
    x = torch.rand(4, 1, 4, 4, dtype=torch.float64)
    classes = torch.tensor([0, 1, 2, 0])
    z = flow.encode(x, condition=classes)
    assert torch.allclose(flow.decode(z, condition=classes), x, atol=1e-10)
    assert not torch.allclose(flow.log_prob(x, condition=classes), flow.log_prob(x, condition=(classes + 1) % 3))
    assert flow.sample(2, condition=1).shape == (2, 1, 4, 4)
    loss = flow.loss((x, classes)).loss
    assert torch.allclose(loss, -flow.log_prob(x, condition=classes).mean())
    for bad, words in ((None, "has 3 classes, got none"), (torch.tensor([0, 1]), "one class for each item")):
        with pytest.raises(ValueError, match=words):
            flow.log_prob(x, condition=bad)
    with pytest.raises(ValueError, match=r"condition must lie in \[0, 3\)"):
        flow.log_prob(x, condition=classes + 1)
    with pytest.raises(ValueError, match="has no classes, got a condition"):
        nice(4, hidden=(4,)).sample(2, condition=1)


def test_loss_is_the_mean_in_nats() -> None:
    flow = made(nice(4, hidden=(8,)))
    x = torch.randn(7, 4, dtype=torch.float64)
    loss, parts = flow.loss(x)
    assert torch.allclose(loss, -flow.log_prob(x).mean())
    assert float(parts["nats_per_dim"]) == pytest.approx(float(loss.detach()) / 4)
    assert torch.allclose(flow.loss((x, torch.zeros(7))).loss, loss)  # classes are not used without a use for them


@pytest.mark.slow
def test_training_approaches_the_entropy_of_the_data() -> None:
    """KL(data || flow) of two bananas, whose log density is known, below 0.05 nat."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        side = torch.randint(2, (n, 1), generator=generator) * 2.0 - 1
        a = torch.randn(n, 1, generator=generator)
        b = 0.3 * torch.randn(n, 1, generator=generator)
        x = torch.cat([a, 0.5 * a**2 + b + 2 * side], 1)
        modes = [torch.distributions.Normal(0.0, 0.3).log_prob(x[:, 1] - 0.5 * x[:, 0] ** 2 - c) for c in (-2, 2)]
        first = torch.distributions.Normal(0.0, 1.0).log_prob(x[:, 0])
        return x, first + torch.logaddexp(*modes) - math.log(2)

    torch.manual_seed(0)
    flow = realnvp(2, couplings=8, hidden=(32, 32))
    flow.initialize(draw(256)[0])
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    for _ in range(500):
        optimizer.zero_grad()
        flow.loss(draw(256)[0]).loss.backward()
        optimizer.step()
        schedule.step()
    x, truth = draw(20_000)
    with torch.no_grad():
        gap = float((truth - flow.log_prob(x)).mean())
    assert -0.01 < gap < 0.05


def test_glow_at_the_start() -> None:
    """Couplings that move nothing yet: factors of 0.88 for half of the channels, otherwise a rotation."""
    torch.manual_seed(0)
    flow = glow((1, 8, 8), levels=2, steps=3, hidden=16).double()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    z, logdet = flow.transforms(x)
    moved = 3 * 32 + 3 * 16  # half of 64 values at the first level, half of 32 at the second
    expected = torch.full((5,), -moved * math.log1p(math.exp(-2)), dtype=torch.float64)
    assert torch.allclose(logdet, expected, atol=1e-5)
    assert torch.allclose(flow.decode(z), x, atol=1e-12)
    plain = glow((1, 8, 8), levels=2, steps=3, hidden=16, scale="tanh").double()
    z, logdet = plain.transforms(x)
    assert torch.allclose(logdet, torch.zeros(5, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(z.square().sum(1), x.square().sum((1, 2, 3)), rtol=1e-5)


def test_the_first_batch_is_standardised_throughout() -> None:
    torch.manual_seed(0)
    flow = glow((1, 8, 8), levels=2, steps=2, hidden=8)
    x = 100 + 50 * torch.rand(64, 1, 8, 8)
    flow.initialize(x)
    assert float(flow.encode(x).detach().std()) == pytest.approx(1, abs=0.35)
    assert float(flow.loss(x).parts["nats_per_dim"]) < 7
    with pytest.raises(ValueError, match="a batch of >= 2 events"):
        flow.initialize(x[:1])


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(2, 3), r"x must have shape \(B, 4\), got \(2, 3\)"),
        (torch.tensor([[0.0, 0, 0, torch.nan]]), "NaN or infinity, first in item 0"),
    ],
)
def test_bad_events_are_refused(x: Tensor, words: str) -> None:
    flow = nice(4, hidden=(4,))
    for operation in (flow.log_prob, flow.encode, flow.loss, flow.initialize):
        with pytest.raises(ValueError, match=words):
            operation(x)  # type: ignore[operator]


def test_what_flows_lack_is_refused() -> None:
    flow = nice(4, hidden=(4,))
    assert flow.operations == ("sample", "log_prob", "encode", "decode", "loss")
    with pytest.raises(NotSupported, match="Flow does not support energy"):
        flow.energy(torch.zeros(1, 4))


def test_files_give_the_same_flow_and_singular_ones_are_refused(tmp_path: object) -> None:
    path = f"{tmp_path}/flow.safetensors"
    torch.manual_seed(0)
    flow = realnvp(4, couplings=2, hidden=(8,), mixing="linear")
    disturb(flow)
    flow.save(path)
    torch.manual_seed(1)
    again = realnvp(4, couplings=2, hidden=(8,), mixing="linear")
    x = torch.randn(3, 4)
    assert torch.equal(again.load(path).log_prob(x), flow.log_prob(x))
    for value in (-200.0, math.nan, math.inf):
        with torch.no_grad():
            flow.get_submodule("transforms.parts.1").log_scale[2] = value  # type: ignore[operator]
        flow.save(path)
        before = again.log_prob(x)
        with pytest.raises(CheckpointError, match=r"transforms\.parts\.1.*log_scale"):
            again.load(path)
        assert torch.equal(again.log_prob(x), before)


def test_weights_that_are_no_numbers_are_refused_wherever_they_are() -> None:
    flow = glow((1, 4, 4), levels=1, steps=1, hidden=4)
    for name in ("parts.1.shift", "parts.2.upper", "parts.3.net.middle.weight"):
        weights = {key: value.clone() for key, value in flow.state_dict().items()}
        weights[f"transforms.{name}"].flatten()[-1] = math.nan
        with pytest.raises(CheckpointError, match=f"transforms.{name} has NaN or infinity"):
            flow.load_state_dict(weights)
    weights = {key: torch.full_like(value, math.inf) for key, value in weights.items() if value.is_floating_point()}
    with pytest.raises(CheckpointError, match=r"and \d+ more\.") as caught:
        flow.load_state_dict(weights)
    assert len(str(caught.value)) < 400


def test_orders_are_checked_on_the_device_of_the_weights() -> None:
    flow = realnvp(4, couplings=2, hidden=(4,), mixing="linear")
    order = Flow([Permutation([1, 0])], StandardNormal((2,)))
    with torch.device("meta"):  # where nothing made there can be compared with the weights
        flow.load_state_dict(flow.state_dict())
        order.load_state_dict(order.state_dict())
    with pytest.raises(CheckpointError, match=r"transforms\.parts\.0: order is not a permutation"):
        order.load_state_dict({**order.state_dict(), "transforms.parts.0.order": torch.tensor([1, 1])})


def test_latents_have_the_shape_of_the_base() -> None:
    flow = Flow([Squeeze()], StandardNormal((1, 4, 4)))
    for operation in (flow.log_prob, flow.encode, flow.loss):
        with pytest.raises(ValueError, match=r"the base's shape, \(1, 4, 4\), got \(4, 2, 2\)"):
            operation(torch.zeros(3, 1, 4, 4))  # type: ignore[operator]
    with pytest.raises(TypeError, match="z must be a tensor of floats, got list"):
        flow.decode([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="z has NaN or infinity, first in item 0"):
        flow.decode(torch.full((1, *flow.base.shape), math.nan))


def test_numbers_and_classes_of_samples_are_checked() -> None:
    flow = realnvp(3, couplings=2, hidden=(4,), num_classes=3)
    for n in (-1, 2.5, True):
        for draw in (flow.sample, flow.sample_and_log_prob):
            with pytest.raises(ValueError, match=f"n must be a whole number >= 0, got {n}"):
                draw(n, condition=0)  # type: ignore[operator]
    for draw in (flow.sample, flow.sample_and_log_prob):
        with pytest.raises(ValueError, match="one for each of 4 events, got 2"):
            draw(4, condition=torch.tensor([0, 1]))  # type: ignore[operator]
    x, log_prob = flow.sample_and_log_prob(2, condition=[0, 1], generator=0)  # type: ignore[arg-type]
    assert torch.allclose(flow.log_prob(x, condition=torch.tensor([0, 1])), log_prob, atol=1e-5)


def test_a_part_that_is_replaced_is_computed() -> None:
    flow = Flow([Scaling((2,)), Scaling((2,))], StandardNormal((2,)))
    flow.transforms.parts[0] = Permutation([1, 0])
    x = torch.tensor([[1.0, 2.0]])
    assert torch.equal(flow.encode(x), x.flip(1))
    assert torch.equal(flow.decode(x), x.flip(1))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: nice(1), "D >= 2"),
        (lambda: realnvp((4, 4)), "must have a shape"),
        (lambda: glow((1, 28, 28), levels=3), r"divisible by 2\*\*levels are expected, got shape \(1, 28, 28\)"),
        (lambda: glow((16,)), "height and width"),
        (lambda: realnvp((1, 6, 6), levels=2), "choose fewer levels"),
        (lambda: realnvp(4, mixing="none"), "mixing must be"),  # type: ignore[arg-type]
        (lambda: realnvp((1, 4, 4), mixing="none"), "mixing must be"),  # type: ignore[arg-type]
        (lambda: realnvp(4, kind="afine"), "kind must be 'affine' or 'additive', got 'afine'"),  # type: ignore[arg-type]
        (lambda: realnvp((1, 4, 4), kind="afine"), "kind must be"),  # type: ignore[arg-type]
        (lambda: glow((1, 4, 4), levels=1, steps=1, kind="afine"), "kind must be"),  # type: ignore[arg-type]
        (lambda: nice(4, couplings=1), "couplings must be a whole number >= 2, got 1"),
        (lambda: realnvp(4, couplings=0), "couplings must be a whole number >= 2, got 0"),
        (lambda: realnvp(4, hidden=()), r"hidden must be one or more widths, such as \(128, 128\), got \(\)"),
        (lambda: nice(4, hidden=16), "hidden must be one or more widths"),  # type: ignore[arg-type]
        (lambda: realnvp((1, 4, 4), hidden=(0,)), "a width of hidden must be a whole number >= 1, got 0"),
        (lambda: realnvp(4.0), "a size of events must be a whole number >= 1, got 4.0"),  # type: ignore[arg-type]
        (lambda: glow((1, 4, 4), levels=1, steps=0), "steps must be a whole number >= 1, got 0"),
        (lambda: glow((1, 4, 4), levels=1, hidden=0), "hidden must be a whole number >= 1, got 0"),
        (lambda: glow((1, 4, 4), levels=True), "levels must be a whole number >= 1, got True"),
        (lambda: nice(4, num_classes=-1), "num_classes must be a whole number >= 1, got -1"),
        (lambda: Flow([], StandardNormal((2,)), num_classes=0), "num_classes must be a whole number >= 1, got 0"),
    ],
)
def test_builders_refuse_other_shapes(build: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()  # type: ignore[operator]


@pytest.mark.parametrize("shape", [(np.int64(3),), (1, 4, 4)])
def test_empty_batches(shape: tuple[int, ...]) -> None:
    for flow in (realnvp(shape, couplings=2, hidden=(4,)), glow((1, 4, 4), levels=2, steps=1, hidden=4)):
        empty = torch.zeros(0, *flow.event_shape)
        assert flow.log_prob(empty).shape == (0,)
        assert flow.decode(flow.encode(empty)).shape == flow.sample(0).shape == empty.shape
