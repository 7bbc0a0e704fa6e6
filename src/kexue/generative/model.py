"""The vocabulary of all generative models: which operations there are, and what happens where a model lacks one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kexue._counts import check_count
from kexue._files import replacing
from kexue._tensors import check_classes, evaluating, is_finite, may_read
from kexue.errors import CheckpointError, KexueError, NotSupported
from kexue.generative.latents import LatentSampler, draw_latents
from kexue.generative.noise import Noise
from kexue.train.config import LossOutput

__all__ = ["GenerativeModel", "LossOutput"]

_OPERATIONS = {  # operation: the method that a model states to support it
    "sample": "draw", "log_prob": "log_prob", "log_prob_bound": "log_prob_bound", "energy": "energy",
    "latents": "latents", "encode": "encode", "decode": "decode", "loss": "loss",
}  # fmt: skip


class GenerativeModel(nn.Module):
    """A model of a distribution over events, such as images; the base class of all generative models.

    A subclass sets `event_shape` and states the operations that it supports: `draw` (which `sample` calls), `log_prob`,
    `log_prob_bound`, `energy`, `latents`, `encode`, `decode`, `loss`. The others raise `NotSupported`, whose message
    lists those it has; no approximation is returned under the name of an exact value.

    Attributes:
        event_shape: shape of one event, such as (1, 28, 28).
    """

    event_shape: tuple[int, ...]

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the operations that the model supports."""
        own = type(self)
        return tuple(
            name for name, method in _OPERATIONS.items() if getattr(own, method) is not getattr(GenerativeModel, method)
        )

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | int | None = None,
        condition: Tensor | int | None = None,
        batch_size: int | None = None,
        latents: Tensor | None = None,
        latent_sampler: LatentSampler | None = None,
        **options: Any,
    ) -> Tensor:
        """Return `n` events (n, *event_shape), drawn in evaluation mode and without gradients.

        Args:
            n: number of events, >= 0.
            generator: a seed, or a list of generators, one for each event: then event i does not depend on
                `batch_size` and n; a `torch.Generator`, or None for fresh noise: one stream for all.
            condition: classes (n,), or one class for all; vectors (n, d), or one vector of floats for all; None for a
                model without.
            batch_size: events drawn at a time, >= 1; None is all of them.
            latents: (n, ...), which `decode` turns into the events; None: the model's own.
            latent_sampler: draws such latents, as `kexue.similarity.HubSampler` does, all at once; `generator` is then
                for it, and no list.
            options: of the model; with latents those of its `decode`.

        Raises:
            ValueError: a negative n, a batch size below 1, a condition or latents of another length; latents as well as
                a sampler of them.
            NotSupported: the model cannot sample, or with latents cannot decode.
            KexueError: NaN or infinity in a sample.
        """
        n = check_count(n, "n")
        size = n if batch_size is None else check_count(batch_size, "batch_size", min(n, 1))
        if latent_sampler is not None:
            if latents is not None:
                raise ValueError("latents and latent_sampler are both given; leave one of them out")
            latents = draw_latents(latent_sampler, n, generator)
        make = self._from_noise(Noise(generator, n, self.device)) if latents is None else self._from_latents(latents, n)
        classes = self._spread(condition, n)
        with torch.no_grad(), evaluating(self):
            parts = [
                make(rows, condition=None if classes is None else classes[rows], **options)
                for rows in (slice(start, start + size) for start in range(0, max(n, 1), max(size, 1)))
            ]
        x = torch.cat(parts)
        if may_read(x) and not is_finite(x):
            raise KexueError(
                f"sample {find_not_finite(x)} of {n} of the {type(self).__name__} has NaN or infinity.",
                remedy="Its weights may have diverged: go back to an earlier checkpoint, and train with a smaller "
                "learning rate. A temperature below 1, where there is one, may help.",
            )
        return x

    def _from_noise(self, noise: Noise) -> Callable[..., Tensor]:
        """Return what draws some of the events of a noise."""
        return lambda rows, **options: self.draw(noise[rows], **options)

    def _from_latents(self, latents: Tensor, n: int) -> Callable[..., Tensor]:
        """Return what decodes some of the latents of n events."""
        if not isinstance(latents, Tensor):
            raise TypeError(f"latents must be a tensor, got {type(latents).__name__}; use torch.as_tensor(latents)")
        if latents.shape[:1] != (n,):
            raise ValueError(f"latents must be one for each of {n} events, got shape {tuple(latents.shape)}")
        weight = next(self.parameters(), None)
        z = latents.to(self.device, weight.dtype if weight is not None and latents.is_floating_point() else None)

        def decode(rows: slice, *, condition: Tensor | None, **options: Any) -> Tensor:
            return self.decode(z[rows], **options, **({} if condition is None else {"condition": condition}))

        return decode

    def _spread(self, condition: Tensor | int | None, n: int) -> Tensor | None:
        """Return one class, or vector, for each of n events, on the model's device; None without a condition."""
        if condition is None:
            return None
        classes = torch.as_tensor(condition, device=self.device)
        if classes.ndim == 0 or (classes.ndim == 1 and classes.is_floating_point()):
            classes = classes.expand(n, *classes.shape)
        if len(classes) != n:
            raise ValueError(f"condition must be one class, or one for each of {n} events, got {len(classes)}")
        return classes

    def draw(self, noise: Noise, /, *, condition: Tensor | None, **options: Any) -> Tensor:
        """Return len(noise) events made of this noise; what `sample` calls, batch by batch."""
        self._refuse("sample")

    def log_prob(
        self, x: Tensor, *, condition: Tensor | None = None, generator: torch.Generator | int | None = None
    ) -> Tensor:
        """Return the log density (B,) of events, in nats: exact, or an unbiased estimate."""
        self._refuse("log_prob")

    def log_prob_bound(self, x: Tensor, **options: Any) -> Tensor:
        """Return a lower bound (B,) of the log density of events, in nats."""
        self._refuse("log_prob_bound")

    def energy(self, x: Tensor) -> Tensor:
        """Return the energy (B,) of events: low where they are likely, on a scale that the model states."""
        self._refuse("energy")

    def latents(self, n: int, *, generator: torch.Generator | Sequence[torch.Generator] | int | None = None) -> Tensor:
        """Return n latents of the prior, of which `decode` makes what `sample` returns for the same generator."""
        self._refuse("latents")

    def encode(self, x: Tensor, **options: Any) -> Any:
        """Return the latents of events."""
        self._refuse("encode")

    def decode(self, z: Tensor, **options: Any) -> Tensor:
        """Return the events of latents."""
        self._refuse("decode")

    def loss(self, batch: Any, *, generator: torch.Generator | int | None = None) -> LossOutput:
        """Return the loss of a batch, a scalar, and its parts."""
        self._refuse("loss")

    def training_step(
        self, batch: Any, *, optimizer_index: int = 0, generator: torch.Generator | None = None
    ) -> LossOutput:
        """Return the loss of one step of `kexue.train.Trainer`."""
        return self.loss(batch, generator=generator)

    def _refuse(self, operation: str) -> NoReturn:
        able = ", ".join(self.operations) or "none"
        raise NotSupported(f"{type(self).__name__} does not support {operation}; it supports: {able}.")

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        first = next(iter([*self.parameters(), *self.buffers()]), None)
        return torch.device("cpu") if first is None else first.device

    def check_events(self, x: Tensor) -> None:
        """Raise unless `x` is a batch of events (B, *event_shape), of finite floats.

        Raises:
            ValueError: another shape, NaN or infinity.
            TypeError: not a tensor of floats.
        """
        check_batch(x, self.event_shape)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights into one safetensors file, by their names in `state_dict`; it is complete, or not there."""
        state = {name: value.detach().to("cpu").contiguous().clone() for name, value in self.state_dict().items()}
        with replacing(path) as temporary:
            save_file(state, temporary, metadata={"model": type(self).__name__})

    def load(self, path: str | os.PathLike[str]) -> Self:
        """Read the weights that `save` has written from a model of the same construction; return the model.

        Raises:
            CheckpointError: no such file, a damaged one, one of another class; missing or additional weights, weights
                of another shape, NaN or infinity, all of them named. The model is unchanged then.
        """
        state = _read_weights(path, type(self).__name__)
        own = self.state_dict()
        faults = [f"{name} is missing" for name in own if name not in state]
        faults += [f"{name} is additional" for name in state if name not in own]
        faults += [
            f"{name} has shape {tuple(value.shape)}, expected {tuple(own[name].shape)}"
            for name, value in state.items()
            if name in own and value.shape != own[name].shape
        ]
        if faults:
            raise CheckpointError(
                f"{os.fspath(path)} does not fit this {type(self).__name__}: {'; '.join(faults)}.",
                remedy="Build the model with the arguments of the one that was saved.",
            )
        broken = [name for name, value in state.items() if not bool(value.isfinite().all())]
        if broken:
            raise CheckpointError(
                f"{os.fspath(path)} has NaN or infinity in {', '.join(broken)}.",
                remedy="Go back to an earlier checkpoint, and train with a smaller learning rate.",
            )
        self.load_state_dict(state)
        return self


def check_batch(x: Tensor, event_shape: tuple[int, ...], name: str = "x") -> None:
    """Raise unless these are finite floats (B, *event_shape); the errors are those of `check_events`."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name} must be a tensor of floats, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.ndim != len(event_shape) + 1 or tuple(x.shape[1:]) != event_shape:
        raise ValueError(f"{name} must have shape (B, {', '.join(map(str, event_shape))}), got {tuple(x.shape)}")
    if may_read(x) and not is_finite(x):
        raise ValueError(f"{name} has NaN or infinity, first in item {find_not_finite(x)}; leave such items out")


