"""Paths between latents."""

import math

import pytest
import torch

from kexue.generative import interpolate


@pytest.mark.parametrize("method", ["circular", "slerp", "linear"])
def test_both_ends_are_exact(method: str) -> None:
    z1, z2 = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = interpolate(z1, z2, 5, method=method)  # type: ignore[arg-type]
    assert path.shape == (5, 3, 4)
    assert torch.equal(path[0], z1)
    assert torch.equal(path[-1], z2)


def test_circular_keeps_independent_normals_normal() -> None:
    z = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
    for point in interpolate(z[0], z[1], 5):
        assert abs(float(point.var()) - 1) < 0.03
    assert abs(float(interpolate(z[0], z[1], 3, method="linear")[1].var()) - 0.5) < 0.02


def test_slerp_turns_and_stretches_evenly() -> None:
    z1, z2 = torch.tensor([2.0, 0, 0], dtype=torch.float64), torch.tensor([0.0, 4, 0], dtype=torch.float64)
    path = interpolate(z1, z2, 4, method="slerp")
    angles = torch.atan2(path[:, 1], path[:, 0])
    assert torch.allclose(angles, torch.linspace(0, math.pi / 2, 4, dtype=torch.float64))
    assert torch.allclose(path.norm(dim=1), torch.linspace(2, 4, 4, dtype=torch.float64))


def test_slerp_of_one_direction_and_of_opposite_ones() -> None:
    z = torch.tensor([1.0, 2.0])
    assert torch.allclose(interpolate(z, 3 * z, 3, method="slerp")[1], 2 * z)
    with pytest.raises(ValueError, match="no unique path"):
        interpolate(z, -z, 3, method="slerp")


def test_bad_input_is_refused() -> None:
    z = torch.zeros(2)
    with pytest.raises(ValueError, match="one shape"):
        interpolate(z, torch.zeros(3), 3)
    with pytest.raises(ValueError, match="n must be a whole number >= 2"):
        interpolate(z, z, 1)
    with pytest.raises(ValueError, match="method must be"):
        interpolate(z, z, 2, method="cubic")  # type: ignore[arg-type]
