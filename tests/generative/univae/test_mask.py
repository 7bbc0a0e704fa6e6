"""The mask of a UniVAE against its definition, place by place."""

import pytest
import torch

from kexue.generative import univae_mask


@pytest.mark.parametrize("see_cls", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_mask_is_its_definition(n: int, see_cls: bool) -> None:
    mask = univae_mask(torch.tensor([[0] * n + [1] * n] * 2), see_cls=see_cls)
    assert mask.shape == (2, 1, 2 * n, 2 * n)
    assert mask.dtype == torch.bool
    for query in range(2 * n):
        for key in range(2 * n):
            reads, writes = query < n and key < n, query >= n and n <= key <= query
            seen = reads or writes or (see_cls and key == 0)
            assert mask[:, 0, query, key].tolist() == [seen, seen], (query, key)


def test_parts_may_differ_in_length() -> None:
    mask = univae_mask(torch.tensor([[0, 0, 0, 1]]), see_cls=False)
    assert mask[0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("segments", [torch.tensor([0, 1]), torch.tensor([[0.0, 1.0]]), torch.tensor([[0, 2]])])
def test_other_segments_are_refused(segments: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="segment_ids must be"):
        univae_mask(segments, see_cls=True)
