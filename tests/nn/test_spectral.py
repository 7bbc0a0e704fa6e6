"""Spectral norms and normalisation against full singular value decompositions and dense matrices of convolutions."""

import copy
import math

import pytest
import torch
from _linear_maps import convolutional, dense, largest, network, number, randn, seeded
from torch import nn

from kexue.errors import NotSupported
from kexue.nn import (
    apply_spectral_normalization,
    clip_weights_,
    empirical_lipschitz,
    frobenius_penalty,
    gradient_penalty,
    lipschitz_upper_bound,
    remove_spectral_normalization,
    spectral_norm_value,
    spectral_penalty,
)

ARTICLE = torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64)


def test_iterates_on_the_articles_matrix():
    start = torch.ones(2, dtype=torch.float64)
    values = [number(spectral_norm_value(ARTICLE, u=start, n_iter=n).sigma) for n in (1, 2, 3, 4, 30)]
    assert values == pytest.approx([6.62714, 6.70718, 6.70819, 6.708204, math.sqrt(45)], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ones_can_be_orthogonal_to_the_answer_and_a_random_start_is_not(dtype):
    """The products with ones are exact, zeros among them, on any processor: rounding cannot lead out of the trap."""
    weight = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.5]], dtype=dtype)
    caught = spectral_norm_value(weight, u=torch.ones(3), n_iter=100)
    assert number(caught.sigma) == pytest.approx(1.5)
    assert caught.u[:2].tolist() == [0, 0]
    assert number(spectral_norm_value(weight, n_iter=100, generator=0).sigma) == pytest.approx(2)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 1), (1, 4), (6,), (4, 2, 3, 3)])
def test_the_value_is_the_largest_singular_value(shape):
    weight = randn(*shape).requires_grad_()
    found = spectral_norm_value(weight, n_iter=500, generator=1)
    matrix = weight.detach().reshape(shape[0], -1)
    assert torch.allclose(found.sigma, largest(matrix))
    assert torch.allclose(matrix @ found.v, found.sigma * found.u)
    found.sigma.backward()
    assert torch.allclose(weight.grad, torch.outer(found.u, found.v).reshape(shape))
    reference = weight.detach().clone().requires_grad_()
    largest(reference.reshape(shape[0], -1)).backward()
    assert torch.allclose(weight.grad, reference.grad)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 7)),
        (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 6, 5)),
        (lambda: nn.Conv2d(1, 2, (2, 3), stride=(1, 2)), (1, 5, 6)),
        (lambda: nn.Conv3d(2, 2, 2), (2, 3, 3, 4)),
    ],
)
def test_the_operator_norm_is_that_of_the_dense_matrix(make, shape):
    layer = seeded(make)
    options = {"stride": layer.stride, "padding": layer.padding, "n_iter": 2000, "generator": 0}
    found = spectral_norm_value(layer.weight, mode="operator", input_shape=shape, **options)
    expected = largest(dense(layer, shape))
    assert torch.allclose(found.sigma, expected)
    window = math.prod(layer.kernel_size)
    assert found.sigma <= math.sqrt(window) * largest(layer.weight.flatten(1)) * (1 + 1e-9)
    assert lipschitz_upper_bound(layer, shape) >= expected * (1 - 1e-9)
    assert lipschitz_upper_bound(layer, shape) < 1.6 * expected


