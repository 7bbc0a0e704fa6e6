"""The exact denoiser of data whose density is known: what every network is an approximation of."""

from __future__ import annotations

from torch import Tensor

from kexue.generative.diffusion.denoiser import Prediction
from kexue.generative.diffusion.schedule import Schedule, Time, expand_dims, place_times
from kexue.generative.mixture import GaussianMixture


class MixtureDenoiser:
    """Exact denoiser of a mixture of Gaussians, one Gaussian included, for tests of samplers without a network.

    Given x_t the component i has the weight p(i | x_t), and x0 the mean m_i + alpha s^2/(alpha^2 s^2 + sigma^2)
    (x_t - alpha m_i), s being the std of the components.

    Args:
        mixture: of the data.
        schedule: of the noise.

    Example:
        >>> import torch
        >>> from kexue.generative import eight_gaussians
        >>> from kexue.generative.diffusion import VP, make_grid, solve
        >>> denoiser = MixtureDenoiser(eight_gaussians(), VP())
        >>> x = solve(denoiser, torch.randn(1000, 2), make_grid(VP(), 50))
        >>> 1.8 < float(x.norm(dim=1).mean()) < 2.2
        True
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule) -> None:
        self.mixture, self.schedule = mixture, schedule

    def predict(self, x: Tensor, t: Time, *, condition: Tensor | None = None) -> Prediction:
        """Return the exact means of data and noise given events x (B, d) at time t, which is one or (B,)."""
        t = place_times(self.schedule, t, x)
        if x.shape[1:] != self.mixture.means.shape[1:]:
            raise ValueError(f"events must have shape (B, {self.mixture.means.shape[1]}), got {tuple(x.shape)}")
        a, s = expand_dims(self.schedule.alpha(t), x), expand_dims(self.schedule.sigma(t), x)
        means, std = self.mixture.means.to(x), self.mixture.std
        variance = (a * std).square() + s.square()
        gaps = x[:, None] - a.reshape(-1, 1, 1) * means  # (B, K, d)
        weights = (-gaps.square().sum(-1) / (2 * variance.reshape(-1, 1))).softmax(-1)
        share = std**2 / variance
        x0 = weights @ means + a * share * (weights[..., None] * gaps).sum(1)
        eps = s / variance * (weights[..., None] * gaps).sum(1)  # -sigma times the score
        return Prediction(x0, eps, self.schedule, t)
