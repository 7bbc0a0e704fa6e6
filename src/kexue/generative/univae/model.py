"""UniVAE: a variational auto-encoder of sentences whose encoder and decoder are one Transformer.

With the latents z_1 ... z_m of a sentence x, chosen block by block (`network`),

    -log p(x) <= -sum_t log p(x_t | x_<t, z) + sum_i KL(q(z_i | x, z_<i) | prior).

Later latents depend on earlier ones; the prior does not. Source: kexue.fm/archives/8475.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from kexue._tensors import evaluating
from kexue.generative.model import GenerativeModel, LossOutput
from kexue.generative.noise import Noise
from kexue.generative.univae.characters import CLS, SEP
from kexue.generative.univae.checks import check_arguments, check_floats
from kexue.generative.univae.latents import GaussianLatent, Latent, SphereLatent
from kexue.generative.univae.network import UniVAENetwork
from kexue.generative.univae.rows import SpecialTokens, check_rows, fill_rows
from kexue.generative.univae.writing import (
    write_at_random,
    write_best,
    write_likeliest,
)
from kexue.nn.transformer import Transformer

Method = Literal["greedy", "beam", "sample"]
Random = torch.Generator | int | None


class UniVAE(GenerativeModel):
    """A variational auto-encoder of sentences whose encoder and decoder are one Transformer.

    Events are rows of token ids (n,): the start, the tokens of the sentence, the end, and padding up to n. Shorter
    rows are padded. Every token in front of the end is read and written, padding is read only.

    Args:
        backbone: any `Transformer` with two segments or more and positions other than ``"t5"``; the token table is
            that of the scores, too.
        n_latent_layers: blocks with a latent, the last ones, from 1 to all but the first. More of them reconstruct
            better, fewer separate better.
        latent_dim: numbers in each latent.
        latent: ``"vmf"``, a direction, whose divergence is a constant; ``"gaussian"``, free numbers.
        kappa: concentration of a direction, > 0; for ``"vmf"``.
        max_length: n, tokens of a row at most, start and end included; at least 3.
        beta: weight of the divergence, >= 0.
        beta_warmup: steps in which this weight grows linearly from 0 to `beta`, >= 0. A step is a call of `loss` in
            training mode. In evaluation mode the weight is `beta`. It has no effect on ``"vmf"``.
        free_bits: nats of each number that the loss does not count, on the mean of a batch; for ``"gaussian"``.
        start_id, end_id: tokens that begin and end a sentence; padding is the backbone's `pad_id`.

    Attributes:
        network: the Transformer with the maps of its latents.
        latent: family of the latents.

    Raises:
        ValueError: a number out of its range, or a backbone that does not fit.

    Source: kexue.fm/archives/8475.

    Example:
        >>> from kexue.generative import CharacterVocabulary
        >>> from kexue.nn import Transformer, TransformerConfig
        >>> vocabulary = CharacterVocabulary.from_texts(["to be", "not to be"])
        >>> backbone = Transformer(TransformerConfig(len(vocabulary), hidden_size=32, num_layers=5))
        >>> model = UniVAE(backbone, max_length=12)
        >>> z = model.encode(vocabulary.encode(["to be", "not to be"], 12))
        >>> z.shape, model.decode(z).shape
        (torch.Size([2, 4, 16]), torch.Size([2, 12]))
    """

    def __init__(
        self,
        backbone: Transformer,
        *,
        n_latent_layers: int = 4,
        latent_dim: int = 16,
        latent: Literal["vmf", "gaussian"] = "vmf",
        kappa: float = 32.0,
        max_length: int = 32,
        beta: float = 1.0,
        beta_warmup: int = 0,
        free_bits: float = 0.0,
        start_id: int = CLS,
        end_id: int = SEP,
    ) -> None:
        super().__init__()
        check_arguments(backbone, (start_id, end_id), n_latent_layers, max_length, beta, beta_warmup)
        if latent not in ("vmf", "gaussian"):
            raise ValueError(f"latent must be 'vmf' or 'gaussian', got {latent!r}")
        self.beta, self.beta_warmup = beta, beta_warmup
        self.event_shape = (max_length,)
        self.max_length, self.special = max_length, SpecialTokens(start_id, end_id, backbone.config.pad_id)
        self.latent: Latent = (
            SphereLatent(latent_dim, kappa) if latent == "vmf" else GaussianLatent(latent_dim, free_bits)
        )
        kind = self.latent
        self.network = UniVAENetwork(backbone, n_latent_layers, kind.width, kind.dim, kind.scale, max_length)
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # of training, for the warm-up

    @property
    def backbone(self) -> Transformer:
        """The Transformer."""
        return self.network.backbone

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Shape of the latents of one sentence: n_latent_layers, latent_dim."""
        return len(self.network.read), self.latent.dim

    def _bound(self, rows: Tensor, noise: Noise) -> tuple[Tensor, list[Tensor]]:
        """Return the cross-entropy (B,) of the tokens of each sentence, in nats, and r of all latents."""
        r_of: list[Tensor] = []

        def choose(number: int, r: Tensor) -> Tensor:
            r_of.append(r)
            return self.latent.sample(r, noise)

        states = self.network(rows, choose)[:, :-1]
        target = rows[:, 1:]
        scored = target != self.special.pad  # each token, and the end, at the place before it
        nats = functional.cross_entropy(self.network.score_tokens(states[scored]), target[scored], reduction="none")
        sums = nats.new_zeros(len(rows)).index_add(0, scored.nonzero()[:, 0], nats)
        return sums, r_of

    @torch.no_grad()
    def initialize(self, token_ids: Tensor) -> Self:
        """Standardise what the latents are chosen from, over the given sentences; return the model.

        In an untrained Transformer the state of place 0 is nearly the same for all sentences, and a latent drawn from
        it is noise. The maps R_i are changed so that each number has mean 0 and variance 1 over these sentences (the
        log-variances of Gaussian latents stay). Not for a backbone that has learnt to tell sentences apart.

        Args:
            token_ids: a sample of the sentences (B, T) to train on, hundreds of them.

        Raises:
            ValueError: no two of the sentences differ.
        """

        def choose(number: int, r: Tensor) -> Tensor:
            dim, linear = self.latent.dim, self.network.read[number]
            weight, bias = linear.get_parameter("weight"), linear.get_parameter("bias")
            mean, deviation = r[:, :dim].mean(0), r[:, :dim].std(0, correction=0)
            scale = 1 / deviation.clamp(min=torch.finfo(r.dtype).eps)
            weight[:dim] *= scale[:, None]
            bias[:dim] = (bias[:dim] - mean) * scale
            return self.latent.centre(torch.cat([(r[:, :dim] - mean) * scale, r[:, dim:]], 1))

        rows = self._fill(token_ids)
        if bool((rows == rows[:1]).all()):
            raise ValueError(f"sentences that differ are expected, got {len(rows)} of one kind; give hundreds of them")
        with evaluating(self):
            self.network.read_only(rows, choose)
        return self

    # ---- vocabulary of generative models ---------------------------------------------------------------------------

    def loss(self, batch: Tensor, *, generator: Random = None) -> LossOutput:
        """Return minus the bound of a sentence, with the divergence at its weight: the mean of a batch, in nats.

        Args:
            batch: token ids (B, T), T <= max_length.
            generator: of the latents.

        Returns:
            `loss`; the parts ``kl`` and ``reconstruction`` are means over the batch, without beta and free bits, so
            that their sum bounds -log p(x).

        Raises:
            TypeError, ValueError: as `check_events`.
        """
        rows = self._fill(batch)
        nats, r_of = self._bound(rows, Noise(generator, len(rows), self.device))
        penalty = torch.stack([self.latent.penalty(r) for r in r_of]).sum()
        kl, reconstruction = torch.stack([self.latent.kl(r) for r in r_of]).sum(0).mean(), nats.mean()
        weight: Tensor | float = self.beta
        if self.training:
            self.steps += 1
            weight *= (self.steps / self.beta_warmup).clamp(max=1) if self.beta_warmup else 1.0
        return LossOutput(reconstruction + weight * penalty, {"kl": kl, "reconstruction": reconstruction})

    @torch.no_grad()
    def log_prob_bound(self, x: Tensor, *, generator: Random = None) -> Tensor:  # type: ignore[override]
        """Return a lower bound (B,) of the log probability of sentences, estimated with one draw of the latents."""
        with evaluating(self):
            rows = self._fill(x)
            nats, r_of = self._bound(rows, Noise(generator, len(rows), self.device))
        return -nats - torch.stack([self.latent.kl(r) for r in r_of]).sum(0)

    @torch.no_grad()
    def encode(self, x: Tensor, *, sample: bool = False, generator: Random = None) -> Tensor:  # type: ignore[override]
        """Return the latents (B, n_latent_layers, latent_dim) of sentences.

        Args:
            x: token ids (B, T), T <= max_length.
            sample: whether to draw them; otherwise they are the middles, each given those before it.
            generator: of the draws.
        """
        return self._encode(x, Noise(generator, len(x), self.device) if sample else None)[0]

    def _encode(self, x: Tensor, noise: Noise | None) -> tuple[Tensor, list[Tensor]]:
        """Return the latents of sentences, and r of all latents. What is read never sees what is written."""
        z_of: list[Tensor] = []
        r_of: list[Tensor] = []

        def choose(number: int, r: Tensor) -> Tensor:
            r_of.append(r)
            z_of.append(self.latent.centre(r) if noise is None else self.latent.sample(r, noise))
            return z_of[-1]

        with evaluating(self):
            self.network.read_only(self._fill(x), choose)
        return torch.stack(z_of, 1), r_of

    @torch.no_grad()
    def decode(  # type: ignore[override]
        self,
        z: Tensor,
        *,
        generator: Random = None,
        method: Method = "greedy",
        beams: int = 4,
        temperature: float = 1.0,
    ) -> Tensor:
        """Return the sentences (B, max_length) of latents.

        Args:
            z: latents (B, n_latent_layers, latent_dim), floats of any precision.
            generator: of the method ``"sample"``.
            method: ``"greedy"``, the likeliest token each time; ``"beam"``, the likeliest sentence that a search finds;
                ``"sample"``, tokens drawn by their probabilities.
            beams: sentences that the search keeps, >= 1.
            temperature: of the method ``"sample"``, >= 0: below 1 likely tokens are drawn more often, at 0 always.

        Raises:
            ValueError: latents of another shape, NaN or infinity; an unknown method, a number out of its range.
            TypeError: no tensor.
        """
        self._check_latents(z)
        return self._write(z, Noise(generator, len(z), self.device), method, beams, temperature)

    def _write(self, z: Tensor, noise: Noise, method: Method, beams: int, temperature: float) -> Tensor:
        z = z.to(self.network.bias.dtype)
        with evaluating(self):
            steps = self.network.begin_writing(z)
            if method == "greedy":
                return write_likeliest(steps, self.special)
            if method == "beam":
                return write_best(steps, self.special, beams)
            if method == "sample":
                return write_at_random(steps, self.special, noise.uniform((self.max_length - 1,)), temperature)
        raise ValueError(f"method must be 'greedy', 'beam' or 'sample', got {method!r}")

    def draw(  # type: ignore[override]
        self,
        noise: Noise,
        *,
        condition: Tensor | None,
        method: Method = "greedy",
        beams: int = 4,
        temperature: float = 1.0,
    ) -> Tensor:
        """Return sentences of latents of the prior; the options are those of `decode`."""
        if condition is not None:
            raise ValueError("a UniVAE has no classes, got a condition; add a direction to latents instead (shift)")
        return self._write(self._prior(noise), noise, method, beams, temperature)

    def sample_latents(self, n: int, *, generator: Random = None) -> Tensor:
        """Return n latents (n, n_latent_layers, latent_dim) of the prior, those that `sample` decodes."""
        return self._prior(Noise(generator, n, self.device))

    def _prior(self, noise: Noise) -> Tensor:
        return torch.stack([self.latent.sample_prior(noise) for _ in self.network.read], 1).to(self.network.bias.dtype)

    def reconstruct(self, token_ids: Tensor, **options: Any) -> Tensor:
        """Return sentences (B, max_length) decoded from the latents of others (B, T); options are those of `decode`."""
        return self.decode(self.encode(token_ids), **options)

    # ---- latents ---------------------------------------------------------------------------------------------------

    def edit(self, z: Tensor, layer: int, new: Tensor) -> Tensor:
        """Return latents (B, n_latent_layers, latent_dim) in which that of one layer is another.

        Args:
            z: latents.
            layer: number of the latent, from 0, the earliest block.
            new: (latent_dim,) or (B, latent_dim), brought into the space of the latents: a direction has length 1.
        """
        self._check_latents(z)
        count, dim = self.latent_shape
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < count:
            raise ValueError(f"layer must be a whole number in [0, {count}), got {layer}")
        check_floats(new, "new", ((dim,), (len(z), dim)))
        changed = z.clone()
        changed[:, layer] = self.latent.project(new)
        return changed

    def interpolate(self, z1: Tensor, z2: Tensor, n: int) -> Tensor:
        """Return n latents (n, n_latent_layers, latent_dim) from z1 to z2, both included; each layer on its own path.

        Directions go along great circles, Gaussian latents as `interpolate` with ``"circular"``.
        """
        for z in (z1, z2):
            check_floats(z, "each end", (self.latent_shape,))
        return torch.stack([self.latent.path(a, b, n) for a, b in zip(*torch.stack([z1, z2]), strict=True)], 1)

    def attribute(self, group: Tensor, other: Tensor) -> Tensor:
        """Return the mean latent of one group of sentences minus that of another, (n_latent_layers, latent_dim).

        Args:
            group: token ids of sentences that have something in common.
            other: token ids of sentences that lack it.

        Raises:
            ValueError: a group without a sentence.
        """
        if not (len(group) and len(other)):
            raise ValueError(f"two groups of sentences are expected, got {len(group)} and {len(other)} sentences")
        return self.encode(group).mean(0) - self.encode(other).mean(0)

    def shift(self, z: Tensor, direction: Tensor, *, strength: float = 1.0) -> Tensor:
        """Return latents z (B, n_latent_layers, latent_dim) moved by strength times a direction, in their space.

        Args:
            z: latents.
            direction: (n_latent_layers, latent_dim), such as an attribute, or one for each of z.
            strength: factor, finite.

        Raises:
            ValueError: another shape, NaN or infinity; a direction that is moved to length 0.
        """
        self._check_latents(z)
        check_floats(direction, "direction", (self.latent_shape, tuple(z.shape)))
        if not math.isfinite(strength):
            raise ValueError(f"strength must be finite, got {strength}")
        return self.latent.project(z + strength * direction)

    @torch.no_grad()
    def kl(self, token_ids: Tensor, *, generator: Random = None) -> Tensor:
        """Return the divergence (B, n_latent_layers) of each latent from its prior, in nats, earlier ones drawn."""
        _, r_of = self._encode(token_ids, Noise(generator, len(token_ids), self.device))
        return torch.stack([self.latent.kl(r) for r in r_of], 1)

    def active_units(self, token_ids: Tensor, *, threshold: float = 0.01) -> int:
        """Return how many of the latent numbers tell sentences apart.

        Those are the ones whose middle varies over the sentences by more than `threshold` times as much as under the
        prior. Source: Burda et al. 2016, arXiv:1509.00519.
        """
        prior = self.latent.scale**2 / self.latent.dim
        return int((self.encode(token_ids).var(0, correction=0) > threshold * prior).sum())

    # ---- checks ----------------------------------------------------------------------------------------------------

    def check_events(self, x: Tensor) -> None:
        """Raise unless `x` is a batch of sentences (B, max_length): start, tokens, end, padding.

        Raises:
            ValueError: another shape, a longer sentence, a row without start or end, or with tokens behind the end.
            TypeError: not integers.
        """
        check_rows(x, self.max_length, self.special, self.backbone.config.vocab_size)

    def _fill(self, token_ids: Tensor) -> Tensor:
        """Return checked rows (B, max_length), shorter ones padded."""
        rows = fill_rows(token_ids, self.max_length, self.special)
        self.check_events(rows)
        return rows.long()

    def _check_latents(self, z: Tensor) -> None:
        check_floats(z, "latents", (("B", *self.latent_shape),))
