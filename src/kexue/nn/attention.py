"""Attention that can express positions: weights whose rows need not sum to one.

With positions only inside the softmax, rows of weights sum to 1, so n equal tokens give n equal outputs (eq. 2 of the
article). A factor after the softmax (`ToeplitzGate`), or another normalisation than the softmax's
(`attention_weights`), removes the defect.

Source: kexue.fm/archives/9105; Luo et al. 2022, arXiv:2205.13401.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue._tensors import (
    as_floats,
    at_least_float32,
    expand_mask,
    fill_masked,
    float32_or_wider,
    is_transformed,
    may_read,
)
from kexue.nn.position import check_buckets, look_up, relative_buckets, relative_offsets

Normalize = Literal["softmax", "l2", "none", "relu2"]
_BLOCK = 1 << 18  # weights per block and thread: 1 MB in float32, which fits in a core's cache


class ToeplitzGate(nn.Module):
    """Learned factor for every head and offset, which multiplies the weights after the softmax.

    ``forward(q_positions, k_positions)`` gives c (H, Lq, Lk), or (B, H, Lq, Lk) for positions (B, L), with
    c_ij = table[:, j - i + max_length - 1]. One instance may serve all layers. Keep the table out of weight decay:
    it starts at 1, and 0 removes the attention of a query to a key.

    Args:
        num_heads: H, >= 1.
        max_length: offsets up to max_length - 1 have a factor each, >= 1.
        init: value of every factor at the start; 1 is plain attention.
        clip: whether larger offsets take the last factor; False raises ValueError for them (not while compiling).
        buckets: number of factors per head instead of 2 max_length - 1, shared as in `T5Bias` up to `max_length`.

    Attributes:
        table: parameter (H, 2 max_length - 1), or (H, buckets).
    """

    def __init__(
        self, num_heads: int, max_length: int, *, init: float = 1.0, clip: bool = True, buckets: int | None = None
    ) -> None:
        super().__init__()
        if num_heads < 1 or max_length < 1:
            raise ValueError(f"num_heads and max_length must be at least 1, got {num_heads} and {max_length}")
        if buckets is not None:
            check_buckets(buckets, max_length)
        self.max_length, self.clip, self.buckets = max_length, clip, buckets
        self.table = nn.Parameter(torch.full((num_heads, buckets or 2 * max_length - 1), float(init)))

    def forward(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        """Return the factors between positions (Lq,) and (Lk,)."""
        offset, far = relative_offsets(q_positions, k_positions), self.max_length - 1
        if not self.clip and may_read(offset) and bool((offset.abs() > far).any()):
            raise ValueError(f"offset {int(offset.abs().max())} is beyond max_length - 1 = {far}; use clip=True")
        if self.buckets is not None:
            return look_up(self.table, relative_buckets(offset, self.buckets, self.max_length))
        return look_up(self.table, offset.clamp(-far, far) + far)  # eq. 3: c_ij


def attention_weights(scores: Tensor, *, normalize: Normalize = "softmax", mask: Tensor | None = None) -> Tensor:
    """Compute weights a from scores b (..., Lq, Lk): zero where masked; a row without keys is all zeros.

        softmax   e^b / sum_j e^b                rows sum to 1: equal tokens get equal outputs
        l2        e^b / sqrt(sum_j e^{2b})       squares of a row sum to 1
        none      e^b                            may overflow: keep scores below 88
        relu2     max(b, 0)^2 / n                n: number of keys that some query may attend

    All of these but the softmax can express positions. Source: kexue.fm/archives/9105.

    Args:
        scores: floats; -inf counts as masked. Half precision is computed in float32 and returned in its own dtype.
        mask: bool, broadcastable to scores, True = may attend.
    """
    if normalize not in {"softmax", "l2", "none", "relu2"}:
        raise ValueError(f"normalize must be 'softmax', 'l2', 'none' or 'relu2', got {normalize!r}")
    dtype, scores = scores.dtype, as_floats(scores)
    keep = scores != -torch.inf if mask is None else (scores != -torch.inf) & expand_mask(mask, scores.shape)
    if normalize == "none":
        weights = scores.masked_fill(~keep, -torch.inf).exp()  # section "去掉分母" (no denominator)
    elif normalize == "relu2":
        n = keep.any(-2, keepdim=True).sum(-1, keepdim=True).clamp(min=1)
        weights = scores.masked_fill(~keep, 0.0).relu().square() / n  # section "去掉分母" (no denominator)
    else:
        scores = fill_masked(scores, keep)
        if normalize == "softmax":
            weights = scores.softmax(-1)  # eq. 4
        else:
            scores = scores - scores.detach().amax(-1, keepdim=True)  # otherwise the sum of large scores is lost
            weights = (scores - (2 * scores).logsumexp(-1, keepdim=True) / 2).exp()  # eq. 5
    return weights.masked_fill(~keep, 0.0).to(dtype)


def urpe_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    gate: ToeplitzGate | Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    fused: bool | Literal["auto"] = "auto",
) -> Tensor:
    """Compute attention with a factor after the softmax: O = (softmax(q k' / sqrt(D) + bias) * gate) v.

    Args:
        q: (B, H, Lq, D); k, v: (B, H, Lk, D).
        gate: factors broadcastable to (B, H, Lq, Lk), of any sign, or a `ToeplitzGate` of H heads (or one for all),
            for which the queries are the last Lq of the Lk places. None is plain attention.
        bias: broadcastable to (B, H, Lq, Lk), added to the scores.
        mask: bool, broadcastable likewise, True = may attend. A query without keys gives zeros.
        dropout_p: dropout of the weights, after the gate; applied whenever it is above 0, so pass 0 in evaluation.
        fused: whether to compute in blocks that fit into the cache, without an array of all the weights: ``"auto"``
            where no gradient is needed, True always, False never. The result is the same.

    Returns:
        (B, H, Lq, D) in the dtype of q; half precision is weighted in float32.

    Raises:
        ValueError: shapes do not fit, or ``fused=True`` with a gradient or dropout.
    """
    if k.shape[-2] != v.shape[-2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"q (B, H, Lq, D), k and v (B, H, Lk, D) do not fit: {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if fused not in {True, False, "auto"}:
        raise ValueError(f"fused must be True, False or 'auto', got {fused!r}")
    whole = torch.Size((*q.shape[:-1], k.shape[-2]))
    if isinstance(gate, ToeplitzGate):
        lq, lk = q.shape[-2], k.shape[-2]
        gate = gate.forward(torch.arange(lk - lq, lk, device=q.device), torch.arange(lk, device=q.device))
    _check_fits("gate", gate, whole)
    _check_fits("bias", bias, whole)
    if mask is not None:
        expand_mask(mask, whole)  # checks the shape; the mask is used as it is
    if gate is None and fused is not False and not is_transformed():
        return _attend_ungated(q, k, v, bias, mask, dropout_p)
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, gate, bias))
    plain = learns or dropout_p > 0
    if fused is True and plain:
        raise ValueError("fused=True has neither gradient nor dropout; use fused='auto'")
    if gate is None or fused is False or plain or is_transformed() or not may_read(q):
        return _attend_whole(q, k, v, gate, bias, mask, dropout_p)
    return _attend_in_blocks(q, k, v, gate, bias, mask)


def attend(
    q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, *, dropout_p: float = 0.0, is_causal: bool = False
) -> Tensor:
    """Compute attention by PyTorch's function, or operation by operation under torch.func, which has no rule for it.

    `added` is a bool mask or a bias, as PyTorch's function takes it; None with `is_causal`.
    """
    if not is_transformed():
        return functional.scaled_dot_product_attention(q, k, v, added, dropout_p, is_causal)
    if is_causal:
        added = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    is_mask = added is not None and added.dtype == torch.bool
    return _attend_whole(q, k, v, None, None if is_mask else added, added if is_mask else None, dropout_p)


def _attend_whole(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, bias: Tensor | None, keep: Tensor | None, dropout_p: float
) -> Tensor:
    """Compute gated attention with an array of all the weights."""
    scores = at_least_float32(q / math.sqrt(q.shape[-1]) @ k.transpose(-1, -2))
    weights = attention_weights(scores if bias is None else scores + bias, mask=keep)
    if gate is not None:
        weights = weights * gate  # eq. 3: A * C
    return functional.dropout(weights, dropout_p).to(v.dtype) @ v


def _attend_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, bias: Tensor | None, keep: Tensor | None
) -> Tensor:
    """Compute the same as `_attend_whole` without a gradient, a few heads or a few rows of one head at a time."""
    (b, h, lq, d), lk = q.shape, k.shape[-2]
    size = _BLOCK * torch.get_num_threads() if q.device.type == "cpu" else 64 * _BLOCK
    heads = max(1, min(h, size // max(1, lq * lk)))
    rows = lq if heads > 1 else max(1, min(lq, size // max(1, lk)))
    wide = float32_or_wider(q.dtype)
    added = no_keys = None
    if bias is not None or keep is not None:
        added = torch.zeros((), dtype=wide, device=q.device) if bias is None else bias.to(wide)
        added = added if keep is None else torch.where(keep, added, -torch.inf)
        no_keys = torch.isneginf(added).all(-1, keepdim=True)
        added = added.broadcast_to(b, h, lq, lk)
    q, k, gate = q / math.sqrt(d), k.transpose(-1, -2), gate.broadcast_to(b, h, lq, lk)
    out = q.new_empty(b, h, lq, v.shape[-1])
    for i in range(b):
        for j in range(0, h, heads):
            for r in range(0, lq, rows):
                at = i, slice(j, j + heads), slice(r, r + rows)
                scores = torch.matmul(q[at], k[i, j : j + heads]).to(wide)
                weights = (scores if added is None else scores.add_(added[at])).softmax(-1).mul_(gate[at])  # eq. 3
                out[at] = torch.matmul(weights.to(v.dtype), v[i, j : j + heads])
    return out if no_keys is None else out.masked_fill_(no_keys, 0.0)


def _attend_ungated(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, keep: Tensor | None, dropout_p: float
) -> Tensor:
    """Compute attention without a gate, by PyTorch's function.

    A query without keys gets all of them, so that its row is finite, and its row is then set to zero.
    """
    added = _merge_mask(bias, keep, q.dtype)
    if added is None:
        return functional.scaled_dot_product_attention(q, k, v, None, dropout_p)
    no_keys = ~(added if added.dtype == torch.bool else added != -torch.inf).any(-1, keepdim=True)
    added = added | no_keys if added.dtype == torch.bool else added.masked_fill(no_keys, 0.0)
    return functional.scaled_dot_product_attention(q, k, v, added, dropout_p).masked_fill(no_keys, 0.0)


def _check_fits(name: str, x: Tensor | None, shape: torch.Size) -> None:
    """Raise ValueError unless x broadcasts to (B, H, Lq, Lk)."""
    if x is not None and (
        x.dim() > len(shape) or any(n not in (1, m) for n, m in zip(reversed(x.shape), reversed(shape), strict=False))
    ):
        raise ValueError(f"{name} must broadcast to (B, H, Lq, Lk) = {tuple(shape)}, got {tuple(x.shape)}")


def _merge_mask(bias: Tensor | None, keep: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the mask of scaled_dot_product_attention: a bias with -inf where masked, the bool mask alone, or None."""
    if bias is None or keep is None:
        return keep if bias is None else bias.to(dtype)
    return torch.where(keep, bias.to(dtype), -torch.inf)


def unilm_mask(segment_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mask of a model that reads the first segment and writes the second: bool (B, T, T), row = query.

    Query i attends key j when c_j <= c_i, with c the running sum of the segment ids: to all of a leading segment 0, and
    to earlier tokens within a segment of ones. `mask` (B, T) bool drops keys. Source: Dong et al. 2019,
    arXiv:1905.03197, as kexue.fm/archives/6933 writes it.
    """
    if segment_ids.dim() != 2 or segment_ids.is_floating_point():
        raise ValueError(f"segment_ids must be integers (B, T), got {segment_ids.dtype} {tuple(segment_ids.shape)}")
    place = segment_ids.cumsum(-1)  # roformer-sim, section "One row, two readers"
    allowed = place[:, None, :] <= place[:, :, None]
    return allowed if mask is None else allowed & expand_mask(mask, segment_ids.shape)[:, None, :]
