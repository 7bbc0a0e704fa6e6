"""UniVAE: what the writer knows of the reader, cached writing, the bound, checks."""

import math

import pytest
import torch
from torch import Tensor

from kexue.generative import CharacterVocabulary, UniVAE
from kexue.nn import Transformer, TransformerConfig

VOCABULARY = CharacterVocabulary("abcdefg")
TEXTS = ["abc", "gfedcb", "a", "fade"]
N = 8


def build(position: str = "rotary", norm: str = "post", *, seed: int = 0, **options: object) -> UniVAE:
    """A small model with weights large enough that its answers differ."""
    torch.manual_seed(seed)
    config = TransformerConfig(
        len(VOCABULARY),
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        position=position,
        norm=norm,
        max_length=2 * N,  # type: ignore[arg-type]
    )
    settings = {"n_latent_layers": 2, "latent_dim": 4, "max_length": N} | options
    model = UniVAE(Transformer(config), **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double().eval()


@pytest.fixture
def rows() -> Tensor:
    return VOCABULARY.encode(TEXTS, N)


def states_of(model: UniVAE, row: Tensor, z: Tensor) -> Tensor:
    """States of the sentence to write, at given latents."""
    return model.network(row, lambda number, r: z[:, number])


EVERY = [("rotary", "post"), ("sinusoidal", "pre"), ("learned", "post"), ("none", "pre")]


@pytest.mark.parametrize(("position", "norm"), EVERY)
def test_given_the_latents_the_writer_knows_nothing_of_what_was_read(position: str, norm: str, rows: Tensor) -> None:
    model = build(position, norm)
    z = model.encode(rows)
    same = states_of(model, rows, z)
    other = states_of(model, torch.cat([rows.flip(0), rows], 1), z)
    assert torch.equal(same, other)
    assert not torch.allclose(same, states_of(model, rows, z.flip(0)))


def test_the_latents_do_not_depend_on_what_is_written(rows: Tensor) -> None:
    model = build()
    seen: list[list[Tensor]] = []
    for row in (rows, torch.cat([rows, rows.flip(0)], 1)):
        seen.append([])
        model.network(row, lambda number, r: seen[-1].append(r) or model.latent.centre(r))  # type: ignore[func-returns-value]
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert torch.allclose(torch.stack([model.latent.centre(r) for r in seen[0]], 1), model.encode(rows), atol=1e-12)


def test_writing_is_causal(rows: Tensor) -> None:
    model = build()
    z = model.encode(rows)
    changed = rows.clone()
    changed[:, 4:] = 5
    before, after = (states_of(model, torch.cat([rows, one], 1), z) for one in (rows, changed))
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-12)
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_later_latents_depend_on_earlier_ones(rows: Tensor) -> None:
    model = build()
    r_of: dict[str, list[Tensor]] = {"own": [], "other": []}
    for name, first in (("own", model.encode(rows)[:, 0]), ("other", model.encode(rows.flip(0))[:, 0])):
        model.network(rows, lambda number, r, n=name, z=first: r_of[n].append(r) or z)  # type: ignore[misc]
    assert torch.equal(r_of["own"][0], r_of["other"][0])
    assert not torch.allclose(r_of["own"][1], r_of["other"][1])


def write_slowly(model: UniVAE, z: Tensor) -> Tensor:
    """Greedy sentences, with the whole row computed anew for every token."""
    row = torch.full((len(z), N), model.special.pad)
    row[:, 0] = model.special.start
    over = torch.zeros(len(z), dtype=torch.bool)
    for t in range(N - 1):
        scores = model.network.score_tokens(states_of(model, row, z)[:, t])
        scores[:, [model.special.pad, model.special.start]] = -torch.inf
        token = scores.argmax(-1) if t < N - 2 else torch.full((len(z),), model.special.end)
        row[:, t + 1] = torch.where(over, model.special.pad, token)
        over |= token == model.special.end
    return row


