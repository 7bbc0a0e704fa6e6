"""Models by name: how one is built for the items of a data set, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kexue.generative.diffusion.denoiser import Target
from kexue.generative.diffusion.images import ImageDiffusion
from kexue.generative.diffusion.schedule import VP, FlowSchedule, Schedule
from kexue.generative.energy.chains import langevin
from kexue.generative.energy.model import EnergyModel
from kexue.generative.flow.builders import glow, nice, realnvp
from kexue.generative.flow.dequantization import DequantizedFlow
from kexue.generative.gan import GAN, sngan
from kexue.generative.ign import IGN
from kexue.generative.likelihoods import LogisticLikelihood
from kexue.generative.model import GenerativeModel
from kexue.generative.networks import mlp
from kexue.generative.networks.convolution import ConvDecoder, ConvEncoder, GridDecoder, GridEncoder
from kexue.generative.networks.denoiser import MLPDenoiser
from kexue.generative.networks.mlp import MLP
from kexue.generative.networks.unet import TinyUNet
from kexue.generative.run.images import Images
from kexue.generative.run.medium import Medium
from kexue.generative.run.texts import Texts
from kexue.generative.univae.characters import CharacterVocabulary
from kexue.generative.univae.model import UniVAE
from kexue.generative.vae import VAE
from kexue.generative.vqvae import VQVAE
from kexue.nn import Transformer, TransformerConfig, VectorQuantizer
from kexue.train.schedules import build_optimizer

Facts = Mapping[str, Any]  # of images: event_shape, levels, classes, class_shares, encoder
Sizes = Mapping[str, Any]  # JSON-ready; the arguments of the functions that build a model
_MARGIN = 0.05  # of the logit before a flow
_DROPOUT = 0.15  # of classes and captions, so that guidance has a model without them


@dataclass(frozen=True)
class Course:
    """How a model is trained.

    Attributes:
        steps, batch_size, lr: as of `ModelConfig`.
        ema: decay of the average of the weights; 0: none.
        eval_every: steps between two looks at the validation part.
        patience: looks without a better validation loss after which the training ends, and the best step is kept. None,
            where the loss does not tell how good a model is, as in an adversarial training: no looks, the last step is
            kept.
        weight_decay: of matrices and filters.
        betas: decays of AdamW's averages of the gradient and of its square.
        clip: largest norm of the gradient, against rare outliers.
    """

    steps: int
    batch_size: int = 128
    lr: float = 1e-3
    ema: float = 0.99
    eval_every: int = 100
    patience: int | None = 10
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 100.0


def train_all(model: nn.Module, course: Course, *, rate: float = 1.0) -> list[Optimizer]:
    """Return AdamW for all weights of a model, or of a part of it at a multiple of the learning rate of the course."""
    return [build_optimizer(model, rate * course.lr, weight_decay=course.weight_decay, betas=course.betas)]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the model of a name is made.

    Attributes:
        medium: what it makes.
        choose_sizes: returns the sizes of a model for items of this kind.
        build: returns a new model of these sizes.
        choose_course: returns how it is trained on items of this kind.
        optimizers: returns what trains the new model, in the order of the `optimizer_index` of its `training_step`.
        multiple: returns of what height and width of images must be multiples.
        start: called with the new model and some hundreds of items to train on, before the first step.
        finish: called with the model and items to train on before it makes samples.
        bound: options with which `log_prob_bound` measures a trained model.
        tempered: options of `sample` that go with a temperature.
        classes: whether it learns the classes of the items, where they have some.
    """

    medium: type[Medium]
    choose_sizes: Callable[[Facts], Sizes]
    build: Callable[[Facts, Sizes], GenerativeModel]
    choose_course: Callable[[Facts], Course]
    optimizers: Callable[[Any, Course], list[Optimizer]] = train_all
    multiple: Callable[[Facts], int] = lambda _facts: 1
    start: Callable[[Any, Tensor], object] = lambda _model, _items: None
    finish: Callable[[Any, Tensor], object] = lambda _model, _items: None
    bound: Mapping[str, Any] = field(default_factory=dict)
    tempered: Mapping[str, Any] = field(default_factory=dict)
    classes: bool = False


