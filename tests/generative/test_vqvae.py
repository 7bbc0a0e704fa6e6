"""The quantised auto-encoder: its loss, its codes, the prior of the codes."""

import pytest
import torch
from torch import Tensor, nn

from kexue.errors import NotFittedError, NotSupported
from kexue.generative import VQVAE
from kexue.nn import VectorQuantizer


def _build(seed: int = 0) -> VQVAE:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (2, 2)))
        decoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 6))
        return VQVAE(encoder, decoder, VectorQuantizer(2, 8), event_shape=(6,))


def _events(n: int = 64) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_the_error_and_the_codebooks() -> None:
    model, x = _build(), _events()
    rows = model.encoder(x)
    codes = model.quantizer.codebook
    nearest = codes[torch.cdist(rows, codes.expand(len(x), 8, 2)).argmin(2)]
    error = (model.decoder(nearest) - x).square().mean()
    out = model.loss(x)
    assert torch.allclose(out.parts["reconstruction"], error)  # type: ignore[arg-type]
    assert torch.allclose(out.loss, error + 1.25 * (nearest - rows).square().mean())
    out.loss.backward()
    assert bool(model.encoder[0].weight.grad.any())  # type: ignore[index, union-attr, operator]


def test_decoding_codes_is_reconstructing() -> None:
    model, x = _build(), _events()
    codes = model.encode(x)
    assert codes.shape == (64, 2)
    assert model.code_shape == (2,)
    assert torch.equal(model.decode(codes), model.decoder(model.quantizer(model.encoder(x)).quantized))


def test_samples_have_the_codes_of_the_counts() -> None:
    """Codes of a position occur as often as in the data, and only those; positions are independent."""
    model, x = _build(), _events(500)
    model.fit_prior([x[:200], x[200:]])
    counts = torch.stack([torch.bincount(codes, minlength=8) for codes in model.encode(x).T])
    assert torch.equal(model.prior_counts, counts)
    drawn: list[Tensor] = []
    decode = model.decode
    model.decode = lambda z: drawn.append(z) or decode(z)  # type: ignore[method-assign, assignment, func-returns-value]
    n = 20_000
    samples = model.sample(n, generator=torch.Generator().manual_seed(0))
    assert samples.shape == (n, 6)
    shares = torch.stack([torch.bincount(codes, minlength=8) for codes in drawn[0].T]) / n
    assert torch.allclose(shares, counts / 500, atol=0.015)
    assert not bool(shares[counts == 0].any())
    joint = torch.bincount(drawn[0][:, 0] * 8 + drawn[0][:, 1], minlength=64).reshape(8, 8) / n
    assert torch.allclose(joint, shares[0][:, None] * shares[1], atol=0.01)


def test_a_sample_does_not_depend_on_the_size_of_the_batch() -> None:
    model = _build().fit_prior([_events()])
    whole = model.sample(7, generator=3)
    assert torch.allclose(model.sample(5, generator=3, batch_size=2), whole[:5], atol=1e-6)  # rounding of products


def test_counts_are_saved_with_the_weights(tmp_path: object) -> None:
    path = f"{tmp_path}/model.safetensors"
    model = _build().fit_prior([_events()])
    model.save(path)
    assert torch.equal(_build(1).load(path).sample(4, generator=0), model.sample(4, generator=0))


def test_codes_of_images_with_channels_first() -> None:
    encoder, decoder = nn.Conv2d(1, 3, 2, stride=2), nn.ConvTranspose2d(3, 1, 2, stride=2)
    model = VQVAE(encoder, decoder, VectorQuantizer(3, 5, channel_first=True), event_shape=(1, 4, 6))
    x = torch.rand(9, 1, 4, 6)
    assert model.encode(x).shape == (9, 2, 3)
    assert model.fit_prior([x]).sample(2, generator=0).shape == (2, 1, 4, 6)


def test_batches_of_data_loaders_are_taken() -> None:
    model, x = _build().eval(), _events()
    labels = torch.zeros(len(x), dtype=torch.int64)
    assert torch.equal(model.loss([x, labels]).loss, model.loss(x).loss)
    counts = model.fit_prior([x]).prior_counts.clone()
    assert torch.equal(model.fit_prior([[x], (x, labels)]).prior_counts, 2 * counts)


def test_bad_calls_are_refused() -> None:
    model = _build()
    with pytest.raises(NotFittedError, match="fit_prior"):
        model.sample(1)
    with pytest.raises(ValueError, match="one event at least"):
        model.fit_prior([])
    with pytest.raises(ValueError, match="no classes"):
        model.fit_prior([_events()]).sample(1, condition=0)
    with pytest.raises(ValueError, match=r"\(B, 6\)"):
        model.loss(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="one event at least"):
        model.loss(_events()[:0])
    with pytest.raises(ValueError, match=r"z must lie in \[0, 8\), got -1"):
        model.decode(torch.tensor([[0, -1]]))
    with pytest.raises(ValueError, match=r"z must have shape \(B, 2\), got \(1, 3\)"):
        model.decode(torch.tensor([[0, 1, 2]]))
    with pytest.raises(TypeError, match=r"int64, got torch\.float32"):
        model.decode(torch.zeros(1, 2))
    with pytest.raises(NotSupported):
        model.log_prob_bound(_events())
    with pytest.raises(ValueError, match=r"events \(5,\), got \(6,\)"):
        VQVAE(nn.Sequential(nn.Linear(5, 4), nn.Unflatten(1, (2, 2))), model.decoder, model.quantizer, event_shape=(5,))


def test_the_first_batch_sets_the_shapes() -> None:
    told, x = _build(), _events()
    untold = VQVAE(told.encoder, told.decoder, told.quantizer)
    with pytest.raises(NotFittedError):
        untold.sample(1)
    assert torch.equal(untold.fit_prior([x]).prior_counts, told.fit_prior([x]).prior_counts)
    assert (untold.event_shape, untold.code_shape) == ((6,), (2,))
    assert torch.equal(untold.sample(3, generator=0), told.sample(3, generator=0))
    with pytest.raises(ValueError, match=r"shape \(B, 6\)"):
        untold.loss(torch.zeros(2, 5))


@pytest.mark.parametrize("x", [torch.zeros(2, 8, dtype=torch.int64), torch.full((2, 8), float("nan")), torch.zeros(8)])
def test_a_batch_that_is_refused_sets_no_shape(x: torch.Tensor) -> None:
    encoder, decoder = (
        nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (2, 2))),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 6)),
    )
    model = VQVAE(encoder, decoder, VectorQuantizer(2, 8))
    with pytest.raises((TypeError, ValueError), match=r"tensor of floats|NaN or infinity|event_shape must be"):
        model.encode(x)
    model.encode(torch.zeros(2, 6))
    assert model.event_shape == (6,)
