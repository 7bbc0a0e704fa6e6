"""Training within an experiment against a loop written out."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kexue.experiments._training import build_mlp, fit, share_right, shuffled_rows, torch_seed  # noqa: E402
from kexue.train import NonFiniteLossError  # noqa: E402

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
y = X[:, :3].argmax(1)


def build(seed=0):
    with torch_seed(seed):
        return build_mlp(6, 8, 3)


def cross_entropy(model):
    return lambda rows: torch.nn.functional.cross_entropy(model(X[rows]), y[rows])


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_same_bits_as_a_loop():
    batches = shuffled_rows(len(X), 16, 3, torch.Generator().manual_seed(1))
    assert [len(rows) for rows in batches] == [16, 16, 8] * 3
    assert all(sorted(torch.cat(batches[i : i + 3]).tolist()) == list(range(40)) for i in (0, 3, 6))
    model, other = build(), build()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    done = fit(
        model, cross_entropy(model), batches, optimizer,
        scheduler=schedule, evaluate=lambda: share_right(model, X, y), every=2,
    )  # fmt: skip
    adam, accuracies = torch.optim.Adam(other.parameters(), 0.01), []
    for step, rows in enumerate(batches):
        adam.param_groups[0]["lr"] = 0.01 * 0.5**step
        adam.zero_grad()
        cross_entropy(other)(rows).backward()
        adam.step()
        if step % 2 or step == len(batches) - 1:
            accuracies.append((other(X).argmax(1) == y).double().mean().item())
    assert equal(model, other)
    assert (done.evaluations, done.steps) == (accuracies, 9)
    assert done.seconds > 0
    assert model.training


def test_optimizers_take_turns_on_a_batch():
    model, calls = torch.nn.ParameterList([torch.zeros(1), torch.zeros(1)]), []

    def loss(batch, index):
        calls.append((batch, index))
        return model[index // 2].sum()

    first, second = (torch.optim.SGD([p], lr=1.0) for p in model)
    fit(model, loss, "ab", [first, first, second])
    assert calls == [(batch, index) for batch in "ab" for index in range(3)]
    assert [p.item() for p in model] == [-4, -2]


def test_ends_once_the_target_is_reached():
    model = torch.nn.ParameterList([torch.zeros(1)])
    done = fit(model, lambda _: model[0].sum(), range(9), torch.optim.SGD(model, lr=1.0), until=lambda: model[0] < -2.5)
    assert done.steps == 3


def test_without_a_batch_nothing_changes():
    model = build()
    done = fit(model, cross_entropy(model), [], torch.optim.SGD(model.parameters(), lr=1.0), evaluate=lambda: 1)
    assert (done.evaluations, done.steps, done.seconds) == ([], 0, 0.0)
    assert equal(model, build())


def test_global_generator_is_left_as_it_was():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    model = build()
    fit(model, cross_entropy(model), [slice(None)], torch.optim.SGD(model.parameters(), lr=0.1))
    assert torch.equal(torch.rand(1), expected)


def test_order_of_a_numpy_generator():
    rows = shuffled_rows(10, 5, 2, np.random.default_rng(3))
    generator = np.random.default_rng(3)
    expected = [part.tolist() for _ in range(2) for part in np.array_split(generator.permutation(10), 2)]
    assert [part.tolist() for part in rows] == expected


def test_a_loss_that_is_no_number_is_an_error():
    model = build()
    with pytest.raises(NonFiniteLossError):
        fit(model, lambda _: model(X).sum() * torch.nan, [0], torch.optim.SGD(model.parameters(), lr=0.1))
