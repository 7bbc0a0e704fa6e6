"""Guidance: a denoiser around another one, whose samples are drawn towards a class, a picture or a text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from kexue._tensors import may_read, outside_inference_mode
from kexue.generative.diffusion.denoiser import LEAST_SIGNAL, Prediction, Predictor, name_condition, refuse_zero
from kexue.generative.diffusion.schedule import Schedule, expand_dims, place_times

_LEAST_SPREAD = 1e-12  # of a noise, below which it has no spread to keep
Scale = float | Tensor | Callable[[Tensor], Tensor | float]


class _Guidance:
    """A denoiser around another one."""

    def __init__(self, denoiser: Predictor, scale: Scale) -> None:
        if isinstance(scale, int | float) and not math.isfinite(scale):
            raise ValueError(f"scale must be finite, got {scale}")
        self.denoiser, self.scale = denoiser, scale

    @property
    def schedule(self) -> Schedule:
        """The schedule of the denoiser."""
        return self.denoiser.schedule

    def _scale_at(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the scale, one or one for each event, in a form that multiplies events."""
        value = self.scale(t) if callable(self.scale) else self.scale
        scale = torch.as_tensor(value, device=x.device)
        if scale.ndim and scale.shape != (len(x),):
            raise ValueError(f"scale must be a number, or one for each of {len(x)} events, got {tuple(scale.shape)}")
        return expand_dims(scale, x)


class SimilarityGuidance(_Guidance):
    """Guidance by any differentiable score: the score of the model plus `scale` times the gradient of a similarity.

    It samples p(x) exp(scale sim(x)), as far as the similarity holds for noisy events.

    Args:
        denoiser: of the model, without condition.
        similarity: called with events (B, *event); returns (B,). See `cosine_similarity_score`, `gram_score`.
        scale: gamma, >= 0: a number, one for each event (B,), or a function of time.
        on: ``"noisy"``: the similarity is that of x_t; ``"denoised"``: that of the estimate of x0.
        through: of ``"denoised"``: ``"denoiser"``, the gradient passes through the network, which is dear and better;
            ``"stopgrad"``, it is divided by alpha instead.

    Source: kexue.fm/archives/9257.
    """

    def __init__(
        self,
        denoiser: Predictor,
        similarity: Callable[[Tensor], Tensor],
        scale: Scale,
        *,
        on: Literal["noisy", "denoised"] = "noisy",
        through: Literal["denoiser", "stopgrad"] = "denoiser",
    ) -> None:
        super().__init__(denoiser, scale)
        if on not in ("noisy", "denoised"):
            raise ValueError(f"on must be 'noisy' or 'denoised', got {on!r}")
        if through not in ("denoiser", "stopgrad"):
            raise ValueError(f"through must be 'denoiser' or 'stopgrad', got {through!r}")
        self._similarity, self.on, self.through = similarity, on, through

    def predict(self, x: Tensor, t: Tensor, *, condition: Tensor | None = None) -> Prediction:
        """Return the guided prediction; `condition` is that of the denoiser."""
        t = place_times(self.schedule, t, x)
        told, gradient = self._told_and_gradient(x, t, condition, self._similarity)
        return _tilt_score(told, x, self._scale_at(x, t) * gradient)

    def _told_and_gradient(
        self, x: Tensor, t: Tensor, condition: Tensor | None, score: Callable[[Tensor], Tensor]
    ) -> tuple[Prediction, Tensor]:
        """Return the prediction of the denoiser, and the gradient of a score (B,) in x_t."""
        if self.on == "noisy":
            return self.denoiser.predict(x, t, condition=condition), _gradient(score, x)
        if self.through == "stopgrad":
            told = self.denoiser.predict(x, t, condition=condition)
            return told, _gradient(score, told.x0) / expand_dims(self.schedule.alpha(t), x)  # dx0/dx is near 1/alpha
        predictions: list[Prediction] = []

        def score_denoised(at: Tensor) -> Tensor:
            predictions.append(self.denoiser.predict(at, t, condition=condition))
            return score(predictions[0].x0)

        gradient = _gradient(score_denoised, x)
        told = predictions[0]
        if _is_differentiated(x):
            return told, gradient
        fraction = None if told.fraction is None else told.fraction.detach()
        return Prediction(told.x0.detach(), told.eps.detach(), told.schedule, told.t, fraction), gradient


