"""Generative adversarial networks: gradients in closed form, what is frozen, constraints, latents, resume."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kexue.errors import NotSupported
from kexue.generative import GAN, VAE, sngan
from kexue.nn import lipschitz_upper_bound
from kexue.similarity import HubSampler
from kexue.train import TrainConfig, Trainer

LOSSES = ["hinge", "logistic", "wasserstein"]
CONSTRAINTS = ["spectral", "gradient_penalty", "zero_centred", "clip", "none"]


def linear_gan(loss, constraint="none", **options):
    """D(x) = w x + b on three numbers, G(z) = A z of two, in float64."""
    torch.manual_seed(0)
    parts = nn.Linear(2, 3, bias=False).double(), nn.Linear(3, 1).double()
    return GAN(*parts, 2, loss=loss, constraint=constraint, **options)


def small_gan(constraint="none", *, seed=0, width=32, **options):
    """Networks with a hidden layer, for points in the plane."""
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))
    critic = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2))
    return GAN(generator, nn.Sequential(*critic, nn.Linear(width, 1)), 2, constraint=constraint, **options)


def batches(n, size=64):
    """Points of N((2, 0), I / 4)."""
    draw = torch.Generator().manual_seed(1)
    return [torch.tensor([2.0, 0.0]) + torch.randn(size, 2, generator=draw) / 2 for _ in range(n)]


def fit(model, steps, out, *, critic_lr=1e-2, lr=1e-3, **options):
    optimizers = [
        torch.optim.Adam(model.critic.parameters(), critic_lr, (0.0, 0.9)),
        torch.optim.Adam(model.generator_net.parameters(), lr, (0.0, 0.9)),
    ]
    config = TrainConfig(out, **{"steps": steps, "log": (), "device": "cpu", "precision": "fp32"} | options)
    return Trainer(model, optimizers, config).fit(batches(steps))


def gradients(model, output):
    model.zero_grad()
    output.loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


# ---- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradients_of_a_linear_critic_are_those_of_the_formulas(loss):
    model = linear_gan(loss)
    x = 1.5 * torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    z = model.latents(40, generator=torch.Generator().manual_seed(7)).double()
    w, b, A = model.critic.weight[0].detach(), model.critic.bias.detach(), model.generator_net.weight.detach()
    y = z @ A.T
    real, fake = x @ w + b, y @ w + b
    on_real, on_fake, on_goal = {  # minus, plus and minus the derivatives of the losses in D(x), D(y), and again D(y)
        "hinge": ((real < 1).double(), (fake > -1).double(), torch.ones(40)),
        "logistic": (torch.sigmoid(-real), torch.sigmoid(fake), torch.sigmoid(-fake)),
        "wasserstein": (torch.ones(40), torch.ones(40), torch.ones(40)),
    }[loss]
    critic = gradients(model, model.training_step(x, generator=torch.Generator().manual_seed(7)))
    expected = (on_fake[:, None] * y).mean(0) - (on_real[:, None] * x).mean(0)
    assert torch.allclose(critic["critic.weight"][0], expected, atol=1e-12)
    assert torch.allclose(critic["critic.bias"], (on_fake - on_real).mean().double(), atol=1e-12)
    goal = gradients(model, model.training_step(x, optimizer_index=1, generator=torch.Generator().manual_seed(7)))
    expected = -torch.outer(w, (on_goal[:, None] * z).mean(0))
    assert torch.allclose(goal["generator_net.weight"], expected, atol=1e-12)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_the_other_network_gets_no_gradient(constraint):
    model = small_gan(constraint, instance_noise=0.1)
    for index, trained in ((0, "critic"), (1, "generator_net")):
        for name, gradient in gradients(model, model.training_step(batches(1)[0], optimizer_index=index)).items():
            assert (gradient is not None) == name.startswith(trained), name
            assert gradient is None or bool(gradient.isfinite().all())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_the_single_loss_has_the_gradients_of_both(loss, constraint):
    """In evaluation mode, so that no pass changes the vectors of the spectral norms."""
    model = small_gan(constraint, loss=loss, instance_noise=0.1).double().eval()
    x = batches(1)[0].double()
    single = model.loss(x, generator=5)
    both = [model.training_step(x, optimizer_index=index, generator=5) for index in (0, 1)]
    assert single.loss.item() == pytest.approx(both[0].loss.item(), abs=1e-12)
    assert single.parts.keys() == {"critic", "generator", "penalty"}
    for parts in (both[0].parts, both[1].parts):
        for name, value in parts.items():
            assert single.parts[name].item() == pytest.approx(value.item(), abs=1e-12)
    found = gradients(model, single)
    for output, trained in zip(both, ("critic", "generator_net"), strict=True):
        for name, expected in gradients(model, output).items():
            if name.startswith(trained):
                assert torch.allclose(found[name], expected, atol=1e-12), name


def test_the_single_loss_of_wasserstein_is_that_of_the_article():
    """min over both networks of U(x) - 2 U(sg y) + U(y), where real events have low U."""
    model = small_gan(loss="wasserstein").double()
    x, seed = batches(1)[0].double(), 5
    y = model.decode(torch.stack([model.latents(len(x), generator=seed)[i] for i in range(len(x))]))
    article = model.energy(x).mean() - 2 * model.energy(y.detach()).mean() + model.energy(y).mean()
    found = gradients(model, model.loss(x, generator=seed))
    model.zero_grad()
    article.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-12), name


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_parts_keep_no_graph(constraint):
    model, x = small_gan(constraint), batches(1)[0]
    for output in (model.loss(x), model.training_step(x), model.training_step(x, optimizer_index=1)):
        assert output.loss.requires_grad
        assert not any(part.requires_grad for part in output.parts.values())


def test_the_critic_runs_once_a_step():
    """So that wrappers of modules, which expect one pass, work; a penalty needs a second one."""
    for constraint, expected in (("none", 1), ("spectral", 1), ("gradient_penalty", 2)):
        model, calls = small_gan(constraint), []
        model.critic.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for step in (
            lambda model: model.training_step(batches(1)[0]),
            lambda model: model.loss(batches(1)[0]),
        ):
            calls.clear()
            step(model)
            assert len(calls) == expected


# ---- constraints -----------------------------------------------------------------------------------------------------


def exact_norms(model):
    layers = [part for part in model.critic.modules() if isinstance(part, nn.Linear)]
    return [torch.linalg.matrix_norm(layer.weight.detach(), 2).item() for layer in layers]


def test_the_norms_are_right_before_any_step():
    for norm in exact_norms(sngan((1, 8, 8)).eval()):
        assert norm == pytest.approx(1, abs=0.02)  # power iteration approaches the norm from below


def test_the_norms_stay_near_one_in_training(tmp_path):
    model = small_gan("spectral")
    fit(model, 40, tmp_path, critic_lr=1e-3)
    assert max(exact_norms(model.eval())) < 1.05
    assert lipschitz_upper_bound(model.critic, (2,)) < 1.05**3
    free = small_gan("none")
    fit(free, 40, tmp_path / "free", critic_lr=1e-3)
    assert lipschitz_upper_bound(free.critic, (2,)) > 1.05**3


def test_weights_are_clipped_after_every_step(tmp_path):
    model = small_gan("clip", strength=0.05)
    fit(model, 5, tmp_path)
    assert max(p.abs().max().item() for p in model.critic.parameters()) == pytest.approx(0.05)
    assert max(p.abs().max().item() for p in model.generator_net.parameters()) > 0.05
    before = [p.clone() for p in small_gan("clip").critic.parameters()]
    held = small_gan("clip").eval()
    held.loss(batches(1)[0])
    assert all(torch.equal(a, b) for a, b in zip(before, held.critic.parameters(), strict=True))


def slopes(model, x):
    x = x.clone().requires_grad_()
    [gradient] = torch.autograd.grad(model.score(x).sum(), x)
    return gradient.norm(dim=1)


def test_penalties_bring_the_slopes_where_they_belong(tmp_path):
    x = batches(1)[0]
    found = {}
    for constraint, strength in (("none", None), ("gradient_penalty", None), ("zero_centred", 10.0)):
        model = small_gan(constraint, loss="wasserstein", strength=strength)
        fit(model, 150, tmp_path / constraint, lr=0.0)
        fake = model.sample(len(x), generator=0)
        found[constraint] = (slopes(model, (x + fake) / 2), slopes(model, x))
    assert (found["gradient_penalty"][0] - 1).abs().mean() < 0.15  # one between the two
    assert (found["none"][0] - 1).abs().mean() > 1
    assert found["zero_centred"][1].square().mean() < 0.25 * found["gradient_penalty"][1].square().mean()


def test_the_critic_prefers_real_points_and_the_generator_follows(tmp_path):
    x = batches(1, 500)[0]
    for loss in LOSSES:
        model = small_gan("spectral", loss=loss)
        fit(model, 30, tmp_path / loss / "critic", lr=0.0)
        fake = model.sample(500, generator=0)
        assert model.score(x).mean() > model.score(fake).mean() + 0.1
        fit(model, 200, tmp_path / loss / "both", lr=5e-3)
        moved = model.sample(500, generator=0).mean(0)
        assert (moved - x.mean(0)).norm() < 0.5 * (fake.mean(0) - x.mean(0)).norm()


# ---- latents ---------------------------------------------------------------------------------------------------------


def test_a_sample_is_its_latents_decoded_whatever_the_batch():
    model = sngan((1, 8, 8), 4)
    x = model.sample(6, generator=3)
    z = model.latents(6, generator=3)
    cut = model.sample(6, generator=3, truncation=0.5)
    assert torch.equal(model.latents(2, generator=3), z[:2])
    for same, expected in (  # matrix products of other sizes are rounded otherwise
        (model.sample(6, generator=3, batch_size=4), x),
        (model.sample(2, generator=3), x[:2]),
        (model.sample(6, latents=z, batch_size=4), x),
        (model.eval().decode(z), x),
        (model.sample(3, generator=3, truncation=0.5), cut[:3]),
    ):
        assert torch.allclose(same, expected, atol=1e-6)
    assert not torch.allclose(x, cut, atol=1e-2)


@pytest.mark.parametrize("t", [0.1, 1.0, 3.0, 9.0])
def test_truncated_latents_have_the_moments_of_the_truncated_normal(t):
    z = sngan((1, 8, 8), 8).latents(4000, generator=torch.Generator().manual_seed(0), truncation=t).double()
    assert z.abs().max() <= t
    density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    variance = 1 - 2 * t * density / math.erf(t / math.sqrt(2))
    n = z.numel()
    assert abs(z.mean()) < 3.5 * math.sqrt(variance / n)
    error = float((z.square() - variance).std()) / math.sqrt(n)
    assert z.square().mean().item() == pytest.approx(variance, abs=3.5 * error)


def test_latents_of_a_sampler_for_any_model_that_decodes():
    sampler = HubSampler(4, n=200, k=5, threshold=8)
    gan = sngan((1, 8, 8), 4)
    vae = VAE(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8))), 4
    )
    z = torch.from_numpy(sampler.sample(6, generator=2).latents).float()
    for model in (gan, vae):
        x = model.sample(6, latent_sampler=sampler, generator=2, batch_size=4)
        assert torch.allclose(x, model.eval().decode(z), atol=1e-6)
        stream = [
            model.sample(2, latent_sampler=sampler, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)
        ]
        assert torch.equal(stream[0], stream[1])
        assert not torch.equal(stream[0], stream[2])
    with pytest.raises(ValueError, match="not a list"):
        gan.sample(2, latent_sampler=sampler, generator=[torch.Generator(), torch.Generator()])
    with pytest.raises(ValueError, match="leave one of them out"):
        gan.sample(6, latent_sampler=sampler, latents=z)
    with pytest.raises(ValueError, match=r"one for each of 5 events, got shape \(6, 4\)"):
        gan.sample(5, latents=z)
    with pytest.raises(ValueError, match=r"z must have shape \(B, 4\), got \(6, 3\)"):
        gan.sample(6, latents=z[:, :3])


class Told:
    """A sampler that returns what it was told."""

    def __init__(self, answer):
        self.answer = answer

    def sample(self, size, *, generator=None):
        return self.answer


def test_samplers_of_arrays_that_torch_cannot_share(recwarn):
    model = sngan((1, 8, 8), 4)
    for z in (np.broadcast_to(np.ones(4), (3, 4)), np.ones((3, 4))[::-1], np.ones((3, 4), np.float16), [[1.0] * 4] * 3):
        assert torch.equal(model.sample(3, latent_sampler=Told(z)), model.sample(3, latents=torch.ones(3, 4)))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (np.full((3, 4), np.nan), ValueError, "z has NaN or infinity, first in item 0"),
        (np.ones((3, 4), complex), TypeError, "z must be a tensor of floats, got torch.complex128"),
        (np.ones((2, 4)), ValueError, r"must return 3 latents, got an array of shape \(2, 4\)"),
        (3.0, ValueError, r"must return 3 latents, got an array of shape \(\)"),
    ],
)
def test_bad_latents_of_a_sampler(z, error, message):
    with pytest.raises(error, match=message):
        sngan((1, 8, 8), 4).sample(3, latent_sampler=Told(z))


def test_latents_are_a_tensor():
    model = sngan((1, 8, 8), 4)
    with pytest.raises(TypeError, match="latents must be a tensor, got ndarray"):
        model.sample(3, latents=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"one for each of 3 events, got shape \(\)"):
        model.sample(3, latents=torch.tensor(1.0))
    for z in (torch.full((1, 4), math.inf), torch.ones(1, 3)):
        with pytest.raises(ValueError, match="z "):
            model.decode(z)
    with pytest.raises(TypeError, match=r"z must be a tensor of floats, got torch.int64"):
        model.decode(torch.ones(1, 4, dtype=torch.int64))


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_autocast_trains_with_the_gradients_of_single_precision(constraint):
    model, x = small_gan(constraint, instance_noise=0.1).eval(), batches(1)[0]
    for step in (
        lambda seed: model.loss(x, generator=seed),
        lambda seed: model.training_step(x, generator=torch.Generator().manual_seed(seed)),
    ):
        expected = gradients(model, step(5))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = step(5)
        assert output.loss.dtype == torch.float32
        got = gradients(model, output)
        for name, gradient in expected.items():
            if gradient is not None:
                assert (got[name] - gradient).norm() <= 0.05 * gradient.norm() + 1e-4, name


def test_another_precision_than_that_of_the_weights_is_explained():
    model, x = small_gan(), batches(1)[0].double()
    for use in (model.score, model.energy, model.features, model.loss, model.training_step):
        with pytest.raises(TypeError, match=r"the weights are torch.float32, got x of torch.float64; use x\.to"):
            use(x)


# ---- scores, files, resume -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 20, 24)])
def test_scores_energies_and_features(shape):
    model = sngan(shape, 5).eval()
    x = model.sample(3, generator=0)
    assert x.shape == (3, *shape)
    assert x.abs().max() <= 1
    assert model.score(x).shape == (3,)
    assert torch.equal(model.energy(x), -model.score(x))
    assert torch.allclose(model.critic[-1](model.features(x))[:, 0], model.score(x))
    assert model.operations == ("sample", "energy", "latents", "decode", "loss")
    with pytest.raises(NotSupported, match="does not support encode"):
        model.encode(x)


def test_the_file_brings_back_the_same_scores(tmp_path):
    model = small_gan("spectral")
    fit(model, 5, tmp_path / "run")
    model.eval().save(tmp_path / "model.safetensors")
    again = small_gan("spectral", seed=9).eval().load(tmp_path / "model.safetensors")
    x = model.sample(4, generator=0)
    assert torch.equal(again.sample(4, generator=0), x)
    assert torch.equal(again.score(x), model.score(x))


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_a_training_cut_in_two_gives_the_same_bits(constraint, tmp_path):
    whole, parts = (small_gan(constraint, instance_noise=0.1) for _ in range(2))
    fit(whole, 8, tmp_path / "whole", ema=0.9)
    fit(parts, 8, tmp_path / "parts", ema=0.9, limit=3)
    again = small_gan(constraint, seed=5, instance_noise=0.1)
    fit(again, 8, tmp_path / "parts", ema=0.9)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_noise_comes_from_the_generator_alone():
    model, x = small_gan("gradient_penalty", instance_noise=0.1), batches(1)[0]
    before = torch.get_rng_state()
    first, again, other = (model.loss(x, generator=torch.Generator().manual_seed(s)).loss for s in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)
    quiet = small_gan("gradient_penalty")
    assert quiet.loss(x, generator=torch.Generator().manual_seed(0)).loss != first


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "least"}, "loss must be one of hinge, logistic, wasserstein, got 'least'"),
        ({"constraint": "soft"}, "constraint must be one of spectral, .*, got 'soft'"),
        ({"constraint": "clip", "strength": 0.0}, r"strength must be > 0 and finite, got 0\.0"),
        ({"constraint": "none", "strength": 1.0}, "has no strength, got 1"),
        ({"instance_noise": -1.0}, r"instance_noise must be >= 0 and finite, got -1\.0"),
        ({"latent_dim": 0}, "latent_dim must be a whole number >= 1, got 0"),
    ],
)
def test_bad_arguments(options, message):
    arguments = {"latent_dim": 2} | options
    with pytest.raises(ValueError, match=message):
        GAN(nn.Linear(2, 3), nn.Linear(3, 1), arguments.pop("latent_dim"), **arguments)


def test_bad_calls():
    model = small_gan("spectral")
    with pytest.raises(ValueError, match="normalised already"):
        GAN(model.generator_net, model.critic, 2)
    for t in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="truncation must be > 0"):
            model.sample(2, truncation=t)
    with pytest.raises(ValueError, match="no classes"):
        model.sample(2, condition=1)
    with pytest.raises(ValueError, match=r"optimizer_index must be 0 .*, got 2"):
        model.training_step(batches(1)[0], optimizer_index=2)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\)"):
        model.score(torch.zeros(1, 3))
    wide = GAN(nn.Linear(2, 3), nn.Linear(3, 2), 2)
    with pytest.raises(ValueError, match="one score for each of 4 events, got \\(4, 2\\)"):
        wide.score(torch.zeros(4, 3))
    with pytest.raises(NotSupported, match="Linear are not known"):
        wide.features(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="divisible by 4"):
        sngan((1, 18, 18))
