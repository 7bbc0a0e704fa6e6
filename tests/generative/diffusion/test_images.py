"""Diffusion of images with levels: the probability of levels in closed form, classes, levels of samples."""

import math

import pytest
import torch
from torch import nn

from kexue.errors import NotSupported
from kexue.generative import MLPDenoiser
from kexue.generative.diffusion import VP, DiscreteSchedule, FlowSchedule, ImageDiffusion


class ExactMean(nn.Module):
    """The mean of x0 given x_t, of values that are independent, each of the levels with the same known shares."""

    num_classes = None

    def __init__(self, shape, shares, schedule):
        super().__init__()
        self.event_shape, self.schedule = shape, schedule
        self.weight = nn.Parameter(torch.zeros(1))
        self.shares = torch.tensor(shares, dtype=torch.float64)

    def forward(self, sample, timestep, class_labels=None, **_options):
        t = timestep.double().reshape(-1, *[1] * sample.ndim)
        levels = torch.linspace(-1, 1, len(self.shares), dtype=torch.float64)
        scores = -((sample[..., None] - self.schedule.alpha(t) * levels) / self.schedule.sigma(t)).square() / 2
        return ((scores + self.shares.log()).softmax(-1) * levels).sum(-1).to(sample)


class ClassPicture(nn.Module):
    """Estimates that every pixel is -1 in class 0, 1 in class 1, and 0 without class."""

    num_classes, event_shape = 2, (1, 2, 2)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, sample, timestep, class_labels=None, **_options):
        labels = torch.full((len(sample),), 2) if class_labels is None else class_labels
        return torch.tensor([-1.0, 1.0, 0.0])[labels].reshape(-1, 1, 1, 1).expand_as(sample)


def levels_of_model(shares, schedule):
    """Return the probability of each level: of the noisy value, then of the level given this value, integrated."""
    levels = torch.linspace(-1, 1, len(shares), dtype=torch.float64)
    t = schedule.time_of_log_snr(-2 * math.log(0.5 * 2 / (len(shares) - 1)))  # half a step of noise
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    normal = (-((x[:, None] - alpha * levels) / sigma).square() / 2).exp()
    density = normal @ torch.tensor(shares, dtype=torch.float64) / (sigma * math.sqrt(2 * math.pi))
    return torch.trapezoid(density[:, None] * normal / normal.sum(1, keepdim=True), x, dim=0).float()


def all_images(n, size):
    k = torch.cartesian_prod(*[torch.arange(n)] * size).float()
    return (2 * k / (n - 1) - 1).reshape(-1, 1, 1, size)


@pytest.mark.parametrize(("schedule", "tolerance"), [(VP(), 0.02), (FlowSchedule(), 0.002)])
def test_the_bound_is_the_probability_where_levels_are_equally_frequent(schedule, tolerance):
    """Then the probability of a level given the noisy value is as the model supposes, and every draw gives log P."""
    model = ImageDiffusion(ExactMean((1, 1, 2), [1 / 3] * 3, schedule), schedule, 3, prediction="x0")
    bound = model.log_prob_bound(all_images(3, 2), generator=0)
    torch.testing.assert_close(bound, torch.full((9,), -2 * math.log(3)), atol=tolerance, rtol=0)


def test_the_bound_stays_below_the_probability():
    shares, schedule = [0.7, 0.1, 0.2], FlowSchedule()
    model = ImageDiffusion(ExactMean((1, 1, 1), shares, schedule), schedule, 3, prediction="x0")
    x = all_images(3, 1).repeat_interleave(200, 0)
    bound = model.log_prob_bound(x, generator=0).reshape(3, 200).mean(1)
    gap = levels_of_model(shares, schedule).log() - bound
    assert bool((gap > -0.02).all())
    assert 0 < float((torch.tensor(shares) * gap).sum()) < 0.2
    assert torch.equal(model.log_prob_bound(x[:5], generator=0), model.log_prob_bound(x, generator=0)[:5])


