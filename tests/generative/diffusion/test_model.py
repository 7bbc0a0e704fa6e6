"""Diffusion as a generative model, and the exchange with diffusers."""

import copy
import pickle
import warnings

import pytest
import torch

from kexue.errors import NotSupported
from kexue.generative import MLPDenoiser, Noise, TinyUNet, eight_gaussians, sliced_wasserstein
from kexue.generative.diffusion import (
    VP,
    CosineSchedule,
    Diffusion,
    DiscreteSchedule,
    FlowSchedule,
    make_grid,
    schedule_from_config,
    scheduler_config,
    score_matching_loss,
    solve,
)

TABLE = DiscreteSchedule.linear(1000)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [VP(), TABLE], ids=["continuous", "table"])
def test_it_learns_the_ring(schedule):
    ring, generator = eight_gaussians(), torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Diffusion(MLPDenoiser(2, hidden=128), schedule)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(800):
        optimizer.zero_grad()
        model.loss(ring.sample(512, generator=generator), generator=generator).loss.backward()
        optimizer.step()
    out = model.sample(1000, steps=20, solver="dpmpp_2m", generator=0)
    floor = sliced_wasserstein(ring.sample(1000, generator=1), ring.sample(1000, generator=2))
    assert sliced_wasserstein(out, ring.sample(1000, generator=1)) < floor + 0.12


def test_it_speaks_the_vocabulary():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Diffusion(MLPDenoiser(2, hidden=16, num_classes=3), VP(), condition_dropout=0.2).double()
    x, labels = torch.randn(6, 2).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    assert model.loss((x, labels), generator=0).loss.ndim == 0
    assert bool(model.loss(x, generator=0).loss == model.loss(x, generator=0).loss)
    whole = model.sample(6, steps=4, condition=labels, scale=2.0, eta=1.0, generator=5)
    torch.testing.assert_close(
        model.sample(6, steps=4, condition=labels, scale=2.0, eta=1.0, generator=5, batch_size=2), whole
    )
    z = model.encode(x, steps=10, condition=labels)
    torch.testing.assert_close(model.decode(z, steps=10, condition=labels), x, rtol=1e-4, atol=1e-4)
    assert model.log_prob(x, condition=labels).shape == (6,)
    assert {"sample", "encode", "decode", "loss", "log_prob"} <= set(model.operations)
    assert model.sample(0, steps=3).shape == (0, 2)


def test_options_reach_the_solver():
    """The option `noise` of DDIM is not the noise of the samples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Diffusion(MLPDenoiser(2, hidden=16), TABLE).requires_grad_(False)
    drawn = Noise(5, 3)
    x = TABLE.prior.draw(drawn, (2,))
    expected = solve(model.denoiser, x, make_grid(TABLE, 4, kind="leading"), generator=drawn, noise="forward")
    assert torch.equal(model.sample(3, steps=4, grid="leading", noise="forward", generator=5), expected)
    assert not torch.equal(model.sample(3, steps=4, grid="leading", eta=1.0, generator=5), expected)


def test_it_knows_the_shape_of_its_events():
    assert Diffusion(TinyUNet((1, 8, 8), channels=8), TABLE).event_shape == (1, 8, 8)
    assert Diffusion(torch.nn.Linear(3, 3), TABLE, event_shape=(3,)).event_shape == (3,)
    with pytest.raises(ValueError, match="event_shape"):
        Diffusion(torch.nn.Linear(3, 3), TABLE)


def test_a_unet_of_diffusers_is_a_network():
    diffusers = pytest.importorskip("diffusers")
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    model = Diffusion(net, TABLE)
    assert model.event_shape == (1, 8, 8)
    assert model.sample(2, steps=2, generator=0).shape == (2, 1, 8, 8)
    assert model.loss(torch.zeros(2, 1, 8, 8), generator=0).loss.isfinite()


class _Bent(torch.nn.Module):
    """eps = 3 sin(3 x), with which few steps cannot be inverted."""

    def forward(self, sample, timestep):
        return 3 * torch.sin(3 * sample)


def test_latents_that_do_not_lead_back_are_told():
    model = Diffusion(_Bent(), VP(), event_shape=(2,))
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="3 steps were inverted up to a residual of .* take more steps"):
        z = model.encode(x, steps=3)
    assert float((model.decode(z, steps=3) - x).abs().max()) > 1e-2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Diffusion(_Still(), VP(), event_shape=(2,)).encode(x, steps=20)


def test_batches_of_data_loaders():
    """(x,), and classes that a network without them does not get."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Diffusion(MLPDenoiser(2, hidden=8), VP())
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    plain = float(model.loss(x, generator=0).loss.detach())
    for batch in ((x,), [x], (x, torch.arange(4)), (x, None)):
        assert float(model.loss(batch, generator=0).loss.detach()) == plain
    for batch, words in (((x, x, x), "3 parts"), (x[:0], "one event")):
        with pytest.raises(ValueError, match=words):
            model.loss(batch)
    with pytest.raises(ValueError, match="each of 4"):
        Diffusion(MLPDenoiser(2, num_classes=9), VP(), condition_dropout=0.5).loss((x, torch.arange(3)))


class _Dropping(torch.nn.Module):
    event_shape = (3,)

    def __init__(self):
        super().__init__()
        self.net, self.dropout = torch.nn.Linear(3, 3), torch.nn.Dropout(0.5)

    def forward(self, sample, timestep):
        return self.net(self.dropout(sample))


def test_only_training_drops_values():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Diffusion(_Dropping(), VP()).train()
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for call in (model.encode, model.decode, model.log_prob):
        assert bool((call(x) == call(x)).all())
    assert model.training


