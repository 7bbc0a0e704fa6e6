"""Couplings: one part of an event stays and decides how the other part is moved, so the inverse is as cheap."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kexue._tensors import at_least_float32
from kexue.generative.flow.chain import Chain
from kexue.generative.flow.networks import ZeroConv2d
from kexue.generative.flow.transforms import Mapped, Transform, spread, sum_events


def bound(values: Tensor, limit: float) -> Tensor:
    """Return limit tanh(values / limit): nearly the values themselves near 0, never beyond the limit."""
    return limit * torch.tanh(values / limit)


_LOG_SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda r: bound(r, 2.0),
    "sigmoid": lambda r: nn.functional.logsigmoid(r + 2),
    "exp": lambda r: r,
}


class _Coupling(Transform):
    """What both couplings share: which part stays. A subclass moves the other part, forwards and backwards.

    Attributes:
        answers: numbers that the network gives for each one that is moved.
    """

    mask: Tensor | None
    answers: int

    def __init__(self, net: Callable[..., Tensor], *, mask: Tensor | None = None, swap: bool = False) -> None:
        super().__init__()
        if mask is not None and (mask.dtype != torch.bool or bool(mask.all()) or not bool(mask.any())):
            raise ValueError(f"mask must be bool, with values that stay and values that move, got {mask}")
        if mask is not None and swap:
            raise ValueError("swap is of couplings without a mask; use the mask ~mask instead")
        self.net = net
        self.swap = swap
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the event with one part moved, and the log-determinant."""
        return self._map(x, condition, back=False)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the event with this part moved back, and the log-determinant."""
        return self._map(z, condition, back=True)

    def _map(self, x: Tensor, condition: Tensor | None, *, back: bool) -> Mapped:
        move = self._move_back if back else self._move
        if self.mask is not None:
            return move(x, self._ask(x * self.mask, condition, x), ~self.mask)
        left = x.shape[1] // 2
        parts = torch.split(x, [left, x.shape[1] - left], 1)
        stays, moves = parts if not self.swap else parts[::-1]
        moved, logdet = move(moves, self._ask(stays, condition, moves), None)
        return torch.cat([moved, stays] if self.swap else [stays, moved], 1), logdet

    def _ask(self, stays: Tensor, condition: Tensor | None, moves: Tensor) -> Tensor:
        """Return the answer of the network; ValueError for another shape, of which log-determinants would be wrong."""
        answer = at_least_float32(self.net(stays, condition))
        batch, channels, *places = moves.shape
        if answer.shape != (batch, self.answers * channels, *places):
            expected = (batch, self.answers * channels, *places)
            raise ValueError(f"the network of the coupling must answer {expected}, got {tuple(answer.shape)}")
        return answer

    @abstractmethod
    def _move(self, x: Tensor, answer: Tensor, moves: Tensor | None) -> Mapped:
        """Return x moved, where `moves` is True, and the log-determinant; `moves` None: everywhere."""

    @abstractmethod
    def _move_back(self, z: Tensor, answer: Tensor, moves: Tensor | None) -> Mapped:
        """Return what `_move` has made z of, and the log-determinant of the way back."""


class AdditiveCoupling(_Coupling):
    """NICE's coupling: z1 = x1, z2 = x2 + m(x1); log-determinant 0.

    Args:
        net: m, called ``net(x1, condition)``; its answer has the shape of x2. With a mask, that of x.
        mask: bool, shape of an event, True for the values that stay: the network then reads the event with the others
            set to 0. None: the first half of the channels stays.
        swap: the second half stays instead; without a mask only.

    Raises:
        ValueError: a mask that is not bool, or of one value only; a mask and `swap`; an answer of another shape.

    Source: kexue.fm/archives/5776.

    Example:
        >>> layer = AdditiveCoupling(lambda stays, condition: 10 * stays)
        >>> layer(torch.tensor([[1.0, 2.0]]))[0]
        tensor([[ 1., 12.]])
    """

    answers = 1

    def _move(self, x: Tensor, answer: Tensor, moves: Tensor | None) -> Mapped:
        return x + (answer if moves is None else answer * moves), spread(0.0, x)

    def _move_back(self, z: Tensor, answer: Tensor, moves: Tensor | None) -> Mapped:
        return z - (answer if moves is None else answer * moves), spread(0.0, z)


class AffineCoupling(_Coupling):
    """RealNVP's and Glow's coupling: z1 = x1, z2 = e^s(x1) x2 + t(x1); log-determinant sum s.

    Args:
        net: called ``net(x1, condition)``; its answer has twice the channels of x2: r, from which s is made, then t.
            With a mask, twice those of x.
        mask, swap: as in `AdditiveCoupling`.
        scale: s of r: ``"tanh"``, 2 tanh(r / 2), bounded on both sides, so no event explodes;
            ``"sigmoid"``, log sigmoid(r + 2), Glow's, which starts at factors of 0.88; ``"exp"``, r itself.

    Raises:
        ValueError: another `scale`; for the rest as in `AdditiveCoupling`.

    Source: kexue.fm/archives/5807.

    Example:
        >>> layer = AffineCoupling(lambda stays, condition: torch.cat([0 * stays, stays], 1))
        >>> layer(torch.tensor([[1.0, 2.0]]))
        (tensor([[1., 3.]]), tensor([0.]))
    """

    answers = 2

    def __init__(
        self,
        net: Callable[..., Tensor],
        *,
        mask: Tensor | None = None,
        swap: bool = False,
        scale: Literal["tanh", "sigmoid", "exp"] = "tanh",
    ) -> None:
        super().__init__(net, mask=mask, swap=swap)
        if scale not in _LOG_SCALES:
            raise ValueError(f"scale must be 'tanh', 'sigmoid' or 'exp', got {scale!r}")
        self.scale = scale

    def _move(self, x: Tensor, answer: Tensor, moves: Tensor | None) -> Mapped:
        s, t = self._read(answer, moves)
        return torch.addcmul(t, x, s.exp()), sum_events(s)  # section "Couplings"

    def _move_back(self, z: Tensor, answer: Tensor, moves: Tensor | None) -> Mapped:
        s, t = self._read(answer, moves)
        return (z - t) / s.exp(), -sum_events(s)

    def _read(self, answer: Tensor, moves: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return s and t."""
        r, t = answer.chunk(2, 1)
        s = _LOG_SCALES[self.scale](r)
        return (s, t) if moves is None else (s * moves, t * moves)


