"""The variational auto-encoder against closed forms: divergences, probabilistic PCA, exact likelihoods."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, distributions, nn

from kexue.errors import NotSupported
from kexue.generative import VAE, LogisticLikelihood, Posterior
from kexue.train import TrainConfig, Trainer


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _linear(dim: int, latent_dim: int, **options: Any) -> VAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VAE(nn.Linear(dim, 2 * latent_dim), nn.Linear(latent_dim, dim), latent_dim, **options).double()


def _data(variances: Tensor, n: int = 2000) -> Tensor:
    """Rows (n, D) whose covariance has exactly these eigenvalues, and whose mean is 0."""
    x = _normal(n, len(variances))
    u = torch.linalg.svd(x - x.mean(0), full_matrices=False).U * math.sqrt(n)
    turn = torch.linalg.qr(_normal(len(variances), len(variances), seed=1)).Q
    return u * variances.sqrt() @ turn


def _train(model: VAE, batch: Any, steps: int, rate: float = 0.02) -> None:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(batch, generator=generator).loss.backward()
        optimizer.step()
        schedule.step()


def _pca_model(x: Tensor, latent_dim: int) -> tuple[VAE, Tensor]:
    """The optimal linear model of rows, from the eigenvectors of their covariance; its log density of each row."""
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    values, vectors = values.flip(0), vectors.flip(1)
    noise = values[latent_dim:].mean()
    weight = vectors[:, :latent_dim] * (values[:latent_dim] - noise).sqrt()
    model = _linear(x.shape[1], latent_dim, likelihood="gaussian", sigma=float(noise.sqrt()))
    inner = weight.T @ weight + noise * torch.eye(latent_dim, dtype=x.dtype)
    with torch.no_grad():
        model.decoder.weight.copy_(weight)  # type: ignore[operator, union-attr]
        model.decoder.bias.copy_(x.mean(0))  # type: ignore[operator, union-attr]
        map_to_mean = torch.linalg.solve(inner, weight.T)
        model.encoder.weight.copy_(torch.cat([map_to_mean, torch.zeros_like(map_to_mean)]))  # type: ignore[operator, union-attr]
        log_var = torch.log(noise * torch.linalg.inv(inner).diagonal())
        model.encoder.bias.copy_(torch.cat([-map_to_mean @ x.mean(0), log_var]))  # type: ignore[operator, union-attr]
    covariance = weight @ weight.T + noise * torch.eye(len(weight), dtype=x.dtype)
    return model, distributions.MultivariateNormal(x.mean(0), covariance).log_prob(x)


# ---- posterior -----------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_normal_distributions() -> None:
    mean, log_var, prior = _normal(6, 3), 2 * _normal(6, 3, seed=1), _normal(6, 3, seed=2)
    q = distributions.Normal(mean, (log_var / 2).exp())
    posterior = Posterior(mean, log_var)
    for centre in (0.0, prior):
        p = distributions.Normal(torch.zeros_like(prior) + centre, 1.0)
        assert torch.allclose(posterior.kl(centre), distributions.kl_divergence(q, p))
    assert torch.allclose(posterior.log_prob(prior), q.log_prob(prior).sum(1))
    assert float(Posterior(torch.zeros(1, 1), torch.full((1, 1), 1e-4)).kl()) == pytest.approx(2.5e-9, rel=1e-3)


def test_encoding_is_deterministic_and_samples_are_of_the_posterior() -> None:
    model, x = _linear(5, 2), _normal(1, 5).expand(20_000, 5)
    first, again = model.encode(x[:3]), model.encode(x[:3])
    assert torch.equal(first.mean, again.mean)
    z = model.encode(x, sample=True, generator=0).detach()
    assert torch.allclose(z.mean(0), first.mean[0].detach(), atol=0.02)
    assert torch.allclose(z.var(0), first.log_var[0].exp().detach(), rtol=0.05)
    assert torch.equal(model.encode(x[:3], sample=True, generator=0), model.encode(x[:8], sample=True, generator=0)[:3])


# ---- closed forms --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_linear_model_reaches_probabilistic_pca() -> None:
    """Its best bound is the greatest likelihood of a normal with d free directions (kexue.fm/archives/5253)."""
    values = torch.tensor([4.0, 2.0, 1.0, 0.3, 0.2, 0.1], dtype=torch.float64)
    x, d, D = _data(values, 500) + 1.0, 3, 6
    noise = values[d:].mean()
    optimum = -0.5 * (D * math.log(2 * math.pi) + values[:d].log().sum() + (D - d) * noise.log() + D)
    model = _linear(D, d, likelihood="gaussian_learned", sigma=1.0)
    _train(model, x, 2000)
    with torch.no_grad():
        bound = model.log_prob_bound(x, k=1, generator=1)
        assert float(bound.mean()) == pytest.approx(float(optimum), abs=0.01)
        kl = model.kl_per_dim(x)
    assert float(model.likelihood.sigma.detach() ** 2) == pytest.approx(float(noise), rel=0.02)  # type: ignore[arg-type, union-attr]
    expected = 0.5 * torch.log(values[:d] / noise)
    assert float(kl.sum()) == pytest.approx(float(expected.sum()), abs=0.03)
    assert model.active_units(x) == d


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "active"), [(0.5, 3), (1.0, 2), (5.0, 1)])
def test_a_latent_collapses_by_the_law(beta: float, active: int) -> None:
    """Latent i is in use where its variance exceeds beta sigma^2, and then says half the log of their quotient."""
    values = torch.tensor([8.0, 3.0, 0.6, 0.05], dtype=torch.float64)
    x = _data(values, 500)
    model = _linear(4, 3, beta=beta, sigma=1.0)
    _train(model, x, 1200)
    expected = sum(max(0.0, 0.5 * math.log(v / beta)) for v in values[:3].tolist())
    assert float(model.kl_per_dim(x).sum()) == pytest.approx(expected, abs=0.02)
    assert model.active_units(x, threshold=0.05) == active


def test_every_bound_of_the_optimal_linear_model_is_its_likelihood() -> None:
    x = _data(torch.tensor([4.0, 2.0, 0.5, 0.1], dtype=torch.float64), 200)
    model, exact = _pca_model(x, 2)
    for k in (1, 3):
        assert torch.allclose(model.log_prob_bound(x, k=k, generator=0), exact, atol=1e-5)  # sigma is float32 at first


def test_bounds_rise_with_k_to_the_exact_likelihood() -> None:
    x = _data(torch.tensor([4.0, 2.0, 0.5, 0.1], dtype=torch.float64), 100)
    model, exact = _pca_model(x, 2)
    with torch.no_grad():
        model.encoder.bias[:2] += 0.3  # type: ignore[operator, union-attr, index]
        model.encoder.bias[2:] += 0.5  # type: ignore[operator, union-attr, index]
        bounds = [float(model.log_prob_bound(x, k=k, generator=0).mean()) for k in (1, 5, 50, 500)]
    assert bounds == sorted(bounds)
    assert bounds[0] < float(exact.mean()) - 0.1
    assert bounds[-1] == pytest.approx(float(exact.mean()), abs=0.01)


def test_the_loss_is_the_negative_bound() -> None:
    model, x = _linear(4, 2), _normal(500, 4)
    out = model.loss(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out.loss, out.parts["kl"] + out.parts["reconstruction"])
    bound = model.log_prob_bound(x.repeat(10, 1), generator=1).mean()
    assert float(out.loss.detach()) == pytest.approx(-float(bound.detach()), rel=0.03)


def test_sums_are_over_pixels_and_means_over_events() -> None:
    """A model of twice the pixels has twice the reconstruction; a batch of copies has the loss of one event."""
    x = _normal(1, 4)

    def loss(repeat: int, width: int) -> Tensor:
        model = _linear(4 * width, 2)
        for p in model.parameters():
            nn.init.zeros_(p)
        return model.loss(x.repeat(repeat, width), generator=0).parts["reconstruction"]  # type: ignore[return-value]

    assert torch.allclose(loss(3, 1), loss(1, 1))
    assert torch.allclose(loss(1, 2), 2 * loss(1, 1))


# ---- weights of the divergence -------------------------------------------------------------------------------------


@torch.no_grad()
def _read_weight(model: VAE, x: Tensor) -> float:
    out = model.loss(x, generator=0)
    return float((out.loss - out.parts["reconstruction"]) / out.parts["kl"])


def test_beta_grows_with_the_steps_and_is_whole_in_evaluation() -> None:
    model, x = _linear(4, 2, beta=2.0, beta_warmup=4), _normal(8, 4)
    weights = [_read_weight(model, x) for _ in range(6)]
    assert weights == pytest.approx([0, 0.5, 1, 1.5, 2, 2])
    assert int(model.steps) == 6
    model.load_state_dict(_linear(4, 2).state_dict())
    assert _read_weight(model.eval(), x) == pytest.approx(2)
    assert int(model.steps) == 0


def test_free_bits_are_of_the_mean_over_the_batch() -> None:
    model = _linear(2, 2, free_bits=0.5)
    with torch.no_grad():
        model.encoder.weight.copy_(torch.tensor([[3.0, 0], [0, 0], [0, 0], [0, 0]]))  # type: ignore[operator, union-attr]
        model.encoder.bias.copy_(torch.tensor([0.0, 0.1, 0, 0]))  # type: ignore[operator, union-attr]
    x = torch.tensor([[1.0, 0], [0, 0]], dtype=torch.float64)  # divergences 4.5 and 0 of latent 0: 2.25 on average
    out = model.loss(x, generator=0)
    assert (out.loss - out.parts["reconstruction"]).item() == pytest.approx(2.25 + 0.5)
    assert out.parts["kl"].item() == pytest.approx(2.25 + 0.005)  # type: ignore[union-attr]
    (gradient,) = torch.autograd.grad(out.loss - out.parts["reconstruction"], model.encoder.bias)  # type: ignore[arg-type]
    assert gradient[1] == 0  # a latent below the limit is not pulled further down
    assert gradient[0] != 0


def test_log_variances_are_limited_and_counted() -> None:
    model, x = _linear(2, 2), _normal(3, 2)
    with torch.no_grad():
        model.encoder.weight.zero_()  # type: ignore[operator, union-attr]
        model.encoder.bias.copy_(torch.tensor([0.0, 0, 50, -50]))  # type: ignore[operator, union-attr]
    assert model.encode(x).log_var[0].tolist() == [10, -15]
    assert int(model.clamp_count) == 0
    assert bool(model.loss(x, generator=0).loss.isfinite())
    assert int(model.clamp_count) == 6
    model.eval().loss(x, generator=0)
    assert int(model.clamp_count) == 6


# ---- samples and classes -------------------------------------------------------------------------------------------


def test_samples_are_decoded_latents_of_the_prior() -> None:
    model = _linear(2, 2).float()
    with torch.no_grad():
        model.decoder.weight.copy_(torch.eye(2))  # type: ignore[operator, union-attr]
        model.decoder.bias.zero_()  # type: ignore[operator, union-attr]
    z = model.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert float(z.var()) == pytest.approx(1, abs=0.03)
    cold = model.sample(20_000, generator=torch.Generator().manual_seed(0), temperature=0.5)
    assert torch.allclose(cold, z / 2)
    assert torch.allclose(model.sample(5, generator=1, batch_size=2), model.sample(9, generator=1)[:5], atol=1e-6)
    assert not model.sample(2, temperature=0.0).any()


def test_classes_have_learned_means() -> None:
    x = _normal(200, 3)
    classes = torch.arange(200) % 2
    x[:, 0] += 6.0 * classes - 3
    model = _linear(3, 2, prior="class_mean", num_classes=2)
    assert isinstance(model.prior_means, nn.Parameter)
    _train(model, (x, classes), 200, 0.05)
    samples = model.sample(200, condition=classes, generator=0)
    assert float(((samples[:, 0] > 0) == classes.bool()).double().mean()) > 0.9
    means = model.prior_means.detach()
    assert torch.allclose(model.encode(x[classes == 1]).mean.mean(0).detach(), means[1], atol=0.1)
    kl = model.encode(x).kl(means[classes]).mean(0)
    assert torch.allclose(model.kl_per_dim(x, condition=classes), kl)
    right, wrong = (model.log_prob_bound(x, condition=y, generator=0).mean() for y in (classes, 1 - classes))
    assert bool(right > wrong + 1)


def test_images_of_levels_and_the_trainer(tmp_path: Any) -> None:
    """A model of 17 levels is trained, saved and loaded with its step count."""
    torch.manual_seed(0)
    images = torch.randint(0, 17, (32, 1, 4, 4)) / 8 - 1.0

    def build() -> VAE:
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
        decoder = nn.Sequential(nn.Linear(4, 16), nn.Unflatten(1, (1, 4, 4)))
        return VAE(encoder, decoder, 4, likelihood=LogisticLikelihood(17), beta_warmup=10)

    model = build()
    before = float(model.eval().loss(images, generator=0).loss.detach())
    config = TrainConfig(tmp_path / "run", steps=30, precision="fp32", device="cpu", log=())
    Trainer(model, torch.optim.Adam(model.parameters(), 0.02), config).fit([images])
    assert float(model.eval().loss(images, generator=0).loss.detach()) < before
    model.save(tmp_path / "model.safetensors")
    again = build().load(tmp_path / "model.safetensors").eval()
    assert int(again.steps) == 30
    assert torch.equal(again.loss(images, generator=0).loss, model.loss(images, generator=0).loss)
    assert model.event_shape == (1, 4, 4)


def test_divergence_and_likelihood_are_float32_under_autocast() -> None:
    model = _linear(4, 2).float()
    with torch.no_grad():
        model.encoder.bias[2:] = 9.9  # type: ignore[operator, union-attr, index]
    x = _normal(8, 4).float()
    exact = model.loss(x, generator=0)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(x, generator=0)
        assert model.encode(x).mean.dtype == torch.float32
    assert half.loss.dtype == torch.float32
    assert bool(half.loss.isfinite())
    assert half.parts["kl"].item() == pytest.approx(exact.parts["kl"].item(), rel=0.05)  # type: ignore[union-attr]


def test_a_model_in_half_precision_decodes() -> None:
    model = _linear(4, 2).bfloat16()
    assert model.sample(3, generator=0).dtype == torch.bfloat16
    assert model.loss(_normal(3, 4).bfloat16(), generator=0).loss.dtype == torch.float32


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latent_dim": 2.0}, "latent_dim must be a whole number >= 1, got 2.0"),
        ({"beta_warmup": 1.5}, "beta_warmup must be a whole number"),
        ({"latent_dim": 0}, "latent_dim must be a whole number >= 1"),
        ({"beta": -1.0}, "beta must be >= 0"),
        ({"beta": math.nan}, "beta must be >= 0"),
        ({"beta_warmup": -1}, "beta_warmup must be a whole number >= 0"),
        ({"free_bits": -0.1}, "free_bits must be >= 0"),
        ({"likelihood": "mse"}, "likelihood must be 'gaussian'"),
        ({"prior": "flow"}, "prior must be"),
        ({"prior": "class_mean", "num_classes": 0}, "num_classes must be a whole number >= 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VAE(**({"encoder": nn.Linear(4, 4), "decoder": nn.Linear(2, 4), "latent_dim": 2} | options))


def test_bad_calls_are_refused() -> None:
    model, x = _linear(4, 2), _normal(3, 4)
    with pytest.raises(ValueError, match=r"shape \(B, 4\), got \(3, 5\)"):
        model.loss(_normal(3, 5))
    with pytest.raises(ValueError, match="NaN"):
        model.encode(x * math.nan)
    with pytest.raises(ValueError, match=r"\(B, 2\), got \(3, 3\)"):
        model.decode(_normal(3, 3))
    with pytest.raises(ValueError, match="z has NaN or infinity, first in item 1"):
        model.decode(torch.tensor([[0.0, 0.0], [math.nan, 0.0]]))
    with pytest.raises(ValueError, match="k must be a whole number >= 1"):
        model.log_prob_bound(x, k=0)
    with pytest.raises(ValueError, match="has no classes"):
        model.sample(3, condition=0)
    with pytest.raises(ValueError, match="one event at least"):
        model.loss(x[:0])
    with pytest.raises(ValueError, match="got 3 parts"):
        model.loss((x, x, x))
    with pytest.raises(ValueError, match="temperature"):
        model.sample(1, temperature=-1.0)
    with pytest.raises(ValueError, match="at least 2"):
        model.active_units(x[:1])
    with pytest.raises(NotSupported, match="log_prob_bound"):
        model.log_prob(x)
    with pytest.raises(ValueError, match=r"must return means and log-variances .*got \(3, 3\)"):
        VAE(nn.Linear(4, 3), nn.Linear(2, 4), 2).encode(x.float())


def test_bad_classes_are_refused() -> None:
    model, x = _linear(4, 2, prior="class_mean", num_classes=2), _normal(3, 4)
    for call in (lambda: model.loss(x), lambda: model.sample(2)):
        with pytest.raises(ValueError, match="needs classes"):
            call()
    with pytest.raises(ValueError, match=r"condition must lie in \[0, 2\), got 2"):
        model.loss((x, torch.tensor([0, 1, 2])))
    with pytest.raises(TypeError, match="integer"):
        model.sample(2, condition=torch.zeros(2))
    for classes in (torch.tensor([1]), torch.tensor([[0], [1], [1]])):  # would be those of other events
        for operation in (
            lambda y: model.loss((x, y)),
            lambda y: model.log_prob_bound(x, condition=y),
            lambda y: model.kl_per_dim(x, condition=y),
        ):
            with pytest.raises(ValueError, match=r"condition must have shape \(3,\), one class for each item"):
                operation(classes)


def test_batches_of_data_loaders_give_one_loss() -> None:
    model, x = _linear(4, 2), _normal(3, 4)
    expected = model.loss(x, generator=0).loss
    for batch in ([x], (x,), (x, torch.zeros(3, dtype=torch.int64)), (x, None)):
        assert torch.equal(model.loss(batch, generator=0).loss, expected)