def test_probes_estimate_the_trace():
    """The values are independent, so that the Jacobian is diagonal, and random signs give its trace exactly."""
    schedule = FlowSchedule()
    model = ImageDiffusion(ExactMean((1, 4, 5), [0.5, 0.5], schedule), schedule, 2, prediction="x0")
    x = all_images(2, 20)[::65536].reshape(-1, 1, 4, 5)
    torch.testing.assert_close(
        model.log_prob_bound(x, generator=0, probes=1), torch.full((16,), -20 * math.log(2)), atol=0.05, rtol=0
    )


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "heun"])
def test_samples_are_images_with_levels_and_the_same_in_any_batch(solver):
    torch.manual_seed(0)
    model = ImageDiffusion(MLPDenoiser((1, 4, 4), hidden=16, num_classes=3), VP(), 5)
    x = model.sample(6, generator=3, steps=5, solver=solver)
    assert set(x.unique().tolist()) <= {-1.0, -0.5, 0.0, 0.5, 1.0}
    assert torch.equal(x, model.sample(6, generator=3, steps=5, solver=solver, batch_size=4))


def test_classes_are_drawn_as_often_as_they_occur():
    model = ImageDiffusion(ClassPicture(), VP(), 3, prediction="x0", class_shares=[3, 1])
    x = model.sample(400, generator=0, steps=2)
    assert x.flatten(1).std(1).max() == 0
    share = float((x[:, 0, 0, 0] == 1).double().mean())
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)
    assert bool((model.sample(3, generator=0, steps=2, condition=1) == 1).all())
    assert bool((model.sample(3, generator=0, steps=2, condition=2) == 0).all())  # "any class"
    assert bool((model.sample(3, generator=0, steps=2, condition=1, scale=0.0) == 0).all())
    only = ImageDiffusion(ClassPicture(), VP(), 3, prediction="x0", class_shares=[0.0, 1.0])
    assert bool((only.sample(50, generator=0, steps=2) == 1).all())


def test_latents_come_back():
    torch.manual_seed(0)
    for schedule, prediction in ((VP(), "eps"), (FlowSchedule(), "velocity")):
        model = ImageDiffusion(MLPDenoiser((1, 4, 4), hidden=16), schedule, 5, prediction=prediction)
        x = all_images(5, 2).repeat(1, 1, 4, 2)
        assert float((model.decode(model.encode(x)) - x).abs().max()) < 1e-4


def test_flow_matching_learns_the_velocity_of_straight_paths():
    """Of the network 0 the loss is the mean of (eps - x0)^2, 1 + x0^2."""

    class Zero(ClassPicture):
        num_classes = None

        def forward(self, sample, timestep, **_options):
            return 0 * sample

    model = ImageDiffusion(Zero(), FlowSchedule(), 3, prediction="velocity")
    loss = model.loss(torch.ones(20_000, 1, 2, 2), generator=torch.Generator().manual_seed(0)).loss
    assert float(loss) == pytest.approx(2.0, abs=0.05)


def test_what_is_refused():
    net = MLPDenoiser((1, 4, 4), hidden=16)
    model = ImageDiffusion(net, VP(), 5)
    with pytest.raises(NotSupported, match="does not support log_prob; it supports: sample, log_prob_bound, encode"):
        model.log_prob(torch.zeros(1, 1, 4, 4))
    with pytest.raises(NotSupported, match="guidance needs a model that was trained with classes"):
        model.sample(1, scale=2.0)
    with pytest.raises(NotSupported, match="eta goes with the solver ddim, not with heun"):
        model.sample(1, solver="heun", eta=0.5)
    classed = ImageDiffusion(ClassPicture(), VP(), 3, prediction="x0")
    for scale in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"scale must be finite, got {scale}"):
            classed.sample(1, scale=scale)
    with pytest.raises(NotSupported, match="need a continuous schedule"):
        ImageDiffusion(net, DiscreteSchedule.linear(), 5)
    with pytest.raises(ValueError, match="values between the levels 2 k / 4 - 1 for k = 0"):
        model.log_prob_bound(torch.full((1, 1, 4, 4), 0.3))
    with pytest.raises(ValueError, match="without classes"):
        ImageDiffusion(net, VP(), 5, class_shares=[1.0])
    for shares in ([1.0], [0.0, 0.0], [1.0, -1.0], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="class_shares must be 2 numbers >= 0, not all 0"):
            ImageDiffusion(ClassPicture(), VP(), 5, class_shares=shares)