@pytest.mark.parametrize(("position", "norm"), EVERY)
def test_cached_writing_is_uncached_writing(position: str, norm: str) -> None:
    model = build(position, norm, latent="gaussian")
    z = 3 * torch.randn(20, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    written = model.decode(z)
    assert torch.equal(written, write_slowly(model, z))
    assert len({tuple(row) for row in written.tolist()}) > 3
    model.check_events(written)
    assert torch.equal(model.decode(z, method="beam", beams=1), written)


def log_probability(model: UniVAE, row: Tensor, z: Tensor) -> Tensor:
    """log p(x | z) as the search counts it: padding and start are never written, the last place is the end."""
    scores = model.network.score_tokens(states_of(model, row, z))[:, :-1]
    log_p = scores.log_softmax(-1).gather(-1, row[:, 1:, None])[..., 0]
    return (log_p * (row[:, 1:] != model.special.pad)).sum(1)


def test_a_wide_beam_finds_the_likeliest_sentence() -> None:
    model = build(max_length=4)
    z = model.sample_latents(3, generator=0).double()
    inside = [i for i in range(len(VOCABULARY)) if i not in (0, 2, 3)]
    every = [[2, 3, 0, 0], *([2, a, 3, 0] for a in inside), *([2, a, b, 3] for a in inside for b in inside)]
    rows = torch.tensor(every)
    found = model.decode(z, method="beam", beams=len(rows))
    for i in range(3):
        likeliest = log_probability(model, rows, z[i].expand(len(rows), -1, -1)).argmax()
        assert found[i].tolist() == every[int(likeliest)]
    greedy = model.decode(z)
    assert (log_probability(model, found, z) >= log_probability(model, greedy, z) - 1e-12).all()


def test_tokens_at_random_have_the_model_s_probabilities() -> None:
    model = build(max_length=3)
    z = model.sample_latents(1, generator=3).double()
    row = torch.tensor([[2, 4, 3]])
    p = model.network.score_tokens(states_of(model, row, z))[0, 0].clone()
    p[[0, 2]] = -torch.inf
    p = p.softmax(0)
    n = 20_000
    drawn = model.decode(z.expand(n, -1, -1), method="sample", generator=torch.Generator().manual_seed(0))[:, 1]
    share = torch.bincount(drawn, minlength=len(p)) / n
    assert torch.allclose(share.double(), p, atol=0.015)
    cold = model.decode(z.expand(50, -1, -1), method="sample", temperature=1e-6, generator=0)
    assert torch.equal(cold, model.decode(z).expand(50, -1))
    none = model.decode(z.expand(50, -1, -1), method="sample", temperature=0.0, generator=0)
    assert torch.equal(none, model.decode(z).expand(50, -1))


def test_sampled_sentences_do_not_depend_on_the_batch() -> None:
    model = build()
    for method in ("greedy", "sample"):
        whole = model.sample(6, generator=5, method=method)
        model.check_events(whole)
        assert torch.equal(model.sample(6, generator=5, batch_size=4, method=method), whole)
        assert torch.equal(model.sample(2, generator=5, method=method), whole[:2])
    assert model.sample(0, generator=0).shape == (0, N)


def test_the_loss_is_the_cross_entropy_of_the_sentence_and_its_end(rows: Tensor) -> None:
    model = build()
    z = model.encode(rows, sample=True, generator=7)
    with torch.no_grad():
        out = model.loss(rows, generator=7)
    expected = -log_probability(model, rows, z).detach().mean()
    assert out.parts["reconstruction"] == pytest.approx(expected.item())
    assert out.loss.item() == pytest.approx(expected.item() + 2 * model.latent.kl(torch.ones(1, 4)).item(), rel=1e-6)
    assert set(out.parts) == {"kl", "reconstruction"}
    bound = model.log_prob_bound(rows, generator=7)
    assert bound.mean().item() == pytest.approx(-out.loss.item(), rel=1e-6)


def test_padding_adds_nothing_to_the_loss_and_shorter_rows_are_padded(rows: Tensor) -> None:
    model = build()
    short = rows[[0, 2]][:, :6]
    assert torch.equal(model.encode(short), model.encode(rows[[0, 2]]))
    assert torch.equal(model.loss(short, generator=0).loss, model.loss(rows[[0, 2]], generator=0).loss)
    uniform = build()
    with torch.no_grad():
        uniform.backbone.tokens.weight.zero_()
        uniform.network.bias.zero_()
        reconstruction = uniform.loss(rows).parts["reconstruction"]
    tokens = float((rows[:, 1:] != 0).sum() / len(rows))
    assert float(reconstruction) == pytest.approx(tokens * math.log(len(VOCABULARY)))


@torch.no_grad()
def test_the_bound_is_below_the_log_probability_and_the_divergences_add_up() -> None:
    model = build(latent="gaussian", max_length=4)
    row = torch.tensor([[2, 4, 3, 0]])
    n = 40_000
    z = model.sample_latents(n, generator=torch.Generator().manual_seed(0)).double()
    marginal = torch.logsumexp(log_probability(model, row.expand(n, -1), z), 0) - math.log(n)
    bounds = model.log_prob_bound(row.expand(2000, -1), generator=torch.Generator().manual_seed(1))
    assert bounds.mean() < marginal
    kl = model.kl(row.expand(2000, -1), generator=torch.Generator().manual_seed(1))
    assert kl.shape == (2000, 2)
    reconstruction = model.loss(row.expand(2000, -1), generator=torch.Generator().manual_seed(1)).parts[
        "reconstruction"
    ]
    assert bounds.mean().item() == pytest.approx(-float(reconstruction) - kl.sum(1).mean().item(), rel=1e-6)


def test_the_weight_of_the_divergence_warms_up_in_training_only(rows: Tensor) -> None:
    model = build(latent="gaussian", beta=0.5, beta_warmup=4)
    weights = []
    for _ in range(6):
        model.train()
        out = model.loss(rows, generator=0)
        weights.append(((out.loss - out.parts["reconstruction"]) / out.parts["kl"]).item())
        model.eval()
        out = model.loss(rows, generator=0)
        assert ((out.loss - out.parts["reconstruction"]) / out.parts["kl"]).item() == pytest.approx(0.5)
    assert weights == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5])


