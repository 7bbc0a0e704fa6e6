"""Recipe of the energy-based model."""

from __future__ import annotations

from functools import partial

from torch import nn

from kexue.generative.energy.chains import langevin
from kexue.generative.energy.model import EnergyModel
from kexue.generative.networks.convolution import ConvEncoder
from kexue.generative.networks.mlp import MLP
from kexue.generative.recipes.recipe import Course, Facts, Recipe, Sizes, is_small
from kexue.generative.run.images import Images


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


ENERGIES = {
    "ebm": Recipe(
        medium=Images,
        choose_sizes=_ebm_sizes,
        build=_build_ebm,
        choose_course=_ebm_course,
        multiple=lambda facts: 1 if is_small(facts) else 4,
    ),
}
