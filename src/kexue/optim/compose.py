"""Build a stack of wrappers, and find what is at its bottom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from kexue.optim._wrapper import Wrapper, bottom
from kexue.optim.accumulate import GradientAccumulation
from kexue.optim.ema import EMA
from kexue.optim.layer_adaptation import LayerAdaptation
from kexue.optim.lazy import Lazy
from kexue.optim.lookahead import Lookahead
from kexue.optim.piecewise import PiecewiseLinear
from kexue.optim.weight_decay import DecoupledWeightDecay

_WRAPPERS: dict[str, type[Wrapper]] = {
    wrapper.name: wrapper
    for wrapper in (
        DecoupledWeightDecay,
        LayerAdaptation,
        PiecewiseLinear,
        GradientAccumulation,
        Lookahead,
        Lazy,
        EMA,
    )
}
Layer = str | tuple[str, Mapping[str, Any]] | Callable[[Optimizer], Optimizer]


def extend(inner: Optimizer, *wrappers: Layer) -> Optimizer:
    """Wrap an optimizer several times; the left one is innermost and acts first.

    Args:
        inner: any optimizer.
        wrappers: each a name (``"weight_decay"``, ``"layer_adaptation"``, ``"piecewise_linear"``,
            ``"gradient_accumulation"``, ``"lookahead"``, ``"lazy"``, ``"ema"``), a name with keyword arguments, or a
            function from optimizer to optimizer.

    Raises:
        ValueError: a name that is none of these.
        TypeError: a wrapper that lacks an argument, or something else that is no wrapper.

    >>> import torch
    >>> p = torch.nn.Parameter(torch.ones(3))
    >>> lamb = extend(torch.optim.Adam([p], lr=1e-3), ("weight_decay", {"rate": 0.1}), "layer_adaptation")
    >>> type(lamb).__name__, type(unwrap(lamb)).__name__
    ('LayerAdaptation', 'Adam')
    """
    optimizer = inner
    for layer in wrappers:
        if callable(layer):
            optimizer = layer(optimizer)
            continue
        name, arguments = (layer, {}) if isinstance(layer, str) else layer
        if name not in _WRAPPERS:
            raise ValueError(f"unknown wrapper {name!r}; expected one of {sorted(_WRAPPERS)}")
        optimizer = _WRAPPERS[name](optimizer, **arguments)
    return optimizer


def unwrap(optimizer: Optimizer) -> Optimizer:
    """The optimizer at the bottom of a stack; an unwrapped one itself."""
    return bottom(optimizer)