def test_the_gradient_reaches_every_map_of_the_latents(rows: Tensor) -> None:
    model = build().train()
    model.training_step(rows).loss.backward()
    for linear in (*model.network.read, *model.network.write):
        assert linear.weight.grad is not None
        assert linear.weight.grad.abs().max() > 0


def test_edits_shifts_and_paths(rows: Tensor) -> None:
    model = build()
    z = model.encode(rows)
    edited = model.edit(z, 1, 5 * z.flip(0)[:, 1])
    assert torch.equal(edited[:, 0], z[:, 0])
    assert torch.allclose(edited[:, 1], z.flip(0)[:, 1])
    direction = model.attribute(rows[:2], rows[2:])
    assert torch.allclose(direction, z[:2].mean(0) - z[2:].mean(0), atol=1e-12)
    shifted = model.shift(z, direction, strength=0.7)
    assert torch.allclose(shifted.norm(dim=-1), torch.ones(4, 2).double())
    assert torch.allclose(model.shift(z, direction, strength=0.0), z)
    path = model.interpolate(z[0], z[1], 5)
    assert path.shape == (5, 2, 4)
    assert torch.allclose(path[[0, -1]], z[:2])
    assert torch.allclose(path.norm(dim=-1), torch.ones(5, 2).double())


def test_active_units_are_numbers_that_vary() -> None:
    model = build(latent="gaussian")
    rows = VOCABULARY.encode(["abc", "ba", "g", "fed", "cab", "gag"], N)
    with torch.no_grad():
        for i, linear in enumerate(model.network.read):
            linear.weight[2:] = 0
            linear.weight[:2] = 3.0 if i == 0 else 0.0
    assert model.active_units(rows) == 2
    model = build()
    assert 4 <= model.active_units(rows) <= 8


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([[2, 4, 3] + [0] * 6], r"shape \(B, 8\), got \(1, 9\); leave longer sentences out"),
        ([[4, 4, 3, 0, 0, 0, 0, 0]], r"row 0 must be the start \(2\)"),
        ([[2, 4, 3], [2, 4, 4]], "row 1 must be"),
        ([[2, 4, 3, 0, 4]], "row 0 must be"),
        ([[2, 0, 4, 3]], "row 0 must be"),
        ([[2, 4, 3, 3]], "row 0 must be"),
        ([[2, 99, 3]], r"in \[0, 11\), got"),
    ],
)
def test_what_is_no_sentence_is_refused(row: list[list[int]], message: str) -> None:
    model = build()
    for call in (model.encode, model.loss, model.log_prob_bound, model.reconstruct):
        with pytest.raises(ValueError, match=message):
            call(torch.tensor(row))
    with pytest.raises(TypeError, match="tensor of integers"):
        model.encode(torch.ones(1, N))