def find_not_finite(x: Tensor) -> int:
    """Return the first item of x (B, *event) that has NaN or infinity; there is one."""
    return int((~x.isfinite()).reshape(len(x), -1).any(1).nonzero()[0])


def unpack_batch(batch: Any, num_classes: int | None) -> tuple[Tensor, Tensor | None]:
    """Return events and classes of a batch to train on; the classes of a pair are dropped where the model has none.

    Args:
        batch: events x, or (x,) or (x, classes), as a `DataLoader` returns them.
        num_classes: of the model; None: it has none.

    Raises:
        ValueError: more than two parts; no event, of which the mean of a loss is not a number.
    """
    parts = batch if isinstance(batch, (tuple, list)) else (batch,)
    if len(parts) not in (1, 2):
        raise ValueError(f"a batch must be events x, or a pair (x, classes), got {len(parts)} parts")
    x, classes = (*parts, None)[:2]
    if isinstance(x, Tensor) and x.ndim:
        check_not_empty(x)
    return x, None if num_classes is None else classes


def check_not_empty(x: Tensor) -> None:
    """Raise ValueError for a batch of no event, of which the mean of a loss is not a number."""
    if not len(x):
        raise ValueError("a batch must have one event at least, got none")


def check_condition(condition: Tensor | None, n: int, num_classes: int | None) -> Tensor | None:
    """Return the classes of n events as int64; raise where they are missing, not expected or out of range.

    Args:
        condition: classes (n,) in [0, num_classes); None without.
        n: number of events.
        num_classes: of the model; None for a model without classes.
    """
    if condition is not None and num_classes is None:
        raise ValueError("this model has no classes, got a condition; build it with num_classes to use conditions")
    if condition is None and num_classes is not None:
        raise ValueError(f"this model has {num_classes} classes, got none; give a condition, a class for each event")
    if condition is None or num_classes is None:
        return None
    return check_classes(condition, n, num_classes, "condition")


def _read_weights(path: str | os.PathLike[str], model: str) -> dict[str, Tensor]:
    """Return the weights of a file by name; CheckpointError where it is damaged, or holds another class of model."""
    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("model")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{os.fspath(path)} cannot be loaded: {error}.", remedy="Name a file that GenerativeModel.save has written."
        ) from error
    if kind != model:
        raise CheckpointError(
            f"{os.fspath(path)} holds {'weights without a name of a model' if kind is None else f'a {kind}'}, "
            f"expected a {model}.",
            remedy="Load it into a model of its class.",
        )
    return state
