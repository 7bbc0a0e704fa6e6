"""Recipes of the VAE and of the VQ-VAE."""

from __future__ import annotations

from torch import Tensor, nn

from kexue.generative.likelihoods import LogisticLikelihood
from kexue.generative.networks.convolution import ConvDecoder, ConvEncoder, GridDecoder, GridEncoder
from kexue.generative.networks.mlp import MLP
from kexue.generative.recipes.recipe import Course, Facts, Recipe, Sizes, is_small, to_batches
from kexue.generative.run.images import Images
from kexue.generative.vae import VAE
from kexue.generative.vqvae import VQVAE
from kexue.nn import VectorQuantizer


def _vae_sizes(facts: Facts) -> Sizes:
    return {"latent_dim": 8, "hidden": [256, 128]} if is_small(facts) else {"latent_dim": 32, "channels": 32}


def _build_vae(facts: Facts, sizes: Sizes) -> VAE:
    d = sizes["latent_dim"]
    encoder, decoder = build_coders(facts, sizes, 2 * d, d)
    return VAE(encoder, decoder, d, likelihood=LogisticLikelihood(facts["levels"], sigma=0.25))


def build_coders(facts: Facts, sizes: Sizes, width: int, latent_dim: int) -> tuple[nn.Module, nn.Module]:
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


def _auto_encoder_course(facts: Facts) -> Course:
    return Course(3000) if is_small(facts) else Course(20_000, eval_every=500)


AUTO_ENCODERS = {
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
}