def list_models() -> list[str]:
    """Return the names of the models that `train_model` and ``kexue model train`` know.

    Example:
        >>> "vae" in list_models()
        True
    """
    return list(RECIPES)


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        ValueError: an unknown name; the message lists those known.
    """
    if name not in RECIPES:
        raise ValueError(f"model must be one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]


def is_small(facts: Facts) -> bool:
    """Return whether the images are small."""
    return mlp.is_small(facts["event_shape"])


# ---- VAE and VQ-VAE --------------------------------------------------------------------------------------------------


def _vae_sizes(facts: Facts) -> Sizes:
    return {"latent_dim": 8, "hidden": [256, 128]} if is_small(facts) else {"latent_dim": 32, "channels": 32}


def _build_vae(facts: Facts, sizes: Sizes) -> VAE:
    d = sizes["latent_dim"]
    encoder, decoder = _build_coders(facts, sizes, 2 * d, d)
    return VAE(encoder, decoder, d, likelihood=LogisticLikelihood(facts["levels"], sigma=0.25))


def _build_coders(facts: Facts, sizes: Sizes, width: int, latent_dim: int) -> tuple[nn.Module, nn.Module]:
    """Return networks from images to `width` numbers, and from latents to images."""
    shape = tuple(facts["event_shape"])
    if "hidden" in sizes:
        hidden = sizes["hidden"]
        return MLP(shape, width, hidden=hidden), MLP(latent_dim, shape, hidden=hidden[::-1])
    channels = sizes["channels"]
    return ConvEncoder(shape, width, channels=channels), ConvDecoder(latent_dim, shape, channels=channels)


def _vqvae_sizes(facts: Facts) -> Sizes:
    return {"dim": 16, "num_codes": 128, "channels": 32}


class _Rows(nn.Module):
    """Grids (B, d, H, W) as rows (B, H, W, d), the last axis of which the quantiser reads."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


