"""VQ-VAE: an auto-encoder whose latents are codes of a codebook, and a prior of the codes for sampling.

Source: van den Oord et al. 2017, arXiv:1711.00937; the codebook: kexue.fm/archives/10519.
Difference: the prior is no autoregressive network. It counts the codes at each position, as if positions were
independent, so samples are less coherent than reconstructions; `fit_prior` states it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue._tensors import at_least_float32, check_range, evaluating, explaining_precision
from kexue.errors import NotFittedError
from kexue.generative.model import GenerativeModel, LossOutput, check_batch, unpack_batch
from kexue.generative.networks.mlp import Shape, as_shape
from kexue.generative.noise import Noise
from kexue.nn import VectorQuantizer


class VQVAE(GenerativeModel):
    """An encoder to rows, a quantiser that replaces each row by its nearest code, a decoder of the codes.

    The loss is the mean squared error of the events plus the loss of the quantiser, both means over their numbers.
    There is no likelihood: nothing bounds log p(x) here.

    Args:
        encoder: module from events (B, *event_shape) to the rows that the quantiser takes, such as (B, P, dim).
        decoder: module from quantised rows, of the same shape, to events.
        quantizer: a `kexue.nn.VectorQuantizer`.
        event_shape: shape of one event; None is that of the first batch of `loss` or `encode`, before which nothing can
            be sampled or loaded.

    Attributes:
        code_shape: shape of the codes of one event, such as (P,).
        prior_counts: how often each code occurred at each position in `fit_prior`, (positions, num_codes); a buffer.

    Example:
        >>> from kexue.generative import MLP
        >>> encoder, decoder = MLP((1, 8, 8), (4, 4)), MLP((4, 4), (1, 8, 8))
        >>> model = VQVAE(encoder, decoder, VectorQuantizer(4, 32), event_shape=(1, 8, 8))
        >>> x = torch.rand(10, 1, 8, 8)
        >>> model.encode(x).shape
        torch.Size([10, 4])
        >>> model.fit_prior([x]).sample(3, generator=0).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        quantizer: VectorQuantizer,
        *,
        event_shape: Shape | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.quantizer = encoder, decoder, quantizer
        self.event_shape = ()
        self.code_shape: tuple[int, ...] = ()
        self.register_buffer("prior_counts", torch.zeros(0, quantizer.num_codes, dtype=torch.int64))
        self.prior_counts: Tensor
        if event_shape is not None:
            self._set_shapes(event_shape)

    def loss(self, batch: Any, *, generator: torch.Generator | int | None = None) -> LossOutput:
        """Return the mean squared error plus the quantiser's loss.

        Args:
            batch: events x (B, *event_shape), B >= 1; of (x, classes) the classes are not used.
            generator: not used: nothing is drawn.

        Returns:
            `loss` and its parts ``reconstruction`` and ``quantization``; ``perplexity`` and ``usage`` of the codes.
        """
        x = unpack_batch(batch, None)[0]
        self.check_events(x)
        with explaining_precision(self.encoder, x):
            out = self.quantizer(self.encoder(x))
        error = functional.mse_loss(at_least_float32(self.decoder(out.quantized)), at_least_float32(x))
        parts = {
            "reconstruction": error, "quantization": out.loss, "perplexity": out.perplexity, "usage": out.usage,
        }  # fmt: skip
        return LossOutput(error + out.loss, parts)

    def check_events(self, x: Tensor) -> None:
        """Raise unless `x` is a batch of events; the first batch sets their shape where none was given."""
        if not self.event_shape:
            shape = tuple(x.shape[1:]) if isinstance(x, Tensor) else ()
            check_batch(x, shape)  # a batch that is refused sets nothing
            self._set_shapes(shape)
        super().check_events(x)

    def encode(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return the codes of events: (B, *code_shape), int64."""
        self.check_events(x)
        with explaining_precision(self.encoder, x):
            indices: Tensor = self.quantizer(self.encoder(x)).indices
        return indices

    def decode(self, z: Tensor) -> Tensor:  # type: ignore[override]
        """Return the events of codes z (B, *code_shape), int64 in [0, num_codes).

        Raises:
            TypeError: not int64.
            ValueError: another shape, a number that is no code.
        """
        if z.dtype != torch.int64:
            raise TypeError(f"z must be codes, int64, got {z.dtype}")
        if self.code_shape and tuple(z.shape[1:]) != self.code_shape:
            raise ValueError(f"z must have shape (B, {', '.join(map(str, self.code_shape))}), got {tuple(z.shape)}")
        check_range(z, self.quantizer.num_codes, None, "z")
        output: Tensor = self.decoder(self.quantizer.decode(z))
        return output

    def _set_shapes(self, shape: Shape) -> None:
        """Set the shapes of events and codes from one pass; ValueError where the decoder returns another shape."""
        event_shape = as_shape(shape, "event_shape")
        with torch.no_grad(), evaluating(self):
            indices = self.quantizer(self.encoder(torch.zeros(1, *event_shape, device=self.device))).indices
            output = self.decode(indices)
        if output.shape[1:] != event_shape:
            raise ValueError(f"the decoder must return events {event_shape}, got {tuple(output.shape[1:])}")
        self.event_shape, self.code_shape = event_shape, tuple(indices.shape[1:])
        self.prior_counts = self.prior_counts.new_zeros(math.prod(self.code_shape), self.quantizer.num_codes)

    @torch.no_grad()
    def fit_prior(self, batches: Iterable[Any]) -> VQVAE:
        """Count the codes of events at each position; return the model. `sample` draws by these counts.

        Call it after the training: codes that change later do not fit the counts. Positions are drawn independently,
        which loses what they know of each other.

        Args:
            batches: batches as of `loss`.
        """
        counts = torch.zeros_like(self.prior_counts)
        with evaluating(self):
            for x in (unpack_batch(batch, None)[0] for batch in batches):
                self.check_events(x)
                counts = counts if len(counts) else torch.zeros_like(self.prior_counts)
                for position, codes in enumerate(self.encode(x).flatten(1).T):
                    counts[position] += torch.bincount(codes, minlength=self.quantizer.num_codes)
        if not int(counts.sum()):
            raise ValueError("fit_prior needs one event at least, got none")
        self.prior_counts.copy_(counts)
        return self

    def draw(self, noise: Noise, *, condition: Tensor | None) -> Tensor:  # type: ignore[override]
        """Return decoded codes, drawn by the counts of `fit_prior`.

        Raises:
            NotFittedError: `fit_prior` was not called.
        """
        if condition is not None:
            raise ValueError("a VQVAE has no classes, so it takes no condition")
        if not int(self.prior_counts.sum()):
            raise NotFittedError("the prior of the codes is not known.", remedy="Call fit_prior(batches) first.")
        sums = self.prior_counts.double().cumsum(1)
        places = noise.uniform((len(sums),), torch.float64).T * sums[:, -1:]  # (positions, n)
        codes = torch.searchsorted(sums, places.contiguous(), right=True)
        return self.decode(codes.T.reshape(-1, *self.code_shape))
