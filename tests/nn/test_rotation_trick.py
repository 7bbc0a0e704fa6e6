"""The gradients of straight-through and of the rotation trick against explicit matrices."""

import numpy as np
import pytest
import torch
from _linear_maps import randn

from kexue.nn import rotate_to, straight_through
from kexue.similarity import rotation_between


def test_straight_through_has_the_value_of_q_and_the_gradient_of_z():
    z, q, g = randn(4, 3).requires_grad_(), (1e3 * randn(4, 3, seed=1)).requires_grad_(), randn(4, 3, seed=2)
    out = straight_through(z, q)
    assert torch.equal(out, q)
    out.backward(g)
    assert torch.equal(z.grad, g)
    assert q.grad is None


def test_the_rotation_is_the_transposed_matrix():
    z, q, g = randn(6, 5).requires_grad_(), (3 * randn(6, 5, seed=1)).requires_grad_(), randn(6, 5, seed=2)
    out = rotate_to(z, q)
    assert torch.equal(out, q)
    out.backward(g)
    assert q.grad is None
    for row in range(6):
        a, b = z[row].detach().numpy(), q[row].detach().numpy()
        G = np.linalg.norm(b) / np.linalg.norm(a) * rotation_between(a, b)
        np.testing.assert_allclose(G @ a, b, atol=1e-12)
        np.testing.assert_allclose(z.grad[row].numpy(), G.T @ g[row].numpy(), atol=1e-12)
        assert np.abs(z.grad[row].numpy() - G @ g[row].numpy()).max() > 1e-2  # the article's rule lacks the transpose


def test_rotation_at_its_edges():
    g = randn(4, 3, seed=2)
    z = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [1.0, 2.0, 2.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[1.0, 2.0, 2.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-2.0, 0.0, 0.0]], dtype=torch.float64)
    z.requires_grad_()
    rotate_to(z, q).backward(g)
    torch.testing.assert_close(z.grad[:3], g[:3])  # nothing to turn; nothing to turn from; nothing to turn to
    torch.testing.assert_close(z.grad[3], 2 * g[3] * torch.tensor([-1.0, 1.0, 1.0]))  # opposite: a mirror


def test_nearly_opposite_rows_keep_the_length_of_the_gradient_in_float32():
    a = torch.nn.functional.normalize(randn(200, 64, dtype=torch.float32), dim=1)
    b = -a + 1e-4 * randn(200, 64, seed=1, dtype=torch.float32) / 8
    b = torch.nn.functional.normalize(b, dim=1)
    g = randn(200, 64, seed=2, dtype=torch.float32)
    rotate_to(a.requires_grad_(), b).backward(g)
    # an orthogonal map, to the rounding of 64 sums; I + 2qz' - 2ww' as it is written is off by 1e-3 and more here
    torch.testing.assert_close(a.grad.norm(dim=1), g.norm(dim=1), rtol=2e-6, atol=0)


def turning(z, q):
    """The matrix by which `rotate_to` passes gradients on, transposed: G."""
    return torch.func.jacrev(lambda x: rotate_to(x, q))(z).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 2, 3, 17, 64])
@pytest.mark.parametrize("scale", [1e-30, 0.3, 1e30])
def test_the_rotation_takes_z_to_q_at_every_angle_and_scale(dtype, d, scale):
    """G z = q and G'G = s^2 I, also where z and q are opposite or equal but for rounding, or nearly so."""
    generator = torch.Generator().manual_seed(d)
    eps = torch.finfo(dtype).eps
    for turn in range(5):
        z, aside = torch.randn(2, d, generator=generator, dtype=torch.float64)
        for sign in (-1, 1):
            for bend in (0.0, eps, 10 * eps, 1e-5, 1e-3, 1.0):
                start = z.to(dtype)
                goal = scale * (0.1 + turn) * (sign * start.double() + bend * aside).to(dtype)
                G = turning(start, goal)
                size = goal.double().norm() / start.double().norm()
                wide = start.double(), goal.double()
                assert (G @ wide[0] - wide[1]).norm() <= 40 * eps * wide[1].norm()
                assert (G.T @ G / size**2 - torch.eye(d)).abs().max() <= 40 * eps


def test_the_rotation_of_half_precision():
    z = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    for goal in (-0.3 * z, -z, z, 2 * z):
        for row, q in zip(z, goal, strict=True):
            assert (turning(row, q) @ row.double() - q.double()).norm() < 0.02 * q.double().norm()