class _Grid(nn.Module):
    """Rows (B, H, W, d) as grids (B, d, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1)


def _build_vqvae(facts: Facts, sizes: Sizes) -> VQVAE:
    shape, d = tuple(facts["event_shape"]), sizes["dim"]
    encoder = nn.Sequential(GridEncoder(shape, d, channels=sizes["channels"]), _Rows())
    decoder = nn.Sequential(_Grid(), GridDecoder(d, shape, channels=sizes["channels"]))
    quantizer = VectorQuantizer(d, sizes["num_codes"])
    return VQVAE(encoder, decoder, quantizer, event_shape=shape)


def _fit_codes(model: VQVAE, items: Tensor) -> None:
    model.fit_prior(to_batches(items, model.device))


def to_batches(items: Tensor, device: torch.device, size: int = 256) -> Iterable[Tensor]:
    """Yield items in batches on a device."""
    return (part.to(device) for part in torch.split(items, size))


# ---- flows -----------------------------------------------------------------------------------------------------------


def _nice_sizes(facts: Facts) -> Sizes:
    return {"couplings": 4, "hidden": [128] * 3 if is_small(facts) else [1000] * 5}


def _build_nice(facts: Facts, sizes: Sizes) -> DequantizedFlow:
    return DequantizedFlow(nice(facts["event_shape"], margin=_MARGIN, **sizes), facts["levels"])


def _realnvp_sizes(facts: Facts) -> Sizes:
    levels = _count_halvings(facts["event_shape"], 2)
    return {"couplings": 4 if is_small(facts) else 3, "hidden": [32 if is_small(facts) else 64], "levels": levels}


def _build_realnvp(facts: Facts, sizes: Sizes) -> DequantizedFlow:
    return DequantizedFlow(realnvp(facts["event_shape"], margin=_MARGIN, **sizes), facts["levels"])


def _glow_sizes(facts: Facts) -> Sizes:
    small = is_small(facts)
    levels = _count_halvings(facts["event_shape"], 2 if small else 3)
    size = {"steps": 6, "hidden": 32} if small else {"steps": 8, "hidden": 128}
    # Glow's own scale, a sigmoid, has no lower bound: on few images some samples overflow on the way back
    return {"levels": levels, **size, "scale": "tanh"}


def _build_glow(facts: Facts, sizes: Sizes) -> DequantizedFlow:
    return DequantizedFlow(glow(facts["event_shape"], margin=_MARGIN, **sizes), facts["levels"])


def _count_halvings(shape: Sequence[int], most: int) -> int:
    """Return how often height and width can be halved, `most` times at most; once at least, which a flow refuses."""
    return next((times for times in range(most, 1, -1) if all(size % 2**times == 0 for size in shape[1:])), 1)


def _flow_course(facts: Facts) -> Course:
    if is_small(facts):
        return Course(1000, eval_every=50)
    return Course(30_000, batch_size=64, eval_every=500)


def _nice_course(facts: Facts) -> Course:
    return replace(
        _flow_course(facts), steps=3000 if is_small(facts) else 60_000
    )  # its steps are cheap, and teach less


def _auto_encoder_course(facts: Facts) -> Course:
    return Course(3000) if is_small(facts) else Course(20_000, eval_every=500)


# ---- diffusion and flow matching -------------------------------------------------------------------------------------


def _denoiser_sizes(facts: Facts) -> Sizes:
    if is_small(facts):
        return {"hidden": 256, "blocks": 3}
    return {"channels": 32, "mult": [1, 2, 2] if _count_halvings(facts["event_shape"], 2) == 2 else [1, 2]}


def _denoiser_multiple(facts: Facts) -> int:
    return 1 if is_small(facts) else 2


def _build_denoiser(facts: Facts, sizes: Sizes) -> nn.Module:
    dim = facts["encoder"] and facts["encoder"]["dim"]
    conditions = {"num_classes": len(facts["classes"]) or None, "condition_dim": dim}
    if "hidden" in sizes:
        return MLPDenoiser(tuple(facts["event_shape"]), **conditions, **sizes)
    return TinyUNet(facts["event_shape"], **conditions, **sizes)


def _build_diffusion(facts: Facts, sizes: Sizes) -> ImageDiffusion:
    return _with_classes(facts, _build_denoiser(facts, sizes), VP(), "v")


def _build_flow_matching(facts: Facts, sizes: Sizes) -> ImageDiffusion:
    return _with_classes(facts, _build_denoiser(facts, sizes), FlowSchedule(), "velocity")


def _with_classes(facts: Facts, net: nn.Module, schedule: Schedule, prediction: Target) -> ImageDiffusion:
    shares = facts["class_shares"] or None
    dropout = _DROPOUT if shares or facts["encoder"] else 0.0
    return ImageDiffusion(
        net, schedule, facts["levels"], prediction=prediction, condition_dropout=dropout, class_shares=shares
    )


def _diffusion_course(facts: Facts) -> Course:
    if is_small(facts):
        return Course(8000, ema=0.999, eval_every=200)
    return Course(50_000, batch_size=64, lr=3e-4, ema=0.999, eval_every=1000)


# ---- energy-based model ----------------------------------------------------------------------------------------------


def _ebm_sizes(facts: Facts) -> Sizes:
    if is_small(facts):
        return {"hidden": [256, 256], "steps": 20, "step_size": 1.0, "noise_scale": 0.1}
    # larger images are farther apart, at energies that are not: chains need longer steps
    return {"channels": 32, "steps": 40, "step_size": 10.0, "noise_scale": 0.1}


def _build_ebm(facts: Facts, sizes: Sizes) -> EnergyModel:
    shape = tuple(facts["event_shape"])
    net: nn.Module
    if "hidden" in sizes:
        net = MLP(shape, 1, hidden=sizes["hidden"])
    else:
        net = ConvEncoder(shape, 1, channels=sizes["channels"])
    chains = {name: sizes[name] for name in ("steps", "step_size", "noise_scale")}
    return EnergyModel(net, shape, sampler=partial(langevin, bounds=(-1.0, 1.0), **chains))


def _ebm_course(facts: Facts) -> Course:
    steps = 1500 if is_small(facts) else 10_000
    return Course(steps, batch_size=64, eval_every=500, patience=None, weight_decay=0.0)


# ---- GAN -------------------------------------------------------------------------------------------------------------


def _gan_sizes(facts: Facts) -> Sizes:
    return {"latent_dim": 32 if is_small(facts) else 64}


def _build_gan(facts: Facts, sizes: Sizes) -> GAN:
    return sngan(tuple(facts["event_shape"]), **sizes)


def _gan_course(facts: Facts) -> Course:
    steps = 5000 if is_small(facts) else 30_000
    return Course(
        steps, batch_size=64, lr=2e-4, ema=0.999, eval_every=500, patience=None, weight_decay=0.0, betas=(0.0, 0.9)
    )


def _train_gan(model: GAN, course: Course) -> list[Optimizer]:
    """Return the critic's optimizer, four times as fast, and the generator's."""
    return [*train_all(model.critic, course, rate=4.0), *train_all(model.generator_net, course)]


# ---- IGN -------------------------------------------------------------------------------------------------------------


def _ign_sizes(facts: Facts) -> Sizes:
    return {"latent_dim": 32, "hidden": [256, 256]} if is_small(facts) else {"latent_dim": 64, "channels": 32}


def _build_ign(facts: Facts, sizes: Sizes) -> IGN:
    d = sizes["latent_dim"]
    net = nn.Sequential(*_build_coders(facts, sizes, d, d), nn.Tanh())
    return IGN(net, event_shape=tuple(facts["event_shape"]))


def _ign_course(facts: Facts) -> Course:
    course = Course(2500, betas=(0.5, 0.999), weight_decay=0.0, patience=None)
    return course if is_small(facts) else replace(course, steps=10_000, batch_size=512, lr=1e-4)


# ---- UniVAE ----------------------------------------------------------------------------------------------------------


def _univae_sizes(facts: Facts) -> Sizes:
    latent = {"n_latent_layers": 3, "latent_dim": 32, "kappa": 200.0}
    return {"hidden_size": 128, "num_layers": 4, "num_heads": 4, **latent}


def _build_univae(facts: Facts, sizes: Sizes) -> UniVAE:
    latent = {name: sizes[name] for name in ("n_latent_layers", "latent_dim", "kappa")}
    network = {name: value for name, value in sizes.items() if name not in latent}
    backbone = Transformer(TransformerConfig(len(CharacterVocabulary(facts["characters"])), **network))
    for part in backbone.blocks.modules():  # weights of the size of BERT's are too small for this width
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
    return UniVAE(backbone, max_length=facts["max_length"], **latent)


def _univae_course(facts: Facts) -> Course:
    return Course(10_000, batch_size=64, lr=3e-3, ema=0.99, eval_every=250)


RECIPES = {
    "vae": Recipe(
        medium=Images,
        choose_sizes=_vae_sizes,
        build=_build_vae,
        choose_course=_auto_encoder_course,
        multiple=lambda facts: 1 if is_small(facts) else 4,
        bound={"k": 100},
    ),
    "vqvae": Recipe(
        medium=Images,
        choose_sizes=_vqvae_sizes,
        build=_build_vqvae,
        choose_course=_auto_encoder_course,
        multiple=lambda _facts: 4,
        finish=_fit_codes,
    ),
    "nice": Recipe(
        medium=Images,
        choose_sizes=_nice_sizes,
        build=_build_nice,
        choose_course=_nice_course,
        start=DequantizedFlow.initialize,
        bound={"draws": 8},
    ),
    "realnvp": Recipe(
        medium=Images,
        choose_sizes=_realnvp_sizes,
        build=_build_realnvp,
        choose_course=_flow_course,
        multiple=lambda _facts: 2,
        start=DequantizedFlow.initialize,
        bound={"draws": 8},
    ),
    "glow": Recipe(
        medium=Images,
        choose_sizes=_glow_sizes,
        build=_build_glow,
        choose_course=_flow_course,
        multiple=lambda _facts: 2,
        start=DequantizedFlow.initialize,
        bound={"draws": 8},
    ),
    "univae": Recipe(
        medium=Texts,
        choose_sizes=_univae_sizes,
        build=_build_univae,
        choose_course=_univae_course,
        start=UniVAE.initialize,
        tempered={"method": "sample"},
    ),
    "diffusion": Recipe(
        medium=Images,
        choose_sizes=_denoiser_sizes,
        build=_build_diffusion,
        choose_course=_diffusion_course,
        multiple=_denoiser_multiple,
        classes=True,
    ),
    "flow-matching": Recipe(
        medium=Images,
        choose_sizes=_denoiser_sizes,
        build=_build_flow_matching,
        choose_course=_diffusion_course,
        multiple=_denoiser_multiple,
        classes=True,
    ),
    "ebm": Recipe(
        medium=Images,
        choose_sizes=_ebm_sizes,
        build=_build_ebm,
        choose_course=_ebm_course,
        multiple=lambda facts: 1 if is_small(facts) else 4,
    ),
    "gan": Recipe(
        medium=Images,
        choose_sizes=_gan_sizes,
        build=_build_gan,
        choose_course=_gan_course,
        optimizers=_train_gan,
        multiple=lambda facts: 1 if is_small(facts) else 4,
    ),
    "ign": Recipe(
        medium=Images,
        choose_sizes=_ign_sizes,
        build=_build_ign,
        choose_course=_ign_course,
        multiple=lambda facts: 1 if is_small(facts) else 4,
    ),
}
