"""What a piece of torch costs on every machine alike: the multiplications in its matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kexue._optional import import_optional


def multiplications(call: Callable[[], Any]) -> float:
    """How many multiplications the matrix products and convolutions of ``call()`` take, backward passes included."""
    import_optional("torch", extra="train")
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    total = 0.0

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal total
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket in flop_registry:
                total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out) / 2
            return out

    with Counting():  # type: ignore[no-untyped-call]
        call()
    return total