class Split(Transform):
    """Half of the channels leave for the latents, standardised by what the other half says of them; the rest goes on.

    x1 becomes (x1 - mean(x2)) e^-u(x2), and x2 goes through `rest`. So the latents that leave early have a conditional
    normal distribution p(x1 | x2), not a standard one. Latents are vectors: those of x1, then those of `rest`.

    Args:
        shape: of an event, (C,) or (C, H, W); x1 is its first C // 2 channels.
        rest: transforms of x2, whose latents are vectors: they end with `Flatten`, or another `Split`.

    Mean and u come from one linear layer, or 3 x 3 convolution, that starts at zero; u is bounded by 5 tanh(u / 5).

    Source: kexue.fm/archives/5807.
    """

    def __init__(self, shape: Sequence[int], rest: Iterable[Transform]) -> None:
        super().__init__()
        channels, *places = shape
        if channels < 2:
            raise ValueError(f"an event of >= 2 channels is expected, to be split, got shape {tuple(shape)}")
        left = channels // 2
        self.left = (left, *places)
        self.prior = ZeroConv2d(channels - left, 2 * left) if places else nn.Linear(channels - left, 2 * left)
        nn.init.zeros_(self.prior.weight)
        nn.init.zeros_(self.prior.bias)  # type: ignore[arg-type]
        self.rest = Chain(rest)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the latents of both halves (B, D), and the log-determinant."""
        z1, x2, logdet = self._divide(x)
        z2, more = self.rest(x2, condition)
        return self._join(z1, z2), logdet + more

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the events of latents (B, D), and the log-determinant."""
        size = math.prod(self.left)
        x2, more = self.rest.inverse(z[:, size:], condition)
        mean, u = self._foresee(x2)
        x1 = torch.addcmul(mean, z[:, :size].reshape(len(z), *self.left), u.exp())
        return torch.cat([x1, x2], 1), more + sum_events(u)

    @torch.no_grad()
    def initialize(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Set `rest` from a batch; return the batch's latents."""
        z1, x2, _ = self._divide(x)
        return self._join(z1, self.rest.initialize(x2, condition))

    def _divide(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the latents of x1, x2, and the log-determinant."""
        x1, x2 = torch.split(x, [self.left[0], x.shape[1] - self.left[0]], 1)
        mean, u = self._foresee(x2)
        return (x1 - mean) * (-u).exp(), x2, -sum_events(u)  # section "Several scales"

    def _foresee(self, x2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log standard deviation of x1 given x2."""
        mean, u = at_least_float32(self.prior(x2)).chunk(2, 1)
        return mean, bound(u, 5.0)

    def _join(self, z1: Tensor, z2: Tensor) -> Tensor:
        if z2.ndim != 2:
            raise ValueError(f"rest must end with Flatten or Split, its latents are {tuple(z2.shape)}, not vectors")
        return torch.cat([z1.flatten(1), z2], 1)


def checkerboard(shape: Sequence[int], *, swap: bool = False) -> Tensor:
    """Return the mask (C, H, W) of the fields of one colour; with `swap` of the other.

    Example:
        >>> checkerboard((1, 2, 2)).int()[0]
        tensor([[1, 0],
                [0, 1]], dtype=torch.int32)
    """
    if len(shape) != 3:
        raise ValueError(f"shape must be (C, H, W), of an image, got {tuple(shape)}")
    channels, height, width = shape
    fields = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == int(swap)
    return fields.expand(channels, height, width).clone()
