"""Mask of a sentence that stands twice in a row: once to be read, once to be written."""

from __future__ import annotations

from torch import Tensor


def univae_mask(segment_ids: Tensor, *, see_cls: bool) -> Tensor:
    """Return which places see which: bool (B, 1, 2n, 2n), row = the place that sees, column = the place seen.

    The row of tokens is a sentence to read (segment 0) and the same one to write (segment 1). With c_i the running sum
    of the segments s, place i sees place j when

        s_i = s_j and c_j <= c_i:

    what is read sees itself whole, what is written sees its own past, and neither sees the other. With `see_cls` every
    place sees place 0, too.

    Args:
        segment_ids: integers (B, 2n), 0 then 1.
        see_cls: whether place 0 is seen by all, as in the blocks that have a latent.

    Raises:
        ValueError: another shape, floats, or values besides 0 and 1.

    Source: kexue.fm/archives/8475.

    Example:
        >>> import torch
        >>> univae_mask(torch.tensor([[0, 0, 1, 1]]), see_cls=True)[0, 0].int().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    """
    if segment_ids.dim() != 2 or segment_ids.is_floating_point():
        raise ValueError(f"segment_ids must be integers (B, 2n), got {segment_ids.dtype} {tuple(segment_ids.shape)}")
    if bool(((segment_ids != 0) & (segment_ids != 1)).any()):
        raise ValueError("segment_ids must be 0 (to read) or 1 (to write)")
    count = segment_ids.cumsum(-1)
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    seen = same & (count[:, None, :] <= count[:, :, None])  # section "Two masks"
    if see_cls:
        seen[:, :, 0] = True
    return seen[:, None]
