import math

import pytest
import torch
from torch.testing import assert_close

from kexue.nn import LearnedPositions, SinusoidalPositions, T5Bias, apply_rotary

T = 7


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rotary_is_multiplication_by_a_complex_number():
    q, k = draw(2, 3, T, 8), draw(2, 1, T, 8, seed=1)
    turned = apply_rotary(q, k)
    for before, after in zip((q, k), turned, strict=True):
        z = torch.view_as_complex(before.reshape(*before.shape[:-1], 4, 2))
        for place in range(T):
            for i in range(4):
                expected = z[..., place, i] * complex(math.cos(place / 10**i), math.sin(place / 10**i))  # base^(2i/8)
                assert_close(after[..., place, 2 * i], expected.real, atol=1e-6, rtol=1e-6)  # angles end in float32
                assert_close(after[..., place, 2 * i + 1], expected.imag, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotary_of_any_layout_is_the_formula_and_its_gradient_turns_back(dtype):
    packed = draw(2, T, 3, 4, 9).to(dtype)  # cut out of odd steps, beginning at an odd place
    angles = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    for cut in (packed[:, :, 1, :, 1:].transpose(1, 2), packed[:, :, 0, :, :8].transpose(1, 2), draw(2, 4, 8, T).mT):
        q = cut.to(dtype).requires_grad_()
        turned, _ = apply_rotary(q, q)
        weights = draw(*turned.shape, seed=1).to(dtype)
        turned.backward(weights)
        for given, result, sign in ((q.detach(), turned.detach(), 1), (weights, q.grad, -1)):
            even, odd = given.double()[..., 0::2], given.double()[..., 1::2]
            cos, sin = angles.cos(), sign * angles.sin()
            expected = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
            assert result.dtype == dtype
            assert_close(result.double(), expected, atol=1e-6, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_products_of_turned_vectors_see_only_the_distance():
    q, k = draw(1, 1, 1, 16).expand(1, 1, 4, 16), draw(1, 1, 1, 16, seed=1).expand(1, 1, 4, 16)

    def product(m, n):
        a, _ = apply_rotary(q, k, torch.full((4,), m))
        _, b = apply_rotary(q, k, torch.full((4,), n))
        return (a * b).sum(-1)[0, 0, 0]

    assert_close(product(3, 8), product(1003, 1008), atol=1e-5, rtol=1e-5)
    assert abs(product(3, 8) - product(8, 3)) > 1e-2  # the direction counts


def test_rotary_keeps_lengths_and_takes_positions_of_each_row():
    q, k = draw(2, 3, T, 8), draw(2, 3, T, 8, seed=1)
    positions = torch.stack((torch.arange(T), torch.arange(T) + 5))
    turned, _ = apply_rotary(q, k, positions)
    assert_close(turned.norm(dim=-1), q.norm(dim=-1), rtol=1e-6, atol=0)
    assert_close(turned[1:], apply_rotary(q[1:], k[1:], positions[1])[0])
    assert_close(turned[:1], apply_rotary(q[:1], k[:1])[0])


def test_rotary_is_exact_far_out_and_keeps_the_dtype():
    q = torch.tensor([1.0, 0.0]).expand(1, 1, 1, 2)
    far = apply_rotary(q, q, torch.tensor([1_000_003]))[0].flatten()
    assert_close(far, torch.tensor([math.cos(1_000_003), math.sin(1_000_003)]), atol=1e-6, rtol=0)
    assert apply_rotary(q.half(), q.half())[0].dtype == torch.float16


def test_sinusoidal_positions_are_their_formula():
    waves = SinusoidalPositions(6)(torch.tensor([[0, 5], [9, 100_000]]))
    assert waves.shape == (2, 2, 6)
    for (row, column), place in {(0, 1): 5, (1, 0): 9, (1, 1): 100_000}.items():
        for i in range(3):
            angle = place / 10000 ** (2 * i / 6)
            assert_close(waves[row, column, 2 * i].item(), math.sin(angle), atol=1e-6, rtol=0)
            assert_close(waves[row, column, 2 * i + 1].item(), math.cos(angle), atol=1e-6, rtol=0)


def test_learned_positions_look_up_and_name_the_limit():
    layer = LearnedPositions(5, 3)
    assert_close(layer(torch.tensor([4, 0])), layer.table.weight[[4, 0]])
    with pytest.raises(ValueError, match="position 5 is beyond max_length - 1 = 4"):
        layer(torch.tensor([5]))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (5, 9)])
def test_buckets_are_those_of_t5(bidirectional, num_buckets, max_distance):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    layer = T5Bias(1, num_buckets=num_buckets, max_distance=max_distance, bidirectional=bidirectional)
    with torch.no_grad():
        layer.table.copy_(torch.arange(num_buckets)[None])  # the bias is the number of the bucket
    offset = torch.arange(300)[None, :] - torch.arange(300)[:, None]
    expected = t5.T5Attention._relative_position_bucket(offset, bidirectional, num_buckets, max_distance)
    assert_close(layer(torch.arange(300), torch.arange(300))[0], expected.float(), rtol=0, atol=0)


def test_t5_bias_takes_positions_of_each_row():
    layer, places = T5Bias(3), torch.tensor([[0, 1, 2], [0, 10, 50]])
    bias = layer(places, places)
    assert bias.shape == (2, 3, 3, 3)
    assert_close(bias[1], layer(places[1], places[1]))
    assert not torch.equal(bias[0], bias[1])


def test_bad_input_is_named():
    q = draw(1, 1, T, 8)
    with pytest.raises(ValueError, match="even, got 7"):
        apply_rotary(q[..., :7], q[..., :7])
    with pytest.raises(ValueError, match="share length"):
        apply_rotary(q, q[:, :, :3])
    with pytest.raises(ValueError, match="length 7"):
        apply_rotary(q, q, torch.arange(6))
    with pytest.raises(ValueError, match="got 5"):
        SinusoidalPositions(5)
    with pytest.raises(ValueError, match="num_buckets=2"):
        T5Bias(2, num_buckets=2)


def test_rotary_and_sinusoidal_positions_in_float64():
    """Against sines and cosines of forty digits: the angles, not only the products, are in float64."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(40):
        places, dim = [0, 1, 7, 511, 4096], 6
        angles = [[p * mpmath.mpf(10000) ** (-mpmath.mpf(2 * i) / dim) for i in range(dim // 2)] for p in places]
        cos = torch.tensor([[float(mpmath.cos(a)) for a in row] for row in angles], dtype=torch.float64)
        sin = torch.tensor([[float(mpmath.sin(a)) for a in row] for row in angles], dtype=torch.float64)
    x = torch.randn(1, 2, 5, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = x[..., ::2], x[..., 1::2]
    right = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    torch.testing.assert_close(apply_rotary(x, x, torch.tensor(places))[0], right, rtol=0, atol=5e-12)
    torch.testing.assert_close(
        apply_rotary(x[..., :3, :], x[..., :3, :], torch.tensor(places[:3]))[1], right[..., :3, :], rtol=0, atol=1e-14
    )
    waves = SinusoidalPositions(dim).double()(torch.tensor(places))
    torch.testing.assert_close(waves, torch.stack((sin, cos), -1).flatten(-2), rtol=0, atol=5e-12)
    assert SinusoidalPositions(dim)(torch.tensor(places)).dtype == torch.float32
    assert SinusoidalPositions(dim).bfloat16()(torch.tensor(places)).dtype == torch.float32
    assert apply_rotary(x[:0], x[:0], torch.tensor(places))[0].shape == (0, 2, 5, dim)