def test_the_operator_norm_of_a_box_filter():
    box = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    operator = spectral_norm_value(
        box, mode="operator", input_shape=(1, 16, 16), padding=1, n_iter=800, generator=0
    ).sigma
    assert number(operator) == pytest.approx((1 + 2 * math.cos(math.pi / 17)) ** 2)
    assert number(spectral_norm_value(box, n_iter=1, generator=0).sigma) == pytest.approx(3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    weight = 1e-4 * randn(8, 8).to(dtype)  # squares of these vanish in float16
    found = spectral_norm_value(weight, n_iter=300, generator=0)
    assert found.sigma.dtype == torch.float32
    assert number(found.sigma) == pytest.approx(number(largest(weight.double())), rel=1e-4)
    layer = apply_spectral_normalization(nn.Linear(8, 8).to(dtype))
    assert layer.weight.dtype == dtype


def test_a_weight_of_zeros():
    weight = torch.zeros(3, 2, requires_grad=True)
    found = spectral_norm_value(weight, generator=0)
    found.sigma.backward()
    assert found.sigma == 0
    assert (weight.grad == 0).all()
    layer = nn.Linear(2, 3)
    nn.init.zeros_(layer.weight)
    apply_spectral_normalization(layer)
    assert (layer.weight == 0).all()
    with torch.no_grad():  # and it can leave zero
        layer.parametrizations.weight.original.copy_(torch.eye(3, 2))
    for _ in range(100):
        layer(torch.zeros(1, 2))
    assert torch.allclose(layer.weight, torch.eye(3, 2))


@pytest.mark.parametrize("coef", [1.0, 0.5])
def test_normalised_layers_have_norm_coef(coef):
    net = apply_spectral_normalization(network(), coef=coef)
    for _ in range(200):
        net(randn(1, 6))
    for layer in net[::2]:
        assert number(largest(layer.weight)) == pytest.approx(coef)


def test_the_gradient_goes_through_sigma():
    layer = seeded(lambda: nn.Linear(4, 3, bias=False))
    original = layer.weight.detach().clone().requires_grad_()
    apply_spectral_normalization(layer)
    for _ in range(300):
        layer(randn(1, 4))
    layer.eval()
    G = randn(3, 4, seed=5)
    (layer.weight * G).sum().backward()
    (original / largest(original) * G).sum().backward()
    ours = layer.parametrizations.weight.original.grad
    assert torch.allclose(ours, original.grad)
    U, S, Vh = torch.linalg.svd(original.detach())
    bar = original.detach() / S[0]
    assert torch.allclose(ours, (G - (G * bar).sum() * torch.outer(U[:, 0], Vh[0])) / S[0])


def test_state_moves_in_training_and_rests_in_evaluation():
    net = apply_spectral_normalization(network())
    buffer = net[0].parametrizations.weight[0].u
    net.eval()
    before = buffer.clone()
    first = net(randn(2, 6))
    assert torch.equal(net(randn(2, 6)), first)
    assert torch.equal(buffer, before)
    net.train()
    net(randn(2, 6))
    assert not torch.equal(buffer, before)


def test_two_forwards_before_one_backward():
    critic = apply_spectral_normalization(network())
    (critic(randn(3, 6)).mean() - critic(randn(3, 6, seed=1)).mean()).backward()
    assert all(p.grad.isfinite().all() for p in critic.parameters())


def test_a_normalised_network_saves_loads_and_is_restored():
    net = apply_spectral_normalization(network())
    net(randn(2, 6))
    copy = apply_spectral_normalization(network(9))
    copy.load_state_dict(net.state_dict())
    x = randn(3, 6, seed=2)
    assert torch.equal(net.eval()(x), copy.eval()(x))
    expected = net(x)
    assert remove_spectral_normalization(net) is net
    assert torch.equal(net(x), expected)
    assert "0.weight" in net.state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_norm(dtype):
    weight, big = randn(16, 16, dtype=torch.float32), torch.full((512, 512), 200.0)
    kernel = randn(3, 2, 3, 3, dtype=torch.float32)
    image = {"mode": "operator", "input_shape": (2, 6, 6), "padding": 1}
    layer, net = seeded(lambda: nn.Linear(16, 16, bias=False)).float(), network().float()
    expected = [spectral_norm_value(weight, generator=0).sigma, spectral_norm_value(kernel, generator=0, **image).sigma]
    penalty = spectral_penalty(copy.deepcopy(net), 1.0)
    apply_spectral_normalization(layer, n_iter=50)
    with torch.autocast("cpu", dtype=dtype):
        values = [
            spectral_norm_value(weight, generator=0).sigma,
            spectral_norm_value(kernel, generator=0, **image).sigma,
        ]
        assert number(spectral_norm_value(big, generator=0).sigma) == pytest.approx(512 * 200, rel=1e-5)
        assert spectral_penalty(net, 1.0) == penalty
        for _ in range(20):
            layer(randn(2, 16, dtype=torch.float32))
    assert values == expected
    assert number(largest(layer.weight)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_norms_of_weights_of_any_size(scale):
    weight = randn(5, 4, dtype=torch.float32)
    value = spectral_norm_value(scale * weight, n_iter=100, generator=0).sigma
    assert number(value) == pytest.approx(scale * number(largest(weight)), rel=1e-5)


def test_the_first_call_may_be_made_in_inference_mode():
    net, normalised = network(), apply_spectral_normalization(network())
    x = randn(4, 6)
    with torch.inference_mode():
        spectral_penalty(net, 0.1)
        gradient_penalty(net, x, randn(4, 6, seed=1), generator=0)
        assert empirical_lipschitz(net, x, generator=0) > 0
        normalised(x)
    (spectral_penalty(net, 0.1) + normalised(x).mean()).backward()
    assert all(p.grad.isfinite().all() for p in (net[0].weight, *normalised.parameters()))
    with torch.no_grad():
        assert not gradient_penalty(net, x, randn(4, 6, seed=1), generator=0).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vectors_are_kept_in_full_precision_and_go_on_moving(dtype):
    """Singular values 1 and .999: in half precision u would stand still long before it is along the first."""
    weight = torch.diag(torch.tensor([1.0, 0.996])).to(dtype)
    layer = nn.Linear(2, 2, bias=False)
    apply_spectral_normalization(layer).to(dtype)
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(weight)
    u = layer.parametrizations.weight[0].u
    assert u.dtype == torch.float32
    u.copy_(torch.tensor([0.6, 0.8]))
    plain = nn.Linear(2, 2, bias=False).to(dtype)
    with torch.no_grad():
        plain.weight.copy_(weight)
    for _ in range(2000):
        layer.weight  # noqa: B018 - one round each
        spectral_penalty(plain, 1.0)
    assert layer.parametrizations.weight[0].u[0].abs() > 0.999
    plain = plain.to(torch.bfloat16)
    assert number(spectral_penalty(plain, 1.0)) == pytest.approx(1, abs=1e-5)


def test_a_weight_loaded_without_its_vectors_gets_new_ones():
    """As when a checkpoint of other code has the weights alone: the old u belongs to other weights."""
    net, other = apply_spectral_normalization(network(0)), apply_spectral_normalization(network(9))
    assert not torch.equal(net[0].weight, other[0].weight)
    weights = {name: value for name, value in other.state_dict().items() if not name.endswith(".u")}
    copied, meta = copy.deepcopy(net), apply_spectral_normalization(network(0).to("meta"))
    for made in (net, copied, meta):
        made.load_state_dict(weights, strict=False, assign=made is meta)
        for layer, right in zip(made.eval()[::2], other.eval()[::2], strict=True):
            torch.testing.assert_close(layer.weight, right.weight)
    before = net[0].parametrizations.weight[0].u.clone()
    net.load_state_dict({"0.bias": torch.zeros(5)}, strict=False)
    assert torch.equal(net[0].parametrizations.weight[0].u, before)


def test_a_weight_of_zeros_has_a_bounded_gradient():
    layer = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(layer.weight)
    apply_spectral_normalization(layer)
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.parametrizations.weight.original.grad.norm() < 10


def test_operator_mode_normalises_the_map_between_images():
    net = apply_spectral_normalization(convolutional(), mode="operator", input_shape=(1, 8, 8))
    assert net.training
    for _ in range(600):
        net(randn(1, 1, 8, 8))
    net.eval()
    for layer, shape in ((net[0], (1, 8, 8)), (net[3], (3, 4, 4))):
        assert number(largest(dense(layer, shape))) == pytest.approx(1, abs=1e-3)
    flat = apply_spectral_normalization(convolutional())
    assert number(largest(dense(flat[0], (1, 8, 8)))) > 1.5  # the reshaped norm is not the norm of the map


@pytest.mark.parametrize("mode", ["reshape", "operator"])
def test_a_normalised_layer_compiles_as_one_graph(mode):
    layer = apply_spectral_normalization(nn.Conv2d(1, 2, 3), mode=mode, input_shape=(1, 5, 5))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x = torch.ones(1, 1, 5, 5)
    u = layer.parametrizations.weight[0].u
    u.copy_(torch.randn(u.shape, generator=torch.Generator().manual_seed(0)))  # far from where it would stand still
    before = u.clone()
    compiled(x).sum().backward()
    assert not torch.equal(layer.parametrizations.weight[0].u, before)
    layer.eval()
    assert torch.allclose(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: spectral_norm_value(ARTICLE, mode="exact"), ValueError, "'exact'"),
        (lambda: spectral_norm_value(ARTICLE, n_iter=0), ValueError, "got 0"),
        (lambda: spectral_norm_value(ARTICLE, u=torch.ones(3)), ValueError, r"\(2,\), got \(3,\)"),
        (lambda: spectral_norm_value(ARTICLE.long()), TypeError, "int64"),
        (lambda: spectral_norm_value(torch.tensor(1.0)), TypeError, "axis"),
        (lambda: spectral_norm_value(ARTICLE, mode="operator"), ValueError, "input_shape None"),
        (
            lambda: spectral_norm_value(torch.ones(1, 2, 3), mode="operator", input_shape=(1, 5)),
            ValueError,
            "reads 2 channels",
        ),
        (lambda: spectral_penalty(nn.ReLU(), 1.0), ValueError, "no weight"),
        (lambda: frobenius_penalty(nn.Linear(2, 2), -1.0), ValueError, "got -1.0"),
        (lambda: apply_spectral_normalization(nn.ReLU()), ValueError, "no Linear"),
        (lambda: apply_spectral_normalization(nn.Linear(2, 2), coef=0.0), ValueError, "coef=0.0"),
        (lambda: apply_spectral_normalization(apply_spectral_normalization(nn.Linear(2, 2))), ValueError, "already"),
        (lambda: apply_spectral_normalization(nn.Conv1d(1, 1, 3), mode="operator"), ValueError, "needs input_shape"),
        (
            lambda: apply_spectral_normalization(
                nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"), mode="operator", input_shape=(1, 5)
            ),
            NotSupported,
            "circular",
        ),
        (lambda: remove_spectral_normalization(nn.Linear(2, 2)), ValueError, "no layer"),
        (lambda: gradient_penalty(lambda x: x.sum(), torch.ones(2, 3), torch.ones(3, 3)), ValueError, "share a shape"),
        (lambda: spectral_norm_value(torch.ones(0, 3)), ValueError, "must have entries"),
        (lambda: clip_weights_(nn.Linear(1, 1), 0.0), ValueError, "got 0.0"),
        (lambda: empirical_lipschitz(lambda x: x, torch.ones(2, 2), n=0), ValueError, "n=0"),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_layers_are_normalised_on_the_meta_device():
    with torch.device("meta"):
        net = apply_spectral_normalization(nn.Sequential(nn.Linear(5, 4), nn.Conv1d(4, 3, 2)))
    assert net[0](torch.ones(2, 5, device="meta")).shape == (2, 4)
    assert spectral_norm_value(torch.ones(3, 4, device="meta")).sigma.is_meta
    assert gradient_penalty(lambda x: x.sum(1), *[torch.ones(2, 3, device="meta")] * 2).is_meta
