"""Recipes of diffusion and of flow matching."""

from __future__ import annotations

from torch import nn

from kexue.generative.diffusion.denoiser import Target
from kexue.generative.diffusion.images import ImageDiffusion
from kexue.generative.diffusion.schedule import VP, FlowSchedule, Schedule
from kexue.generative.networks.denoiser import MLPDenoiser
from kexue.generative.networks.unet import TinyUNet
from kexue.generative.recipes.recipe import Course, Facts, Recipe, Sizes, count_halvings, is_small
from kexue.generative.run.images import Images

_DROPOUT = 0.15  # of classes and captions, so that guidance has a model without them


def _denoiser_sizes(facts: Facts) -> Sizes:
    if is_small(facts):
        return {"hidden": 256, "blocks": 3}
    return {"channels": 32, "mult": [1, 2, 2] if count_halvings(facts["event_shape"], 2) == 2 else [1, 2]}


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


DIFFUSIONS = {
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
}
