"""Stacks of wrappers built from their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from kexue.optim.accumulate import GradientAccumulation
from kexue.optim.ema import EMA
from kexue.optim.layer_adaptation import LayerAdaptation
from kexue.optim.lazy import Lazy
from kexue.optim.lookahead import Lookahead
from kexue.optim.piecewise import PiecewiseLinear
from kexue.optim.stack import Layer
from kexue.optim.weight_decay import DecoupledWeightDecay

_WRAPPERS: dict[str, type[Layer]] = {
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
Description = str | tuple[str, Mapping[str, Any]] | Callable[[Optimizer], Optimizer]


def extend(inner: Optimizer, *wrappers: Description) -> Optimizer:
    """Wrap an optimizer several times; the left one is innermost and acts first.

    Args:
        inner: any optimizer.
        wrappers: each a name (``"weight_decay"``, ``"layer_adaptation"``, ``"piecewise_linear"``,
            ``"gradient_accumulation"``, ``"lookahead"``, ``"lazy"``, ``"ema"``), a name with keyword arguments, or a
            function from optimizer to optimizer.

    Raises:
        ValueError: an unknown name.
        TypeError: a missing argument of a wrapper, or something that is not a description of one.

    >>> import torch
    >>> p = torch.nn.Parameter(torch.ones(3))
    >>> lamb = extend(torch.optim.Adam([p], lr=1e-3), ("weight_decay", {"rate": 0.1}), "layer_adaptation")
    >>> type(lamb).__name__, type(lamb.inner).__name__
    ('LayerAdaptation', 'DecoupledWeightDecay')
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
