"""Generative models with one vocabulary: what they sample, which likelihood is exact, how good the samples are.

Importing this package does not load torch; the names below load it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach
from kexue.errors import NotSupported as NotSupported

if TYPE_CHECKING:
    from kexue.generative.data import ImageData as ImageData, load_images as load_images
    from kexue.generative.diffusion.flow_matching import FlowMatching as FlowMatching
    from kexue.generative.diffusion.model import Diffusion as Diffusion
    from kexue.generative.energy.buffer import ReplayBuffer as ReplayBuffer
    from kexue.generative.energy.chains import LangevinResult as LangevinResult, langevin as langevin
    from kexue.generative.energy.model import (
        ChainReport as ChainReport,
        DivergenceError as DivergenceError,
        EnergyModel as EnergyModel,
    )
    from kexue.generative.features import (
        FeatureExtractor as FeatureExtractor,
        feature_extractor as feature_extractor,
    )
    from kexue.generative.figures import (
        density_figure as density_figure,
        grid_figure as grid_figure,
        latent_walk as latent_walk,
        trajectory_figure as trajectory_figure,
    )
    from kexue.generative.flow.builders import glow as glow, nice as nice, realnvp as realnvp
    from kexue.generative.flow.chain import Chain as Chain
    from kexue.generative.flow.coupling import (
        AdditiveCoupling as AdditiveCoupling,
        AffineCoupling as AffineCoupling,
        Split as Split,
        checkerboard as checkerboard,
    )
    from kexue.generative.flow.dequantization import (
        DequantizedFlow as DequantizedFlow,
        UniformDequantizer as UniformDequantizer,
        VariationalDequantizer as VariationalDequantizer,
        bits_per_dim as bits_per_dim,
        dequantize as dequantize,
    )
    from kexue.generative.flow.elementwise import ActNorm as ActNorm, Logit as Logit, Scaling as Scaling
    from kexue.generative.flow.flow import Flow as Flow, StandardNormal as StandardNormal
    from kexue.generative.flow.linear import InvertibleConv1x1 as InvertibleConv1x1
    from kexue.generative.flow.networks import CouplingConv as CouplingConv, CouplingMLP as CouplingMLP
    from kexue.generative.flow.transforms import (
        Flatten as Flatten,
        Permutation as Permutation,
        Squeeze as Squeeze,
        Transform as Transform,
    )
    from kexue.generative.gan import GAN as GAN, sngan as sngan
    from kexue.generative.ign import IGN as IGN, SpectralNoise as SpectralNoise
    from kexue.generative.interpolation import interpolate as interpolate
    from kexue.generative.likelihoods import (
        BernoulliLikelihood as BernoulliLikelihood,
        GaussianLikelihood as GaussianLikelihood,
        Likelihood as Likelihood,
        LogisticLikelihood as LogisticLikelihood,
    )
    from kexue.generative.metrics import (
        Manifold as Manifold,
        frechet_distance as frechet_distance,
        nearest_train_ratio as nearest_train_ratio,
        precision_recall as precision_recall,
        sliced_wasserstein as sliced_wasserstein,
    )
    from kexue.generative.mixture import GaussianMixture as GaussianMixture, eight_gaussians as eight_gaussians
    from kexue.generative.model import GenerativeModel as GenerativeModel
    from kexue.generative.networks.convolution import (
        ConvDecoder as ConvDecoder,
        ConvEncoder as ConvEncoder,
        GridDecoder as GridDecoder,
        GridEncoder as GridEncoder,
    )
    from kexue.generative.networks.denoiser import Denoised as Denoised, MLPDenoiser as MLPDenoiser
    from kexue.generative.networks.mlp import MLP as MLP, ResidualMLP as ResidualMLP
    from kexue.generative.networks.unet import TinyUNet as TinyUNet
    from kexue.generative.noise import Noise as Noise, sample_generators as sample_generators
    from kexue.generative.posterior import Posterior as Posterior
    from kexue.generative.quality import (
        SampleQuality as SampleQuality,
        measure_samples as measure_samples,
        reference_values as reference_values,
    )
    from kexue.generative.recipes import list_models as list_models
    from kexue.generative.run.captions import Captions as Captions
    from kexue.generative.run.config import ModelConfig as ModelConfig, ModelResult as ModelResult
    from kexue.generative.run.evaluate import (
        ModelQuality as ModelQuality,
        TextQuality as TextQuality,
        evaluate_run as evaluate_run,
    )
    from kexue.generative.run.folder import Run as Run, open_run as open_run
    from kexue.generative.run.train import train_model as train_model
    from kexue.generative.run.use import (
        Sampled as Sampled,
        Score as Score,
        decode_run as decode_run,
        encode_run as encode_run,
        sample_run as sample_run,
        score_run as score_run,
        walk_run as walk_run,
    )
    from kexue.generative.univae.characters import CharacterVocabulary as CharacterVocabulary
    from kexue.generative.univae.mask import univae_mask as univae_mask
    from kexue.generative.univae.model import UniVAE as UniVAE
    from kexue.generative.vae import VAE as VAE
    from kexue.generative.von_mises_fisher import VonMisesFisher as VonMisesFisher
    from kexue.generative.vqvae import VQVAE as VQVAE
    from kexue.train.config import LossOutput as LossOutput

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "data": ("ImageData", "load_images"),
        "diffusion.flow_matching": ("FlowMatching",),
        "diffusion.model": ("Diffusion",),
        "energy.buffer": ("ReplayBuffer",),
        "energy.chains": ("LangevinResult", "langevin"),
        "energy.model": ("ChainReport", "DivergenceError", "EnergyModel"),
        "flow.builders": ("glow", "nice", "realnvp"),
        "flow.chain": ("Chain",),
        "flow.coupling": ("AdditiveCoupling", "AffineCoupling", "Split", "checkerboard"),
        "flow.dequantization": (
            "DequantizedFlow",
            "UniformDequantizer",
            "VariationalDequantizer",
            "bits_per_dim",
            "dequantize",
        ),
        "flow.elementwise": ("ActNorm", "Logit", "Scaling"),
        "flow.flow": ("Flow", "StandardNormal"),
        "flow.linear": ("InvertibleConv1x1",),
        "flow.networks": ("CouplingConv", "CouplingMLP"),
        "flow.transforms": (
            "Flatten",
            "Permutation",
            "Squeeze",
            "Transform",
        ),
        "features": ("FeatureExtractor", "feature_extractor"),
        "figures": ("density_figure", "grid_figure", "latent_walk", "trajectory_figure"),
        "gan": ("GAN", "sngan"),
        "ign": ("IGN", "SpectralNoise"),
        "interpolation": ("interpolate",),
        "metrics": (
            "Manifold",
            "frechet_distance",
            "nearest_train_ratio",
            "precision_recall",
            "sliced_wasserstein",
        ),
        "mixture": ("GaussianMixture", "eight_gaussians"),
        "likelihoods": ("BernoulliLikelihood", "GaussianLikelihood", "Likelihood", "LogisticLikelihood"),
        "model": ("GenerativeModel", "LossOutput"),
        "networks.convolution": ("ConvDecoder", "ConvEncoder", "GridDecoder", "GridEncoder"),
        "networks.denoiser": ("Denoised", "MLPDenoiser"),
        "networks.mlp": ("MLP", "ResidualMLP"),
        "networks.unet": ("TinyUNet",),
        "noise": ("Noise", "sample_generators"),
        "posterior": ("Posterior",),
        "recipes": ("list_models",),
        "run.captions": ("Captions",),
        "run.config": ("ModelConfig", "ModelResult"),
        "run.evaluate": ("ModelQuality", "TextQuality", "evaluate_run"),
        "run.folder": ("Run", "open_run"),
        "run.train": ("train_model",),
        "run.use": ("Sampled", "Score", "decode_run", "encode_run", "sample_run", "score_run", "walk_run"),
        "vae": ("VAE",),
        "vqvae": ("VQVAE",),
        "univae.characters": ("CharacterVocabulary",),
        "univae.mask": ("univae_mask",),
        "univae.model": ("UniVAE",),
        "von_mises_fisher": ("VonMisesFisher",),
        "quality": ("SampleQuality", "measure_samples", "reference_values"),
    },
    needs="torch",
    extra="generative",
)
