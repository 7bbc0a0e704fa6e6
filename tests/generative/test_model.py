"""The vocabulary of generative models: batches, conditions, what is refused, files."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kexue.errors import CheckpointError, KexueError, NotSupported
from kexue.generative import (
    MLP,
    VAE,
    VQVAE,
    Diffusion,
    FlowMatching,
    GenerativeModel,
    LossOutput,
    MLPDenoiser,
    Noise,
    glow,
    nice,
    realnvp,
)
from kexue.generative.diffusion import VP, LinearPath, NormalPrior
from kexue.nn import VectorQuantizer


class Affine(GenerativeModel):
    """x = scale z + the class."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.event_shape = (width,)
        self.scale = nn.Parameter(torch.ones(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.modes: list[bool] = []

    def draw(self, noise: Noise, *, condition: Tensor | None, shift: float = 0.0) -> Tensor:  # type: ignore[override]
        self.modes.append(self.training)
        x = self.scale * noise.normal(self.event_shape) + shift
        return x if condition is None else x + condition[:, None]

    def loss(self, batch: Tensor, *, generator: torch.Generator | int | None = None) -> LossOutput:
        return LossOutput((batch * self.scale).mean())


def test_an_event_does_not_depend_on_the_size_of_the_batch() -> None:
    model = Affine()
    whole = model.sample(7, generator=3)
    assert whole.shape == (7, 3)
    for size in (1, 2, 3, 100):
        assert torch.equal(model.sample(7, generator=3, batch_size=size), whole)
    assert torch.equal(model.sample(4, generator=3), whole[:4])
    assert not torch.equal(model.sample(7, generator=4), whole)


def test_conditions_are_cut_with_the_batches() -> None:
    model = Affine()
    classes = torch.arange(5)
    plain = model.sample(5, generator=0)
    assert torch.allclose(model.sample(5, generator=0, condition=classes, batch_size=2), plain + classes[:, None])
    assert torch.allclose(model.sample(5, generator=0, condition=2), plain + 2)
    assert torch.allclose(model.sample(5, generator=0, shift=1.0), plain + 1)
    with pytest.raises(ValueError, match="one for each of 4 events"):
        model.sample(4, condition=classes)


def test_sampling_is_in_evaluation_mode_and_without_gradients() -> None:
    model = Affine().train()
    assert not model.sample(2).requires_grad
    assert model.modes == [False]
    assert model.training


def test_no_event_is_an_empty_tensor() -> None:
    assert Affine().sample(0, generator=0).shape == (0, 3)
    assert Affine().sample(0).shape == (0, 3)


@pytest.mark.parametrize(("n", "size", "words"), [(-1, None, "n must be"), (True, None, "n must be"), (2, 0, ">= 1")])
def test_bad_numbers_are_refused(n: int, size: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Affine().sample(n, batch_size=size)


def test_what_a_model_lacks_is_refused_with_what_it_has() -> None:
    model, x = Affine(), torch.zeros(1, 3)
    assert model.operations == ("sample", "loss")
    for operation in ("log_prob", "log_prob_bound", "energy", "encode", "decode"):
        with pytest.raises(NotSupported, match=f"Affine does not support {operation}; it supports: sample, loss"):
            getattr(model, operation)(x)
    with pytest.raises(NotSupported, match="does not support sample; it supports: none"):
        GenerativeModel().sample(1)


def test_events_are_checked() -> None:
    model = Affine()
    model.check_events(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"shape \(B, 3\), got \(2, 4\)"):
        model.check_events(torch.zeros(2, 4))
    with pytest.raises(TypeError, match="int64"):
        model.check_events(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="first in item 1"):
        model.check_events(torch.tensor([[0.0, 0, 0], [0, torch.nan, 0]]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_samples_that_are_not_finite_are_an_error(value: float) -> None:
    class Broken(Affine):
        def draw(self, noise: Noise, *, condition: Tensor | None, shift: float = 0.0) -> Tensor:  # type: ignore[override]
            x = super().draw(noise, condition=condition, shift=shift)
            return torch.where(torch.arange(len(x))[:, None] == 2, value, x)

    with pytest.raises(KexueError, match="sample 2 of 4 of the Broken has NaN or infinity"):
        Broken().sample(4, generator=0)
    assert Broken().sample(2, generator=0).shape == (2, 3)


def test_a_flow_whose_weights_have_diverged_says_so() -> None:
    flow = glow((1, 4, 4), levels=1, steps=2, hidden=4)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.normal_(0, 30, generator=torch.Generator().manual_seed(0))
    with pytest.raises(KexueError, match="sample 0 of 2 of the Flow has NaN or infinity"):
        flow.sample(2, generator=0)


MODELS: dict[str, Callable[[], GenerativeModel]] = {
    "diffusion": lambda: Diffusion(MLPDenoiser(4, hidden=8), VP()),
    "flow matching": lambda: FlowMatching(MLPDenoiser(4, hidden=8), LinearPath(NormalPrior(4))),
    "nice": lambda: nice(4, hidden=(8,)),
    "realnvp": lambda: realnvp(4, hidden=(8,)),
    "vae": lambda: VAE(MLP((4,), 4), MLP(2, (4,)), 2),
    "vqvae": lambda: VQVAE(MLP((4,), (2, 2)), MLP((2, 2), (4,)), VectorQuantizer(2, 8), event_shape=(4,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_events_of_another_precision_than_the_weights(name: str) -> None:
    """Said in the words of events, not of matrices; what works, works as before."""
    model, x = MODELS[name](), torch.zeros(3, 4)
    with pytest.raises(TypeError, match=r"are torch.float32, got \w+ of torch.float64; use \w+.to\(torch.float32\)"):
        model.loss(x.double())
    model.loss(x)
    with pytest.raises(TypeError, match=r"are torch.bfloat16, got \w+ of torch.float32; use .float\(\) of the"):
        model.bfloat16().loss(x)
    model.float().loss(x)


@pytest.mark.parametrize("name", ["diffusion", "flow matching", "realnvp"])
def test_likelihoods_in_half_precision_are_refused_with_a_remedy(name: str) -> None:
    with pytest.raises(TypeError, match=r"use .float\(\) of the model, .* float32 at least"):
        MODELS[name]().bfloat16().log_prob(torch.zeros(3, 4, dtype=torch.bfloat16))


def test_other_errors_of_a_network_are_left_alone() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(3, 3)

        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            raise RuntimeError("another type of error")

    model = Diffusion(Failing(), VP(), event_shape=(3,))
    with pytest.raises(RuntimeError, match="another type of error"):
        model.loss(torch.zeros(2, 3))


def test_a_file_gives_the_same_model_again(tmp_path: object) -> None:
    path = f"{tmp_path}/model.safetensors"
    model = Affine()
    with torch.no_grad():
        model.scale.normal_()
    model.count.fill_(4)  # type: ignore[operator]
    model.save(path)
    again = Affine().load(path)
    assert torch.equal(again.sample(3, generator=0), model.sample(3, generator=0))
    assert again.count == 4


def test_files_that_do_not_fit_are_refused(tmp_path: object) -> None:
    path = f"{tmp_path}/model.safetensors"
    Affine(2).save(path)
    model = Affine(3)
    with pytest.raises(CheckpointError, match=r"scale has shape \(2,\), expected \(3,\)"):
        model.load(path)
    model.more = nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match=r"more.weight is missing; more.bias is missing"):
        model.load(path)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        model.load(f"{tmp_path}/none.safetensors")
    with pytest.raises(CheckpointError, match="holds a Affine, expected a GenerativeModel"):
        GenerativeModel().load(path)
    broken = Affine(2)
    with torch.no_grad():
        broken.scale[1] = torch.nan
    broken.save(path)
    whole = Affine(2)
    with pytest.raises(CheckpointError, match="has NaN or infinity in scale"):
        whole.load(path)
    assert bool(whole.scale.isfinite().all())
    with open(path, "r+b") as file:
        file.truncate(20)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        Affine(2).load(path)
