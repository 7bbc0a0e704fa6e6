"""Diffusion and flow matching from first principles: schedules, paths, priors, solvers.

Importing this package does not load torch; the names below load it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.generative.diffusion.configs import (
        schedule_from_config as schedule_from_config,
        scheduler_config as scheduler_config,
    )
    from kexue.generative.diffusion.denoiser import (
        Denoiser as Denoiser,
        Prediction as Prediction,
        Predictor as Predictor,
        ReverseSDE as ReverseSDE,
    )
    from kexue.generative.diffusion.discrete import (
        DiscreteSchedule as DiscreteSchedule,
        zero_terminal_snr as zero_terminal_snr,
    )
    from kexue.generative.diffusion.exact import MixtureDenoiser as MixtureDenoiser
    from kexue.generative.diffusion.flow_matching import (
        FlowMatching as FlowMatching,
        Pairs as Pairs,
        flow_matching_loss as flow_matching_loss,
    )
    from kexue.generative.diffusion.grid import make_grid as make_grid
    from kexue.generative.diffusion.guidance import (
        ClassifierFreeGuidance as ClassifierFreeGuidance,
        ClassifierGuidance as ClassifierGuidance,
        SimilarityGuidance as SimilarityGuidance,
        cosine_similarity_score as cosine_similarity_score,
        gram_score as gram_score,
    )
    from kexue.generative.diffusion.images import ImageDiffusion as ImageDiffusion
    from kexue.generative.diffusion.inversion import Inversion as Inversion, ddim_encode as ddim_encode
    from kexue.generative.diffusion.likelihood import (
        LogProb as LogProb,
        flow_ode as flow_ode,
        log_likelihood as log_likelihood,
    )
    from kexue.generative.diffusion.losses import (
        ConditionDropout as ConditionDropout,
        score_matching_loss as score_matching_loss,
    )
    from kexue.generative.diffusion.model import Diffusion as Diffusion
    from kexue.generative.diffusion.ode import ODEResult as ODEResult, odeint as odeint
    from kexue.generative.diffusion.ode_steps import (
        ab_step as ab_step,
        euler_step as euler_step,
        heun_step as heun_step,
        midpoint_step as midpoint_step,
        rk4_step as rk4_step,
    )
    from kexue.generative.diffusion.path import (
        LinearPath as LinearPath,
        Path as Path,
        PathSample as PathSample,
        pfgm_path as pfgm_path,
    )
    from kexue.generative.diffusion.prior import (
        CauchyPrior as CauchyPrior,
        EmpiricalPrior as EmpiricalPrior,
        NormalPrior as NormalPrior,
        Prior as Prior,
        UniformPrior as UniformPrior,
    )
    from kexue.generative.diffusion.schedule import (
        VE as VE,
        VP as VP,
        CosineSchedule as CosineSchedule,
        FlowSchedule as FlowSchedule,
        FromAlphaSigma as FromAlphaSigma,
        QuadraticExp as QuadraticExp,
        Schedule as Schedule,
        SubVP as SubVP,
        expand_dims as expand_dims,
    )
    from kexue.generative.diffusion.solver import Trajectory as Trajectory, solve as solve
    from kexue.generative.diffusion.steps import (
        Step as Step,
        ancestral_step as ancestral_step,
        ddim_step as ddim_step,
        ddpm_step as ddpm_step,
        dpm1_step as dpm1_step,
        dpmpp_2m_step as dpmpp_2m_step,
        euler_maruyama_step as euler_maruyama_step,
        predictor_corrector_step as predictor_corrector_step,
    )
    from kexue.generative.diffusion.trajectory import TrajectoryPath as TrajectoryPath

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "ode": ("ODEResult", "odeint"),
        "prior": ("CauchyPrior", "EmpiricalPrior", "NormalPrior", "Prior", "UniformPrior"),
        "configs": ("schedule_from_config", "scheduler_config"),
        "guidance": (
            "ClassifierFreeGuidance",
            "ClassifierGuidance",
            "SimilarityGuidance",
            "cosine_similarity_score",
            "gram_score",
        ),
        "likelihood": ("LogProb", "flow_ode", "log_likelihood"),
        "losses": ("ConditionDropout", "score_matching_loss"),
        "model": ("Diffusion",),
        "denoiser": ("Denoiser", "Prediction", "Predictor", "ReverseSDE"),
        "discrete": ("DiscreteSchedule", "zero_terminal_snr"),
        "exact": ("MixtureDenoiser",),
        "flow_matching": ("FlowMatching", "Pairs", "flow_matching_loss"),
        "grid": ("make_grid",),
        "images": ("ImageDiffusion",),
        "inversion": ("Inversion", "ddim_encode"),
        "ode_steps": ("ab_step", "euler_step", "heun_step", "midpoint_step", "rk4_step"),
        "schedule": (
            "VE",
            "VP",
            "CosineSchedule",
            "FlowSchedule",
            "FromAlphaSigma",
            "QuadraticExp",
            "Schedule",
            "SubVP",
            "expand_dims",
        ),
        "path": ("LinearPath", "Path", "PathSample", "pfgm_path"),
        "trajectory": ("TrajectoryPath",),
        "solver": ("Trajectory", "solve"),
        "steps": (
            "Step",
            "ancestral_step",
            "ddim_step",
            "ddpm_step",
            "dpm1_step",
            "dpmpp_2m_step",
            "euler_maruyama_step",
            "predictor_corrector_step",
        ),
    },
    needs="torch",
    extra="generative",
)