class ClassifierGuidance(SimilarityGuidance):
    """Guidance by a classifier: the score of the model plus `scale` times the gradient of log p(y | x_t).

    eps' = eps - scale sigma_t gradient. The gradient times a scale is not that of the sharpened p(y|x)^scale: its
    normaliser depends on x too.

    Args:
        denoiser: of the model; it gets no condition.
        log_prob_fn: called as ``log_prob_fn(x, t, condition)``, or ``log_prob_fn(x, t)`` where no condition is given;
            returns log p(y | x), (B,). It is in evaluation mode, and no event depends on another.
        scale: gamma, >= 0: a number, one for each event (B,), or a function of time.
        form: ``"score"`` goes with every solver. ``"mean"`` shifts the mean of a step with noise by its variance times
            the gradient, as the article has it for DDPM; it goes with the solvers ``"ddpm"`` and ``"ddim"`` with noise.
        on: ``"noisy"`` needs a classifier of noisy events; ``"denoised"`` gives one of clean events the estimate of x0.
        through: as of `SimilarityGuidance`.

    Source: kexue.fm/archives/9257.
    """

    def __init__(
        self,
        denoiser: Predictor,
        log_prob_fn: Callable[..., Tensor],
        scale: Scale,
        *,
        form: Literal["score", "mean"] = "score",
        on: Literal["noisy", "denoised"] = "noisy",
        through: Literal["denoiser", "stopgrad"] = "denoiser",
    ) -> None:
        super().__init__(denoiser, log_prob_fn, scale, on=on, through=through)
        if form not in ("score", "mean"):
            raise ValueError(f"form must be 'score' or 'mean', got {form!r}")
        self._log_prob, self.form = log_prob_fn, form

    def predict(self, x: Tensor, t: Tensor, *, condition: Tensor | None = None) -> Prediction:
        """Return the guided prediction; `condition` is that of the classifier."""
        t = place_times(self.schedule, t, x)
        known = () if condition is None else (condition,)
        told, gradient = self._told_and_gradient(x, t, None, lambda y: self._log_prob(y, t, *known))
        tilt = self._scale_at(x, t) * gradient
        if self.form == "score":
            return _tilt_score(told, x, tilt)
        return Prediction(told.x0, told.eps, told.schedule, told.t, told.fraction, tilt)


