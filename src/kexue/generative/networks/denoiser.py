"""What a network gets to know of time and condition, and a denoiser of vectors."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from kexue._tensors import check_classes
from kexue.generative.networks.mlp import ResidualMLP, Shape


class Denoised(NamedTuple):
    """Output of a denoiser, in the form of the diffusers library: `sample`, of the shape of the input."""

    sample: Tensor


def time_features(t: Tensor, dim: int = 64) -> Tensor:
    """Return sines and cosines of times (B, dim).

    - t of floats, times in [0, 1]: [sin(t f), cos(t f)] with dim/2 frequencies f, geometric from 1 to 1000.
    - t of integers, numbers of steps: f geometric from 1 down, f_i = 10000^(-2i/dim), as in the Transformer.

    Args:
        t: (B,), floats or integers.
        dim: even number >= 4.

    Example:
        >>> time_features(torch.tensor([0.0, 0.5])).shape
        torch.Size([2, 64])
    """
    half = dim // 2
    place = torch.arange(half, device=t.device, dtype=torch.float32)
    if t.is_floating_point():
        frequencies = torch.exp(place * (math.log(1000) / (half - 1)))
    else:
        frequencies = torch.exp(place * (-math.log(10_000) / half))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


class TimeAndClass(nn.Module):
    """Vector of a time and a condition: 64 features, Linear, SiLU, Linear; plus that of the condition.

    A class has a row of a table, which has one row more than there are classes, the last one for "no class": guidance
    without a classifier trains it by replacing some labels with the number `num_classes`. A vector, such as an encoded
    text, goes through a linear map; zeros are "no condition".

    Args:
        dim: size of the vector, >= 1.
        num_classes: number of classes, >= 1; None: no labels are accepted.
        condition_dim: size of vectors as conditions, >= 1; None: none are accepted.

    Attributes:
        no_condition: class number, or value of the vector, that means "no condition"; None without conditions.
    """

    def __init__(self, dim: int, num_classes: int | None = None, condition_dim: int | None = None) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("condition_dim", condition_dim)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1 or None, got {value}")
        if num_classes is not None and condition_dim is not None:
            raise ValueError("conditions are classes or vectors: give num_classes or condition_dim, not both")
        self.num_classes, self.condition_dim = num_classes, condition_dim
        self.no_condition = 0 if condition_dim is not None else num_classes
        self.states = None if condition_dim is None else nn.Linear(condition_dim, dim)
        self.time = nn.Sequential(nn.Linear(64, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.table = None if num_classes is None else nn.Embedding(num_classes + 1, dim)

    def forward(
        self, n: int, timestep: Tensor | float, class_labels: Tensor | None, states: Tensor | None = None
    ) -> Tensor:
        """Return vectors (n, dim).

        Args:
            n: items of the batch.
            timestep: a number, or one for each item (n,): floats are times in [0, 1], integers numbers of steps.
            class_labels: class numbers (n,) in [0, num_classes], the last of which is "no class"; None is that.
            states: vectors (n, condition_dim); None is zeros.
        """
        weight = next(self.parameters())
        device = weight.device
        t = torch.as_tensor(timestep, device=device).reshape(-1)
        if len(t) not in (1, n):
            raise ValueError(f"timestep must be one number, or one for each of {n} items, got {len(t)}")
        vector = cast(Tensor, self.time(time_features(t).to(weight.dtype))).expand(n, -1)
        vector = vector + self._add_states(n, states)
        if self.table is None or self.num_classes is None:
            if class_labels is not None:
                raise ValueError("class_labels are given, but the network was built without classes: set num_classes")
            return vector
        if class_labels is None:
            class_labels = torch.full((n,), self.num_classes, device=device)
        labels = check_classes(class_labels, n, self.num_classes + 1, "class_labels")
        return cast(Tensor, vector + self.table(labels))

    def _add_states(self, n: int, states: Tensor | None) -> Tensor | float:
        """Return what the vectors of conditions add, (n, dim)."""
        if self.states is None or self.condition_dim is None:
            if states is not None:
                raise ValueError("vectors are given, but the network was built without them: set condition_dim")
            return 0.0
        weight = self.states.weight
        if states is None:
            states = torch.zeros(n, self.condition_dim, device=weight.device)
        if states.shape != (n, self.condition_dim):
            raise ValueError(f"encoder_hidden_states must be ({n}, {self.condition_dim}), got {tuple(states.shape)}")
        return cast(Tensor, self.states(states.to(weight)))


class MLPDenoiser(nn.Module):
    """Denoiser of events of any shape, without convolutions: a `ResidualMLP` that knows the time and the class.

    It is called as a network of the diffusers library: ``net(sample, timestep, class_labels=None,
    encoder_hidden_states=None, return_dict=True)`` returns an object with `sample`, or the tuple (sample,).

    Args:
        dim: number of values of an event, or its shape.
        hidden: width, >= 1.
        blocks: residual blocks, >= 0.
        num_classes: number of classes, >= 1; None: no labels are accepted.
        condition_dim: size of vectors as conditions, such as encoded texts; None: none are accepted.

    Raises:
        ValueError: a size out of range; on a call, another shape, a label out of range, labels without classes.

    Example:
        >>> net = MLPDenoiser(2, num_classes=10)
        >>> net(torch.zeros(5, 2), torch.rand(5), class_labels=torch.arange(5)).sample.shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: Shape,
        *,
        hidden: int = 256,
        blocks: int = 3,
        num_classes: int | None = None,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.net = ResidualMLP(dim, hidden=hidden, blocks=blocks)
        self.event_shape, self.num_classes = self.net.input_shape, num_classes
        self.condition = TimeAndClass(hidden, num_classes, condition_dim)
        self.no_condition = self.condition.no_condition

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        *,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = True,
    ) -> Denoised | tuple[Tensor]:
        """Return the output, of the shape of `sample`.

        Args:
            sample: (B, *shape).
            timestep: a number, or one for each item (B,): floats are times in [0, 1], integers numbers of steps.
            class_labels: (B,) in [0, num_classes], the last of which is "no class"; None is that.
            encoder_hidden_states: (B, condition_dim); None and zeros are "no condition".
            return_dict: False returns the tuple (sample,).
        """
        out = self.net(sample, self.condition(len(sample), timestep, class_labels, encoder_hidden_states))
        return Denoised(out) if return_dict else (out,)