def test_half_precision_and_networks_without_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Diffusion(MLPDenoiser(2, hidden=8), TABLE).bfloat16()
    x = torch.randn(4, 2).bfloat16()
    assert model.sample(3, steps=3).dtype == torch.bfloat16
    assert model.loss(x, generator=0).loss.dtype == torch.float32  # means of squares need it
    still = Diffusion(_Still(), VP(), event_shape=(2,))
    assert still.sample(3, steps=3).shape == (3, 2)


class _Still(torch.nn.Module):
    def forward(self, sample, timestep):
        return sample


def test_another_network_takes_the_place_of_the_first():
    model = Diffusion(_Still(), VP(), event_shape=(2,))
    model.net = _Dropping()
    assert model.denoiser.net is model.net
    copied = copy.deepcopy(Diffusion(MLPDenoiser(2, hidden=8), VP()))
    assert copied.denoiser.net is copied.net
    again = pickle.loads(pickle.dumps(copied))
    assert torch.equal(again.sample(2, steps=2, generator=0), copied.sample(2, steps=2, generator=0))


def test_times_are_drawn_by_importance():
    """As of the loss: the same mean as without, from fewer draws."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLPDenoiser(2, hidden=8)
    model = Diffusion(net, VP(), weighting="likelihood", importance=True)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    expected = score_matching_loss(model.denoiser, x, weighting="likelihood", importance=True, generator=5).loss
    assert torch.equal(model.loss(x, generator=5).loss, expected)
    assert not torch.equal(Diffusion(net, VP(), weighting="likelihood").loss(x, generator=5).loss, expected)
    for schedule, options, words in (
        (VP(), {"importance": True}, "importance"),
        (VP(), {"weighting": "even"}, "weighting must be"),
        (FlowSchedule(), {"weighting": "likelihood", "importance": True}, "finite"),
    ):
        with pytest.raises(ValueError, match=words):
            Diffusion(net, schedule, **options)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="num_classes"):
        Diffusion(MLPDenoiser(2), VP(), condition_dropout=0.1)
    for z, words in ((torch.zeros(3, 5), r"z must have shape \(B, 2\)"), (torch.full((1, 2), torch.nan), "z has NaN")):
        with pytest.raises(ValueError, match=words):
            Diffusion(MLPDenoiser(2), VP()).decode(z)
    for call in (lambda m, **o: m.sample(1, **o), lambda m, **o: m.decode(torch.zeros(1, 2), **o)):
        with pytest.raises(TypeError, match="take `solve`"):
            call(Diffusion(MLPDenoiser(2), VP()), return_trajectory=True)
    model = Diffusion(MLPDenoiser(2), TABLE)
    with pytest.raises(NotSupported, match="continuous"):
        model.log_prob(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"\(B, 2\)"):
        model.loss(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="num_classes"):
        model.sample(1, scale=2.0, condition=0)
    with pytest.raises(TypeError, match="temperature"):
        model.sample(1, temperature=2.0)


# ---- files of diffusers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("rescale", [False, True])
def test_schedules_come_from_diffusers(kind, rescale):
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DDIMScheduler(500, beta_schedule=kind, rescale_betas_zero_snr=rescale)
    schedule = schedule_from_config(dict(peer.config))
    torch.testing.assert_close(schedule.alphas_cumprod.float(), peer.alphas_cumprod, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("schedule", [TABLE, DiscreteSchedule.cosine(200), FlowSchedule()])
def test_schedules_go_to_diffusers_and_back(schedule):
    config = scheduler_config(schedule)
    again = schedule_from_config(config)
    t = torch.tensor([0, 3, 50, 199]) if schedule.discrete else torch.linspace(0, 1, 4)
    torch.testing.assert_close(again.alpha(t), schedule.alpha(t))
    diffusers = pytest.importorskip("diffusers")
    peer = getattr(diffusers, config["_class_name"]).from_config(config)
    if schedule.discrete:
        torch.testing.assert_close(peer.alphas_cumprod, schedule.alphas_cumprod.float(), rtol=1e-4, atol=1e-7)


def test_other_schedules_are_refused():
    with pytest.raises(NotSupported, match="CosineSchedule"):
        scheduler_config(CosineSchedule())
    with pytest.raises(NotSupported, match="sigmoid"):
        schedule_from_config({"beta_schedule": "sigmoid"})
    with pytest.raises(NotSupported, match="EDMEulerScheduler"):
        schedule_from_config({"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "num_train_timesteps": 1000})
    with pytest.raises(NotSupported, match="shift"):
        schedule_from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})


def test_vectors_as_conditions_are_left_out_and_guide():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLPDenoiser(2, hidden=16, condition_dim=3)
    x, states = torch.randn(6, 2), torch.randn(6, 3)
    always, never = (Diffusion(net, VP(), condition_dropout=p) for p in (1.0, 0.0))
    left_out = never.loss((x, torch.zeros(6, 3)), generator=torch.Generator().manual_seed(0)).loss
    assert bool(never.loss((x, states), generator=torch.Generator().manual_seed(0)).loss != left_out)
    dropped = always.loss((x, states), generator=0)
    assert bool(dropped.loss == always.loss((x, -states), generator=0).loss)
    free = never.sample(6, steps=4, generator=1)
    torch.testing.assert_close(never.sample(6, steps=4, generator=1, condition=states, scale=0.0), free)
    told = never.sample(6, steps=4, generator=1, condition=states)
    torch.testing.assert_close(never.sample(6, steps=4, generator=1, condition=states, scale=1.0), told)
    assert float((told - free).abs().max()) > 1e-3
