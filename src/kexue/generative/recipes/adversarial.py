"""Recipes of models that are trained against a critic: the GAN, and the IGN, which is its own."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from torch.optim import Optimizer

from kexue.generative.gan import GAN, sngan
from kexue.generative.ign import IGN
from kexue.generative.recipes.auto_encoders import build_coders
from kexue.generative.recipes.recipe import Course, Facts, Recipe, Sizes, is_small, train_all
from kexue.generative.run.images import Images


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


def _ign_sizes(facts: Facts) -> Sizes:
    return {"latent_dim": 32, "hidden": [256, 256]} if is_small(facts) else {"latent_dim": 64, "channels": 32}


def _build_ign(facts: Facts, sizes: Sizes) -> IGN:
    d = sizes["latent_dim"]
    net = nn.Sequential(*build_coders(facts, sizes, d, d), nn.Tanh())
    return IGN(net, event_shape=tuple(facts["event_shape"]))


def _ign_course(facts: Facts) -> Course:
    course = Course(2500, betas=(0.5, 0.999), weight_decay=0.0, patience=None)
    return course if is_small(facts) else replace(course, steps=10_000, batch_size=512, lr=1e-4)


ADVERSARIAL = {
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
