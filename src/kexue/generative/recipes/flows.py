"""Recipes of flows: NICE, RealNVP and Glow."""

from __future__ import annotations

from dataclasses import replace

from kexue.generative.flow.builders import glow, nice, realnvp
from kexue.generative.flow.dequantization import DequantizedFlow
from kexue.generative.recipes.recipe import Course, Facts, Recipe, Sizes, count_halvings, is_small
from kexue.generative.run.images import Images

_MARGIN = 0.05  # of the logit before a flow


def _nice_sizes(facts: Facts) -> Sizes:
    return {"couplings": 4, "hidden": [128] * 3 if is_small(facts) else [1000] * 5}


def _build_nice(facts: Facts, sizes: Sizes) -> DequantizedFlow:
    return DequantizedFlow(nice(facts["event_shape"], margin=_MARGIN, **sizes), facts["levels"])


def _realnvp_sizes(facts: Facts) -> Sizes:
    levels = count_halvings(facts["event_shape"], 2)
    return {"couplings": 4 if is_small(facts) else 3, "hidden": [32 if is_small(facts) else 64], "levels": levels}


def _build_realnvp(facts: Facts, sizes: Sizes) -> DequantizedFlow:
    return DequantizedFlow(realnvp(facts["event_shape"], margin=_MARGIN, **sizes), facts["levels"])


def _glow_sizes(facts: Facts) -> Sizes:
    small = is_small(facts)
    levels = count_halvings(facts["event_shape"], 2 if small else 3)
    size = {"steps": 6, "hidden": 32} if small else {"steps": 8, "hidden": 128}
    # Glow's own scale, a sigmoid, has no lower bound: on few images some samples overflow on the way back
    return {"levels": levels, **size, "scale": "tanh"}


def _build_glow(facts: Facts, sizes: Sizes) -> DequantizedFlow:
    return DequantizedFlow(glow(facts["event_shape"], margin=_MARGIN, **sizes), facts["levels"])


def _flow_course(facts: Facts) -> Course:
    if is_small(facts):
        return Course(1000, eval_every=50)
    return Course(30_000, batch_size=64, eval_every=500)


def _nice_course(facts: Facts) -> Course:
    return replace(
        _flow_course(facts), steps=3000 if is_small(facts) else 60_000
    )  # its steps are cheap, and teach less


FLOWS = {
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
}