def test_latents_that_do_not_fit_are_refused() -> None:
    model = build()
    z = model.sample_latents(2, generator=0)
    for wrong in (z[:, :1], z[0], z.long()):
        with pytest.raises(ValueError, match=r"latents must be floats \(B, 2, 4\)"):
            model.decode(wrong)
    with pytest.raises(ValueError, match="finite"):
        model.decode(z / 0)
    with pytest.raises(ValueError, match=r"layer must be a whole number in \[0, 2\)"):
        model.edit(z, 2, z[0, 0])
    for options in (
        {"method": "best"},
        {"method": "beam", "beams": 0},
        {"method": "beam", "beams": 2.5},
        {"method": "sample", "temperature": -0.1},
        {"method": "sample", "temperature": math.inf},
    ):
        with pytest.raises(ValueError, match=r"must be"):
            model.decode(z.double(), **options)
    with pytest.raises(ValueError, match="has no classes"):
        model.sample(1, condition=0)


def test_arithmetic_of_latents_refuses_what_is_no_latent(rows: Tensor) -> None:
    model = build()
    z = model.encode(rows)
    for new in (torch.ones(3).double(), torch.tensor(1.0).double(), torch.ones(4, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"new must be floats \(4,\) or \(4, 4\), got"):
            model.edit(z, 0, new)
    for call in (lambda: model.edit(z, 0, z[0, 0] * math.nan), lambda: model.shift(z, z[0] * math.nan)):
        with pytest.raises(ValueError, match="must be finite, got NaN or infinity"):
            call()
    for call in (lambda: model.edit(z, 0, 0 * z[0, 0]), lambda: model.shift(z, -z)):
        with pytest.raises(ValueError, match="a latent of length 0 has no direction"):
            call()
    with pytest.raises(ValueError, match=r"layer must be a whole number in \[0, 2\), got 0\.5"):
        model.edit(z, 0.5, z[0, 0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"direction must be floats \(2, 4\) or \(4, 2, 4\), got torch.float64 \(4,\)"):
        model.shift(z, z[0, 0])
    with pytest.raises(ValueError, match="strength must be finite, got inf"):
        model.shift(z, z[0], strength=math.inf)
    with pytest.raises(ValueError, match=r"each end must be floats \(2, 4\), got torch.float64 \(1, 4\)"):
        model.interpolate(z[0], z[1, :1], 3)
    with pytest.raises(TypeError, match="latents must be a tensor of floats, got list"):
        model.decode(z.tolist())  # type: ignore[arg-type]
    for groups in ((rows[:0], rows), (rows, rows[:0])):
        with pytest.raises(ValueError, match=r"two groups of sentences are expected, got [04] and [04] sentences"):
            model.attribute(*groups)


def test_latents_and_rows_may_have_another_precision(rows: Tensor) -> None:
    model = build().float()
    z = model.encode(rows)
    for kind in (torch.float64, torch.float16):
        assert torch.equal(model.decode(z.to(kind)), model.decode(z.to(kind).float()))
    assert torch.allclose(model.interpolate(z[0].double(), z[1], 3).float(), model.interpolate(z[0], z[1], 3))
    for kind in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(model.encode(rows.to(kind)), z)
        assert torch.equal(model.loss(rows.to(kind), generator=0).loss, model.loss(rows, generator=0).loss)


def test_sentences_that_are_the_same_initialize_nothing(rows: Tensor) -> None:
    model = build()
    before = model.network.read[0].weight.clone()
    for same in (rows[:1], rows[:1].expand(3, -1), rows[:0]):
        with pytest.raises(ValueError, match=r"sentences that differ are expected, got [013] of one kind"):
            model.initialize(same)
    assert torch.equal(model.network.read[0].weight, before)


def test_models_that_do_not_fit_are_refused() -> None:
    for options, message in (
        ({"n_latent_layers": 3}, "from 1 to 2, all blocks of the backbone but the first"),
        ({"n_latent_layers": 0}, "from 1 to"),
        ({"max_length": 2}, "at least 3"),
        ({"latent": "vq"}, "'vmf' or 'gaussian'"),
        ({"beta": -1.0}, "beta and beta_warmup"),
        ({"beta_warmup": -1}, "beta and beta_warmup"),
        ({"beta": math.inf}, "and finite, got inf"),
        ({"latent": "gaussian", "free_bits": math.inf}, "in nats, and finite, got inf"),
        ({"end_id": 2}, "three ids"),
        ({"end_id": 50}, r"in the vocabulary, \[0, 11\)"),
        ({"kappa": 0.0}, "above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'t5'"):
        build("t5")
    with pytest.raises(ValueError, match="learned positions need max_length 18"):
        build("learned", max_length=9)
    with pytest.raises(ValueError, match="2 segments"):
        UniVAE(Transformer(TransformerConfig(11, hidden_size=16, num_segments=0)), n_latent_layers=2)


def test_weights_are_saved_and_loaded(tmp_path, rows: Tensor) -> None:
    model = build(beta_warmup=5).train()
    model.loss(rows)
    model.eval().save(tmp_path / "model.safetensors")
    other = build(seed=1, beta_warmup=5).load(tmp_path / "model.safetensors")
    assert torch.equal(other.encode(rows), model.encode(rows))
    assert int(other.steps) == 1


def test_latents_of_the_prior_do_not_depend_on_the_batch() -> None:
    model = build()
    z = model.sample_latents(5, generator=2)
    assert torch.allclose(z.norm(dim=-1), torch.ones(5, 2).double())
    assert torch.equal(model.sample_latents(3, generator=2), z[:3])
    assert torch.equal(model.decode(z), model.sample(5, generator=2))


@pytest.mark.slow
@pytest.mark.parametrize("latent", ["vmf", "gaussian"])
def test_training_learns_a_few_sentences(latent: str) -> None:
    torch.manual_seed(0)
    texts = [a + b for a in ("ab", "cd", "ef") for b in ("gg", "ga", "ag", "c")]
    rows = VOCABULARY.encode(texts, 6)
    config = TransformerConfig(len(VOCABULARY), hidden_size=32, num_layers=3, num_heads=2, norm="pre")
    model = UniVAE(Transformer(config), n_latent_layers=2, latent_dim=8, latent=latent, max_length=6, beta=0.1)  # type: ignore[arg-type]
    for part in model.backbone.blocks.modules():
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(part.weight)
    model.initialize(rows)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    noise = torch.Generator().manual_seed(0)
    for _ in range(800):
        optimizer.zero_grad()
        model.loss(rows, generator=noise).loss.backward()
        optimizer.step()
    right = (model.reconstruct(rows) == rows).all(1)
    assert right.double().mean() >= 0.9


@pytest.mark.parametrize("latent", ["vmf", "gaussian"])
def test_initialize_standardises_what_latents_are_chosen_from(latent: str) -> None:
    torch.manual_seed(0)
    texts = [a + b + c for a in "abcd" for b in "efg" for c in "abg"]
    rows = VOCABULARY.encode(texts, N)
    config = TransformerConfig(len(VOCABULARY), hidden_size=16, num_layers=3, num_heads=2)
    model = UniVAE(Transformer(config), n_latent_layers=2, latent_dim=4, latent=latent, max_length=N).double().eval()  # type: ignore[arg-type]

    def read() -> list[Tensor]:
        r_of: list[Tensor] = []

        def choose(number: int, r: Tensor) -> Tensor:
            r_of.append(r.detach())
            return model.latent.centre(r)

        model.network(rows, choose)
        return r_of

    before = read()
    assert all((r.std(0, correction=0) < 0.1 * r.square().mean().sqrt()).all() for r in before)
    logarithms = model.initialize(rows) and [r[:, 4:] for r in before]
    for r, old in zip(read(), logarithms, strict=True):
        assert torch.allclose(r[:, :4].mean(0), torch.zeros(4).double(), atol=1e-9)
        assert torch.allclose(r[:, :4].std(0, correction=0), torch.ones(4).double())
        assert r[:, 4:].shape == old.shape
    assert torch.allclose(read()[0][:, 4:], before[0][:, 4:])
