"""Taps: hidden states read from a frozen backbone by forward hooks, and whether that backbone is causal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kexue._tensors import evaluating
from kexue.nn.cached_states import MASK

Inputs = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of a backbone


class Tap(NamedTuple):
    """One state of a backbone.

    Attributes:
        name: the tap as the caller wrote it.
        module: name of the submodule to watch.
        is_input: read what enters the module; False reads its output.
    """

    name: str
    module: str
    is_input: bool


def resolve_tap(backbone: nn.Module, tap: str | int) -> Tap:
    """Return the tap of a module's name, or of a layer's number as Hugging Face counts states.

    Raises:
        ValueError: no such module or layer.
    """
    if isinstance(tap, str):
        if not tap or tap not in dict(backbone.named_modules()):
            names = [name for name, _ in backbone.named_modules() if name.count(".") <= 2 and name]
            raise ValueError(f"the backbone has no module {tap!r}; it has {', '.join(names[:30])} ...")
        return Tap(tap, tap, False)
    stacks = [(n, m) for n, m in backbone.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential))]
    if not stacks:
        raise ValueError(f"tap {tap}: the backbone holds no ModuleList or Sequential to count layers in; name modules")
    name, stack = max(stacks, key=lambda pair: (isinstance(pair[1], nn.ModuleList), len(pair[1])))
    index = tap if tap >= 0 else len(stack) + 1 + tap
    if not 0 <= index <= len(stack):
        raise ValueError(f"tap {tap}: {name or 'the backbone'} has {len(stack)} layers, states 0 to {len(stack)}")
    prefix = f"{name}." if name else ""
    return Tap(str(tap), f"{prefix}{max(index - 1, 0)}", index == 0)


def read_states(
    backbone: nn.Module, taps: Sequence[Tap], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, ...]:
    """Run the backbone on its arguments without gradients and return a copy of the state at each tap.

    Raises:
        ValueError: a tapped module that did not run.
    """
    states: dict[int, Tensor] = {}
    handles = []
    for number, tap in enumerate(taps):
        module = backbone.get_submodule(tap.module)
        if tap.is_input:
            handles.append(module.register_forward_pre_hook(_store_input(states, number), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(_store_output(states, number)))
    try:
        with torch.no_grad():
            backbone(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    missing = [tap.name for number, tap in enumerate(taps) if number not in states]
    if missing:
        raise ValueError(f"the backbone's forward never ran the tapped modules {missing}: name others")
    return tuple(states[number] for number in range(len(taps)))


def _store_input(states: dict[int, Tensor], number: int) -> Callable[..., None]:
    """Return a hook that stores the first argument of a module."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[number] = _copy_state(args[0] if args else next(iter(kwargs.values())))

    return hook


def _store_output(states: dict[int, Tensor], number: int) -> Callable[..., None]:
    """Return a hook that stores the output of a module."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        states[number] = _copy_state(output)

    return hook


def _copy_state(value: Any) -> Tensor:
    """Return a copy of a tensor, or of the first tensor of several: later layers may write in place."""
    while not isinstance(value, Tensor):
        value = next(iter(value.values())) if isinstance(value, Mapping) else value[0]
    return value.detach().clone()


def find_mask(kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the mask among a backbone's keyword arguments as bool (B, T) or (B, T, T); None without a usable one."""
    mask = kwargs.get("attention_mask", kwargs.get(MASK))
    if not isinstance(mask, Tensor):
        return None
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    return mask.bool() if mask.ndim == 2 or (mask.ndim == 3 and mask.dtype == torch.bool) else None


def declares_causal(backbone: nn.Module, taps: Sequence[Tap]) -> bool:
    """Return whether the backbone's config, or an attention in a tapped layer, declares that it is causal."""
    if getattr(getattr(backbone, "config", None), "is_decoder", False):
        return True
    parts = [part for tap in taps for part in backbone.get_submodule(tap.module).modules()]
    return any(getattr(part, "is_causal", False) is True for part in parts)


def measure_causality(
    backbone: nn.Module, taps: Sequence[Tap], states: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool | None:
    """Return whether the states before a token do not depend on it; None for a batch without two tokens.

    Args:
        states: what `read_states` returned for these arguments.
    """
    changed = _change_a_token(args, kwargs)
    if changed is None:
        return None
    (new_args, new_kwargs), earlier, length = changed
    if backbone.training:  # dropout would look like a dependence
        with evaluating(backbone):
            states = read_states(backbone, taps, args, kwargs)
            after = read_states(backbone, taps, new_args, new_kwargs)
    else:
        after = read_states(backbone, taps, new_args, new_kwargs)
    pairs = [
        (a[0, earlier], b[0, earlier])
        for a, b in zip(states, after, strict=True)
        if a.dim() > 2 and a.shape[1] == length
    ]
    return bool(pairs) and all(bool((a - b).abs().max() <= 1e-5 * a.abs().max()) for a, b in pairs)


def _change_a_token(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Inputs, list[int], int] | None:
    """Return the arguments with the last kept token of the first sample changed, the kept places before it, and T.

    The tokens are the first tensor (B, T) of integers or (B, T, d) of floats; None where fewer than two are kept.
    """
    named: dict[int | str, Any] = {
        **dict(enumerate(args)),
        **{name: x for name, x in kwargs.items() if "mask" not in name},
    }
    tokens = [
        (name, x) for name, x in named.items()
        if isinstance(x, Tensor) and x.dim() == (3 if x.is_floating_point() else 2) and x.shape[1] > 1 and len(x)
    ]  # fmt: skip
    if not tokens:
        return None
    name, x = tokens[0]
    mask = find_mask(kwargs)
    keep = torch.ones(x.shape[1], dtype=torch.bool) if mask is None or mask.dim() > 2 else mask[0].cpu()
    places = keep.nonzero().flatten().tolist()
    if len(places) < 2:
        return None
    place, x = places[-1], x.clone()
    if x.is_floating_point():
        x[0, place] += torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype, device=x.device)
    else:
        x[0, place] = torch.where(x[0, place] > 0, x[0, place] - 1, 1)
    if isinstance(name, int):
        return ((*args[:name], x, *args[name + 1 :]), kwargs), places[:-1], x.shape[1]
    return (args, {**kwargs, name: x}), places[:-1], x.shape[1]
