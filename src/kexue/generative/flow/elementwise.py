"""Transforms without a network that work element by element: factors, logits, activation normalisation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kexue._tensors import may_read
from kexue.generative.flow.transforms import (
    Mapped,
    Transform,
    along_channels,
    check_channels,
    check_shape,
    count_places,
    find_scale_faults,
    spread,
    sum_events,
)


class Scaling(Transform):
    """A learned factor for each value: z = e^s x, log-determinant sum s; the last layer of NICE.

    It lets a model of fewer dimensions than the data has shrink the others, and is the same as a base with learned
    standard deviations.

    Args:
        shape: of an event.

    Attributes:
        log_scale: s, of that shape; starts at 0.

    Source: kexue.fm/archives/5776.

    Example:
        >>> Scaling((3,))(torch.ones(2, 3))[1]
        tensor([0., 0.], grad_fn=...)
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(tuple(shape)))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return e^s x, sum s."""
        check_shape(x, tuple(self.log_scale.shape))
        return x * self.log_scale.exp(), spread(self.log_scale.sum(), x)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return e^-s z, -sum s."""
        check_shape(z, tuple(self.log_scale.shape))
        return z * (-self.log_scale).exp(), spread(-self.log_scale.sum(), z)

    def find_faults(self, weights: Mapping[str, Tensor]) -> Iterator[str]:
        """Yield a factor that is not positive and finite."""
        yield from find_scale_faults(weights["log_scale"])


class Logit(Transform):
    """Values of [0, 1] onto the whole line: z = logit(a + (1 - 2a) x).

    Args:
        margin: a, in (0, 0.5): how far 0 and 1 stay from the ends, where the logit is infinite.

    Raises:
        ValueError: `margin` out of its range; in `forward` values below 0 or above 1.

    Example:
        >>> Logit(0.05)(torch.tensor([[0.5]]))[0]
        tensor([[0.]])
    """

    def __init__(self, margin: float = 0.05) -> None:
        super().__init__()
        if not 0 < margin < 0.5:
            raise ValueError(f"margin must be in (0, 0.5), got {margin}")
        self.margin = margin

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the logits, and minus the sum of log p (1 - p) / (1 - 2a)."""
        if may_read(x) and x.numel():
            low, high = (float(end) for end in x.detach().aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(f"x must be in [0, 1], got values in [{low:.4g}, {high:.4g}]; dequantize images first")
        z = torch.logit(self.margin + (1 - 2 * self.margin) * x)
        return z, self._stretch(z)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return (sigmoid(z) - a) / (1 - 2a), which is outside [0, 1] by at most a / (1 - 2a)."""
        return (torch.sigmoid(z) - self.margin) / (1 - 2 * self.margin), -self._stretch(z)

    def _stretch(self, z: Tensor) -> Tensor:
        """Return sum log dz/dx, with dz/dx = (1 - 2a) / (p (1 - p)) and p = sigmoid(z)."""
        return sum_events(log_logit_slope(z)) + math.log1p(-2 * self.margin) * math.prod(z.shape[1:])


class ActNorm(Transform):
    """A shift and a factor for each channel: z = e^s (x + b), log-determinant H W sum s.

    `initialize` chooses b and s so that each channel of the batch gets mean 0 and standard deviation 1. Without it the
    transform starts as the identity.

    Args:
        channels: C of events (C,) or (C, H, W).
        init: ``"data"``, or ``"zeros"``: `initialize` leaves b and s at 0.

    Attributes:
        shift: b (C,).
        log_scale: s (C,).

    Raises:
        ValueError: in `initialize`, a batch of one event, whose standard deviation is no estimate.

    A channel that is constant in the batch is only shifted, with a warning.

    Source: kexue.fm/archives/5807.

    Example:
        >>> layer = ActNorm(1)
        >>> layer.initialize(torch.tensor([[1.0], [3.0]])).flatten()
        tensor([-1., 1.])
    """

    def __init__(self, channels: int, *, init: Literal["data", "zeros"] = "data") -> None:
        super().__init__()
        if init not in {"data", "zeros"}:
            raise ValueError(f"init must be 'data' or 'zeros', got {init!r}")
        self.init = init
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return e^s (x + b), H W sum s."""
        check_channels(x, len(self.shift))
        z = (x + along_channels(self.shift, x)) * along_channels(self.log_scale.exp(), x)
        return z, spread(count_places(x) * self.log_scale.sum(), x)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return e^-s z - b, -H W sum s."""
        check_channels(z, len(self.shift))
        x = z * along_channels((-self.log_scale).exp(), z) - along_channels(self.shift, z)
        return x, spread(-count_places(z) * self.log_scale.sum(), z)

    @torch.no_grad()
    def initialize(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Set b and s from a batch of >= 2 events; return the batch's latents."""
        check_channels(x, len(self.shift))
        if self.init == "data":
            self._measure(x)
        return self.forward(x)[0]

    def _measure(self, x: Tensor) -> None:
        if len(x) < 2:
            raise ValueError(f"initialization needs a batch of >= 2 events, got {len(x)}; use some tens or hundreds")
        values = x.transpose(0, 1).flatten(1).double()
        std, mean = torch.std_mean(values, 1, correction=0)
        constant = std <= 1e-6 * values.abs().amax(1).clamp(min=1)
        if bool(constant.any()):
            warnings.warn(
                f"{int(constant.sum())} of {len(std)} channels, first channel {int(constant.nonzero()[0])}, "
                f"are constant in the batch; they are shifted to 0 but not scaled",
                stacklevel=2,
            )
        self.shift.copy_(-mean)
        self.log_scale.copy_(-std.masked_fill(constant, 1.0).log())

    def find_faults(self, weights: Mapping[str, Tensor]) -> Iterator[str]:
        """Yield a factor that is not positive and finite."""
        yield from find_scale_faults(weights["log_scale"])


def log_logit_slope(z: Tensor) -> Tensor:
    """Return log of the slope of the logit, 1 / (p (1 - p)), where p = sigmoid(z)."""
    return -nn.functional.logsigmoid(z) - nn.functional.logsigmoid(-z)
