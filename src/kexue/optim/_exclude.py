"""Parameters that a wrapper does not change, chosen by name, by tensor or by a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor
from torch.optim import Optimizer

from kexue.optim._wrapper import Wrapper
from kexue.optim.stack import Group

Exclude = str | Tensor | Iterable[str | Tensor] | Callable[[str, Tensor], bool] | None


class Excluding(Wrapper):
    """Base class of wrappers with `exclude`: excluded parameters get the inner optimizer's update alone."""

    def __init__(self, inner: Optimizer, exclude: Exclude) -> None:
        self.exclude = exclude
        self._excluded: set[Tensor] = set()
        super().__init__(inner)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        self._excluded |= select_excluded(self.exclude, group, type(self).__name__)

    def _replace_parameters(self, new: Mapping[Tensor, Tensor]) -> None:
        self._excluded = {new.get(p, p) for p in self._excluded}


def select_excluded(exclude: Exclude, group: Group, wrapper: str) -> set[Tensor]:
    """The parameters of a group that `exclude` names.

    Args:
        exclude: part of a name, a parameter, several of these, or a function of name and parameter; names are those of
            `named_parameters()` where the inner optimizer was built from these, else "".
        group: a group of the inner optimizer.
        wrapper: name of the wrapper, for the error message.

    Raises:
        ValueError: names to exclude, where the inner optimizer has no names.
    """
    names = group.get("param_names", [""] * len(group["params"]))
    if callable(exclude) and not isinstance(exclude, Tensor):
        return {p for name, p in zip(names, group["params"], strict=True) if exclude(name, p)}
    items = [] if exclude is None else [exclude] if isinstance(exclude, str | Tensor) else list(exclude)
    parts = [item for item in items if isinstance(item, str)]
    if parts and "param_names" not in group:
        raise ValueError(
            f"{wrapper} got names to exclude, {parts}, but the inner optimizer has no names: "
            "build it from model.named_parameters(), or exclude by a function of (name, parameter)"
        )
    tensors = {item for item in items if isinstance(item, Tensor)}
    pairs = zip(names, group["params"], strict=True)
    return {p for name, p in pairs if p in tensors or any(part in name for part in parts)}