class ClassifierFreeGuidance(_Guidance):
    """Guidance without a classifier: eps = eps(no condition) + scale (eps(condition) - eps(no condition)).

    Scale 0 is the model without condition, 1 the conditional model, above 1 guided; the w of the article is scale - 1,
    and other libraries call either one scale. Of normal data it samples the variance V_c^scale V_u^(1 - scale), not the
    sharpened density.

    Args:
        denoiser: a `Denoiser` whose network was trained with some conditions replaced by "no condition".
        scale: gamma: a number, one for each event (B,), or a function of time.
        null: "no condition": a class number, or the tensor of one condition; None is that of the network, in this
            library its last class, or a vector of zeros. A condition to avoid may stand in its place.
        rescale: share, in [0, 1], of the correction that gives the result the spread of the conditional eps.
        interval: (low, high) times between which there is guidance; elsewhere the scale is 1. None is everywhere.

    Raises:
        ValueError: a network without classes and no `null`; on a call, no condition.

    Source: kexue.fm/archives/9257.
    """

    def __init__(
        self,
        denoiser: Predictor,
        scale: Scale,
        *,
        null: int | Tensor | None = None,
        rescale: float = 0.0,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(denoiser, scale)
        if null is None:
            null = find_no_condition(getattr(denoiser, "net", None))
        if null is None:
            raise ValueError(
                "the network has no class for 'no condition': build and train one with num_classes or condition_dim, "
                "or give null="
            )
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {rescale}")
        if interval is not None and not interval[0] <= interval[1]:
            raise ValueError(f"interval must be (low, high), got {interval}")
        self.null, self.rescale, self.interval = null, rescale, interval

    def predict(self, x: Tensor, t: Tensor, *, condition: Tensor | None = None) -> Prediction:
        """Return the guided prediction, by one call with 2B events."""
        if condition is None:
            raise ValueError("guidance needs a condition for each event, got None")
        name_condition(condition, len(x))
        t = place_times(self.schedule, t, x)
        scale = self._scale_at(x, t)
        if self.interval is not None:
            inside = (t >= self.interval[0]) & (t <= self.interval[1])
            scale = torch.where(inside if t.ndim == 0 else inside.reshape(-1, *[1] * (x.ndim - 1)), scale, 1)
        if scale.ndim == 0 and may_read(scale) and float(scale) == 1:
            return self.denoiser.predict(x, t, condition=condition)
        null = torch.as_tensor(self.null).to(condition).expand_as(condition)
        both_t = t if t.numel() == 1 else torch.cat([t, t])
        told = self.denoiser.predict(torch.cat([x, x]), both_t, condition=torch.cat([condition, null]))
        x0, x0_null = told.x0.chunk(2)
        eps, eps_null = told.eps.chunk(2)
        guided = eps_null + scale * (eps - eps_null)  # 9257, section "Without a classifier"
        fraction = None if told.fraction is None else told.fraction.chunk(2)[0]
        if not self.rescale:
            return Prediction(x0_null + scale * (x0 - x0_null), guided, told.schedule, t, fraction)
        spread, wanted = (expand_dims(y.flatten(1).std(1, correction=0), x) for y in (guided, eps))
        same = torch.where(spread > _LEAST_SPREAD, wanted / spread.clamp(min=_LEAST_SPREAD), 1)
        share = self.rescale * same + 1 - self.rescale
        alpha, sigma = (expand_dims(c, x) for c in (told.schedule.alpha(t), told.schedule.sigma(t)))
        noisy = (x - sigma * share * guided) / alpha
        x0 = torch.where(alpha > LEAST_SIGNAL, noisy, x0_null + scale * (x0 - x0_null))  # alpha 0: the noise is x
        return Prediction(x0, share * guided, told.schedule, t, fraction)


def find_no_condition(net: object) -> int | None:
    """Return the class number, or the value of a vector, that means "no condition" to a network; None without."""
    null = getattr(net, "no_condition", None)
    return getattr(net, "num_classes", None) if null is None else null


def _tilt_score(told: Prediction, x: Tensor, tilt: Tensor) -> Prediction:
    """Return a prediction whose score has `tilt` added."""
    alpha, sigma = told.schedule.alpha(told.t), told.schedule.sigma(told.t)
    refuse_zero(alpha, told.t, "the gradient of guidance tells nothing of the data where alpha is 0; begin earlier")
    x0 = told.x0 + expand_dims(sigma.square() / alpha, x) * tilt  # 9257, section "With a classifier"
    return Prediction(x0, told.eps - expand_dims(sigma, x) * tilt, told.schedule, told.t, told.fraction)


def _is_differentiated(x: Tensor) -> bool:
    """Return whether the gradient itself is differentiated in the events, as a likelihood does."""
    return x.requires_grad and torch.is_grad_enabled()


def _gradient(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient of a score (B,) in events; events are independent, so that the sum will do."""
    again = _is_differentiated(x)
    with outside_inference_mode(), torch.enable_grad():
        at = x if again else x.detach().clone().requires_grad_()
        value = score(at)
        if value.shape != (len(x),):
            raise ValueError(f"a score for each of {len(x)} events is expected, ({len(x)},), got {tuple(value.shape)}")
        if not value.requires_grad:
            raise ValueError(
                "a score that depends on the events is expected, got one without gradient; is it detached?"
            )
        return torch.autograd.grad(value.sum(), at, create_graph=again)[0]


def cosine_similarity_score(e1: Callable[[Tensor], Tensor], e2: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the score x -> cosine of e1(x) and e2, for `SimilarityGuidance`.

    Args:
        e1: encoder of events, (B, *event) -> (B, d); it should know noisy events, or be applied to denoised ones.
        e2: what they should resemble, as vectors (d,) or (B, d): an encoded text or picture.

    Source: kexue.fm/archives/9257.
    """
    return lambda x: functional.cosine_similarity(e1(x), e2.to(x), dim=-1)


def gram_score(target: Tensor, features: Callable[[Tensor], Tensor] | None = None) -> Callable[[Tensor], Tensor]:
    """Return the score x -> -|G(x) - G(target)|^2 of styles, G the products of channels averaged over places.

    Args:
        target: one picture (C, H, W).
        features: layer of a network in which channels are compared, (B, C, H, W) -> (B, D, h, w); None: the pixels.

    Source: kexue.fm/archives/9257.
    """

    def gram(x: Tensor) -> Tensor:
        rows = (x if features is None else features(x)).flatten(2)
        return rows @ rows.transpose(1, 2) / rows.shape[-1]

    return lambda x: -(gram(x) - gram(target.to(x)[None])).square().flatten(1).sum(1)
