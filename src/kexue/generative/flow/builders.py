"""The flows of the articles, ready to train: NICE, RealNVP, Glow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kexue._counts import check_count
from kexue.generative.flow.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    Split,
    checkerboard,
)
from kexue.generative.flow.elementwise import ActNorm, Logit, Scaling
from kexue.generative.flow.flow import Flow, StandardNormal
from kexue.generative.flow.linear import InvertibleConv1x1
from kexue.generative.flow.networks import CouplingConv, CouplingMLP
from kexue.generative.flow.transforms import Flatten, Permutation, Squeeze, Transform

Kind = Literal["affine", "additive"]
Mixing = Literal["swap", "reverse", "random", "linear"]


def nice(
    dim: int | Sequence[int],
    *,
    couplings: int = 4,
    hidden: Sequence[int] = (1000,) * 5,
    margin: float | None = None,
    num_classes: int | None = None,
) -> Flow:
    """Return NICE: additive couplings of the values at even and at odd places in turn, then a factor for each value.

    Args:
        dim: D of vectors, >= 2, or the shape of images, which are flattened.
        couplings: >= 2, so that every value is moved.
        hidden: widths of each network between its input and its output.
        margin: a of a first `Logit` layer, for events in [0, 1]; None: events of the whole line, as in the article.
        num_classes: of a conditional model.

    Source: kexue.fm/archives/5776.

    Example:
        >>> flow = nice(4, hidden=(16, 16))
        >>> tuple(flow.sample(2, generator=0).shape)
        (2, 4)
    """
    shape, size = _read_shape(dim)
    couplings, hidden = check_count(couplings, "couplings", 2), _read_widths(hidden)
    order = torch.cat([torch.arange(0, size, 2), torch.arange(1, size, 2)])
    start: list[Transform] = [] if margin is None else [Logit(margin)]
    parts: list[Transform] = [*start, *_flatten(shape), Permutation(order)]
    parts += [_vector_coupling("additive", size, hidden, num_classes, swap=i % 2 == 1) for i in range(couplings)]
    return Flow([*parts, Scaling((size,))], StandardNormal((size,)), event_shape=shape, num_classes=num_classes)


def realnvp(
    dim: int | Sequence[int],
    *,
    couplings: int = 8,
    hidden: Sequence[int] = (128, 128),
    kind: Kind = "affine",
    mixing: Mixing = "random",
    levels: int = 2,
    margin: float | None = None,
    num_classes: int | None = None,
) -> Flow:
    """Return RealNVP: affine couplings, each after an `ActNorm`, with the values mixed between them.

    For vectors half of the values moves the other half. For images (C, H, W) each level has `couplings` on
    checkerboards, then `Squeeze`, as many on halves of the channels, and `Split`, which lets half of the channels go.

    Args:
        dim: D of vectors, >= 2, or the shape (C, H, W) of images.
        couplings: of a vector; of images, of each sort at each level; >= 2.
        hidden: widths of each network; of images the first one is the number of channels.
        kind: ``"affine"``, or ``"additive"`` as in NICE.
        mixing: of vectors: ``"swap"``, the halves take turns; ``"random"``, a fixed random order every other time, so
            that each value is moved once in two couplings; ``"reverse"``, all values in the opposite order before each
            coupling; ``"linear"``, a learned matrix before each. Images swap.
        levels: scales of images, >= 1; height and width are divisible by 2**levels.
        margin: a of a first `Logit` layer, for events in [0, 1]; None: events of the whole line.
        num_classes: of a conditional model.

    Source: kexue.fm/archives/5807.

    Example:
        >>> flow = realnvp(2, couplings=4, hidden=(16,))
        >>> flow.log_prob(torch.zeros(1, 2))
        tensor([-1.8379], grad_fn=...)
    """
    shape, size = _read_shape(dim)
    couplings, hidden = check_count(couplings, "couplings", 2), _read_widths(hidden)
    if mixing not in get_args(Mixing):
        raise ValueError(f"mixing must be 'swap', 'reverse', 'random' or 'linear', got {mixing!r}")
    start: list[Transform] = [] if margin is None else [Logit(margin)]
    if len(shape) == 3:
        _check_levels(shape, levels)
        parts = _image_levels(shape, levels, couplings, hidden[0], kind, num_classes)
        return Flow([*start, *parts], StandardNormal((size,)), event_shape=shape, num_classes=num_classes)
    for i in range(couplings):
        swap = mixing in {"swap", "random"} and i % 2 == 1
        mixed = [] if mixing == "random" and swap else _mix(mixing, size)
        start += [ActNorm(size), *mixed, _vector_coupling(kind, size, hidden, num_classes, swap=swap)]
    return Flow([*start, ActNorm(size)], StandardNormal((size,)), num_classes=num_classes)


def glow(
    shape: Sequence[int],
    *,
    levels: int = 3,
    steps: int = 32,
    hidden: int = 512,
    kind: Kind = "affine",
    scale: Literal["sigmoid", "tanh", "exp"] = "sigmoid",
    margin: float | None = None,
    num_classes: int | None = None,
) -> Flow:
    """Return Glow: at each level `Squeeze`, steps of `ActNorm`, `InvertibleConv1x1` and a coupling, then `Split`.

    The latents are vectors: those that leave first come first. Those of the last level have a learned mean and scale.

    Args:
        shape: (C, H, W) of images; height and width are divisible by 2**levels.
        levels: scales, >= 1.
        steps: of each level, >= 1.
        hidden: channels of each network.
        kind: ``"affine"`` or ``"additive"``.
        scale: of `AffineCoupling`; ``"sigmoid"`` is Glow's.
        margin: a of a first `Logit` layer, for events in [0, 1]; None: without.
        num_classes: of a conditional model.

    Raises:
        ValueError: a shape that cannot be halved `levels` times.

    Source: kexue.fm/archives/5807.

    Example:
        >>> flow = glow((1, 8, 8), levels=2, steps=2, hidden=16)
        >>> tuple(flow.encode(torch.rand(3, 1, 8, 8)).shape), tuple(flow.sample(2, generator=0).shape)
        ((3, 64), (2, 1, 8, 8))
    """
    shape, size = _read_shape(shape)
    _check_levels(shape, levels)
    steps, hidden = check_count(steps, "steps", 1), check_count(hidden, "hidden", 1)

    def level(channels: int) -> list[Transform]:
        parts: list[Transform] = []
        for _ in range(steps):
            parts += [ActNorm(channels), InvertibleConv1x1(channels)]
            parts += [_image_coupling(kind, channels, hidden, num_classes, scale=scale)]
        return parts

    parts: list[Transform] = []
    for number in reversed(range(levels)):  # from the last level to the first: each is the rest of the one before
        channels, height, width = shape[0] * 2 ** (number + 2), shape[1] >> number + 1, shape[2] >> number + 1
        end = (
            [ActNorm(channels, init="zeros"), Flatten((channels, height, width))]
            if number == levels - 1
            else [Split((channels, height, width), parts)]
        )
        parts = [Squeeze(), *level(channels), *end]
    start: list[Transform] = [] if margin is None else [Logit(margin)]
    return Flow([*start, *parts], StandardNormal((size,)), event_shape=shape, num_classes=num_classes)


def _image_levels(
    shape: tuple[int, ...], levels: int, couplings: int, hidden: int, kind: Kind, num_classes: int | None
) -> list[Transform]:
    """Return the levels of RealNVP on images, whose latents are vectors."""
    channels, height, width = shape
    parts: list[Transform] = []
    for i in range(couplings):
        mask = checkerboard(shape, swap=i % 2 == 1)
        parts += [ActNorm(channels), _image_coupling(kind, channels, hidden, num_classes, mask=mask)]
    inner = (4 * channels, height // 2, width // 2)
    parts.append(Squeeze())
    for i in range(couplings):
        parts += [ActNorm(inner[0]), _image_coupling(kind, inner[0], hidden, num_classes, swap=i % 2 == 1)]
    if levels == 1:
        return [*parts, ActNorm(inner[0], init="zeros"), Flatten(inner)]
    rest = _image_levels((2 * channels, *inner[1:]), levels - 1, couplings, hidden, kind, num_classes)
    return [*parts, Split(inner, rest)]


def _vector_coupling(
    kind: Kind, size: int, hidden: Sequence[int], num_classes: int | None, *, swap: bool
) -> AdditiveCoupling | AffineCoupling:
    first, second = size // 2, size - size // 2
    stays, moves = (second, first) if swap else (first, second)

    def net(n_out: int) -> CouplingMLP:
        return CouplingMLP(stays, n_out, hidden, condition=_class_reader(num_classes, hidden[0]))

    return _couple(kind, net, moves, swap=swap)


def _image_coupling(
    kind: Kind,
    channels: int,
    hidden: int,
    num_classes: int | None,
    *,
    mask: Tensor | None = None,
    scale: Literal["sigmoid", "tanh", "exp"] = "tanh",
    swap: bool = False,
) -> AdditiveCoupling | AffineCoupling:
    """Return a coupling of the fields that the mask moves, or of half of the channels, whose number is even."""
    moves = channels if mask is not None else channels // 2

    def net(n_out: int) -> CouplingConv:
        return CouplingConv(moves, n_out, hidden, condition=_class_reader(num_classes, hidden))

    return _couple(kind, net, moves, mask=mask, scale=scale, swap=swap)


def _couple(
    kind: Kind,
    net: Callable[[int], nn.Module],
    moves: int,
    *,
    mask: Tensor | None = None,
    scale: Literal["sigmoid", "tanh", "exp"] = "tanh",
    swap: bool = False,
) -> AdditiveCoupling | AffineCoupling:
    """Return a coupling whose network, made for the size of its answer, moves so many channels."""
    if kind == "additive":
        return AdditiveCoupling(net(moves), mask=mask, swap=swap)
    if kind == "affine":
        return AffineCoupling(net(2 * moves), mask=mask, swap=swap, scale=scale)
    raise ValueError(f"kind must be 'affine' or 'additive', got {kind!r}")


def _class_reader(num_classes: int | None, width: int) -> nn.Module | None:
    """Return what networks read classes with; None without classes."""
    return None if num_classes is None else nn.Embedding(check_count(num_classes, "num_classes", 1), width)


def _mix(mixing: Mixing, size: int) -> list[Transform]:
    """Return what mixes the values before a coupling."""
    if mixing == "swap":
        return []
    if mixing == "reverse":
        return [Permutation.reverse(size)]
    if mixing == "random":
        return [Permutation(torch.randperm(size))]
    return [InvertibleConv1x1(size)]


def _flatten(shape: tuple[int, ...]) -> list[Transform]:
    return [] if len(shape) == 1 else [Flatten(shape)]


def _read_shape(dim: int | Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Return the shape of an event and its number of values."""
    given = tuple(dim) if isinstance(dim, Sequence) else (dim,)
    shape = tuple(check_count(one, "a size of events", 1) for one in given)
    if len(shape) not in {1, 3} or math.prod(shape) < 2:
        raise ValueError(f"events must have a shape (D,) with D >= 2, or (C, H, W), got {shape}")
    return shape, math.prod(shape)


def _read_widths(hidden: Sequence[int]) -> list[int]:
    """Return the widths of networks; raise where there are none."""
    if not isinstance(hidden, Sequence) or not hidden:
        raise ValueError(f"hidden must be one or more widths, such as (128, 128), got {hidden!r}")
    return [check_count(width, "a width of hidden", 1) for width in hidden]


def _check_levels(shape: tuple[int, ...], levels: int) -> None:
    """Raise unless images can be halved `levels` times."""
    levels = check_count(levels, "levels", 1)
    if len(shape) != 3 or shape[1] % 2**levels or shape[2] % 2**levels:
        raise ValueError(
            f"images (C, H, W) with height and width divisible by 2**levels are expected, got shape {shape} with "
            f"levels = {levels}; choose fewer levels, or resize the images"
        )
