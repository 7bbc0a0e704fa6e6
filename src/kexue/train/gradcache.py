"""GradCache: the gradient of a large contrastive batch, with memory for a part of it only.

L(f(x_1), ..., f(x_n)) does not split over rows, but its gradient does once the embeddings z_i = f(x_i) are known:

    dL/dw = sum over i of (dL/dz_i)' dz_i/dw.

So the batch is encoded in chunks without a graph, dL/dz is computed on the (n, d) embeddings alone, and each chunk is
encoded again, with the same dropout, for its part of the sum.

Source: Gao et al. 2021, arXiv:2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from kexue.train._random import get_torch_states, set_torch_states
from kexue.train.config import LossOutput

_weight: ContextVar[float] = ContextVar("weight", default=1.0)


@contextmanager
def gradient_weight(weight: float) -> Iterator[None]:
    """Multiply the gradients of `GradCache.step` within the `with` by `weight`.

    A loop that scales the returned loss would be too late: GradCache has made its backward pass by then.
    """
    token = _weight.set(weight)
    try:
        yield
    finally:
        _weight.reset(token)


class GradCache:
    """Contrastive loss of a whole batch, encoded chunk by chunk.

    Args:
        encode: inputs of c rows -> (c, d) embeddings; or a sequence of such, one per tower. Called twice per chunk.
        loss: (n, d) embeddings, one argument per tower -> scalar or `LossOutput`, such as `kexue.losses.InfoNCELoss()`.
        chunk_size: rows encoded with a graph at a time, >= 1.

    Layers that mix rows, such as BatchNorm in training mode, see chunks instead of the batch.
    """

    def __init__(
        self,
        encode: Callable[[Any], Tensor] | Sequence[Callable[[Any], Tensor]],
        loss: Callable[..., Tensor | LossOutput],
        *,
        chunk_size: int,
    ) -> None:
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
            raise ValueError(f"chunk_size must be a whole number >= 1, got {chunk_size!r}")
        self.encode, self.loss, self.chunk_size = encode, loss, chunk_size

    def step(self, inputs: Any, *, generator: torch.Generator | None = None) -> LossOutput:
        """Add the gradient of the loss to the parameters' `.grad`; do not call `backward` for it again.

        `.backward()` of the returned loss adds nothing, so that a `training_step` can return it as it is. Where
        gradients are off (`torch.no_grad`) the loss alone is computed. A tower without trainable parameters, or one
        that the loss does not use, is encoded once.

        Args:
            inputs: n rows as a tensor, a dict of tensors or a list of samples; or a list or tuple of tensors or dicts,
                one per tower; or, where `encode` is a sequence, one input of any kind for each of its members. None,
                numbers and strings in a dict go to every chunk as they are.
            generator: a generator that `encode` draws from; both passes draw the same from it, as they do from torch's
                global generators.

        Returns:
            The loss of the whole batch, and its parts.

        Raises:
            ValueError: no rows, towers with different numbers of rows, an encoder that returns another number of rows,
                or inputs with a graph; inputs that are leaves get their gradient.

        Example:
            >>> encoder = torch.nn.Linear(3, 2)
            >>> cache = GradCache(encoder, lambda z: z.square().mean(), chunk_size=4)
            >>> _ = cache.step(torch.ones(10, 3))
            >>> encoder.weight.grad.shape
            torch.Size([2, 3])
        """
        several = isinstance(self.encode, Sequence) and isinstance(inputs, (list, tuple)) and len(self.encode) > 1
        towers = list(inputs) if several or _has_towers(inputs) else [inputs]
        encoders = list(self.encode) if isinstance(self.encode, Sequence) else [self.encode] * len(towers)
        if len(encoders) != len(towers):
            raise ValueError(f"{len(encoders)} encoders for {len(towers)} towers of inputs")
        training = torch.is_grad_enabled()
        passes, leaves = [], []
        for encode, tower in zip(encoders, towers, strict=True):
            embeddings, chunks = self._encode(encode, [*self._chunks(tower)], generator)
            leaves.append(embeddings.requires_grad_(training))
            passes.append((encode, chunks))
        torch.clear_autocast_cache()  # the weights that autocast cast in the first pass carry no graph
        loss, parts = self._loss(leaves)
        if not training:
            return LossOutput(loss.detach(), parts)
        with torch.autocast(loss.device.type, enabled=False):
            torch.autograd.backward(loss, torch.full_like(loss, _weight.get()))
        after = get_torch_states(generator)
        for (encode, chunks), leaf in zip(passes, leaves, strict=True):
            gradients = () if leaf.grad is None else torch.split(leaf.grad, self.chunk_size)
            for (chunk, states), gradient in zip(chunks, gradients, strict=False):
                set_torch_states(states, generator)
                embeddings = encode(chunk)
                if not embeddings.requires_grad:
                    break  # a frozen tower
                with torch.autocast(loss.device.type, enabled=False):
                    torch.autograd.backward(embeddings, gradient)
        set_torch_states(after, generator)
        return LossOutput(loss.detach().requires_grad_(), parts)

    @torch.no_grad()
    def _encode(
        self, encode: Callable[[Any], Tensor], inputs: list[Any], generator: torch.Generator | None
    ) -> tuple[Tensor, list[tuple[Any, Any]]]:
        """The embeddings of a tower, and its chunks with the states of the generators before each."""
        rows, chunks = [], []
        for chunk in inputs:
            chunks.append((chunk, get_torch_states(generator)))
            rows.append(encode(chunk))
            if not isinstance(rows[-1], Tensor):
                raise TypeError(f"encode must return a tensor, got {type(rows[-1]).__name__}")
            if len(rows[-1]) != _rows(chunk):
                raise ValueError(f"encode returned {len(rows[-1])} rows for an input of {_rows(chunk)} rows")
        return torch.cat(rows), chunks

    def _loss(self, leaves: list[Tensor]) -> tuple[Tensor, dict[str, Any]]:
        result = self.loss(*leaves)
        loss, parts = (result.loss, result.parts) if isinstance(result, LossOutput) else (result, {})
        return loss, {name: part.detach() if isinstance(part, Tensor) else part for name, part in parts.items()}

    def _chunks(self, tower: Any) -> Iterator[Any]:
        rows = _rows(tower)
        if rows < 1:
            raise ValueError("the batch has no rows")
        values = tower.values() if isinstance(tower, Mapping) else [tower]
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.grad_fn is not None for x in values):
            raise ValueError(
                "inputs carry a graph, which chunks cannot share: compute it in encode, or detach the inputs"
            )
        for start in range(0, rows, self.chunk_size):
            yield _slice_rows(tower, slice(start, start + self.chunk_size))


def _has_towers(inputs: Any) -> bool:
    return isinstance(inputs, (list, tuple)) and all(isinstance(item, (Tensor, Mapping)) for item in inputs)


def _rows(tower: Any) -> int:
    """Number of rows of a tower."""
    sizes = {len(value) for value in tower.values() if _has_rows(value)} if isinstance(tower, Mapping) else {len(tower)}
    if len(sizes) != 1:
        raise ValueError(f"the tensors of a tower differ in rows: {sorted(sizes)}")
    return sizes.pop()


def _slice_rows(tower: Any, rows: slice) -> Any:
    if not isinstance(tower, Mapping):
        return tower[rows]
    return {name: value[rows] if _has_rows(value) else value for name, value in tower.items()}


def _has_rows(value: Any) -> bool:
    """Return whether a value of a tower has one entry per row."""
    return hasattr(value, "__len__") and not isinstance(value, str) and getattr(value, "ndim", 1) > 0
