import pytest
import torch
from torch.testing import assert_close

from kexue.nn import DGCNN, DilatedGatedConv1d


@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (3, 5), (5, 2), (1, 1)])
def test_the_layer_is_its_formula(kernel_size, dilation):
    torch.manual_seed(0)
    layer = DilatedGatedConv1d(4, kernel_size=kernel_size, dilation=dilation).double().eval()
    x, length = torch.randn(1, 8, 4, dtype=torch.float64), 8
    y = layer(x)
    half = kernel_size // 2
    for t in range(length):
        total = layer.conv.bias.clone()
        for tap in range(kernel_size):
            place = t + dilation * (tap - half)
            if 0 <= place < length:
                total = total + layer.conv.weight[:, :, tap] @ x[0, place]
        gate, h = total[:4].sigmoid(), total[4:]
        assert_close(y[0, t], x[0, t] * gate + h * (1 - gate))


def test_padding_changes_nothing_and_stays_zero():
    torch.manual_seed(0)
    model = DGCNN(4).eval()
    x, mask = torch.randn(2, 40, 4), torch.arange(40) < torch.tensor([[40], [25]])
    y = model(x, mask)
    assert_close(y[1:, :25], model(x[1:, :25]))
    assert (y[1, 25:] == 0).all()
    assert_close(y[:1], model(x[:1]))


def test_the_stack_sees_27_tokens_to_either_side():
    torch.manual_seed(0)
    model = DGCNN(2).double().eval()
    x = torch.randn(1, 70, 2, dtype=torch.float64, requires_grad=True)
    model(x)[0, 35].sum().backward()
    seen = x.grad[0].abs().sum(-1).nonzero().flatten()
    assert (seen.min(), seen.max()) == (35 - 27, 35 + 27)


def test_dropout_is_on_the_gate_alone():
    torch.manual_seed(0)
    layer = DilatedGatedConv1d(3, dropout=1.0)  # all of g dropped: the gate is sigma(0)
    x = torch.randn(2, 6, 3)
    h = layer.conv(x.transpose(1, 2)).transpose(1, 2)[..., 3:]
    assert_close(layer(x), (x + h) / 2)


def test_gradients_and_one_graph():
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = DilatedGatedConv1d(2, dropout=0.0).double()
    x, mask = torch.randn(1, 4, 2, dtype=torch.float64, requires_grad=True), torch.tensor([[True, True, True, False]])
    assert torch.autograd.gradcheck(lambda x: layer(x, mask), x)
    assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x, mask), layer(x, mask))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="odd"):
        DilatedGatedConv1d(4, kernel_size=2)
    with pytest.raises(ValueError, match=r"bool \(1, 5\)"):
        DGCNN(4)(torch.zeros(1, 5, 4), torch.ones(1, 4, dtype=torch.bool))
