"""Exchange of schedules with the diffusers library, by its scheduler files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kexue.errors import NotSupported
from kexue.generative.diffusion.discrete import DiscreteSchedule, zero_terminal_snr
from kexue.generative.diffusion.schedule import FlowSchedule, Schedule


def scheduler_config(schedule: Schedule) -> dict[str, Any]:
    """Return the ``scheduler_config.json`` of diffusers for a schedule, JSON-ready.

    It is that of a DDIMScheduler without clipping, with the variance of every step; or of a
    FlowMatchEulerDiscreteScheduler.

    Raises:
        NotSupported: other continuous schedules, which diffusers does not have.

    Example:
        >>> scheduler_config(FlowSchedule())["_class_name"]
        'FlowMatchEulerDiscreteScheduler'
    """
    if isinstance(schedule, FlowSchedule):
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    if not isinstance(schedule, DiscreteSchedule):
        raise NotSupported(
            f"diffusers has no file for {type(schedule).__name__}; a DiscreteSchedule and FlowSchedule can be exported."
        )
    a = schedule.alphas_cumprod
    betas = 1 - a / torch.cat([a.new_ones(1), a[:-1]])
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": schedule.num_steps,
        "trained_betas": betas.tolist(),
        "clip_sample": False,
        "set_alpha_to_one": True,
        "timestep_spacing": "trailing",
    }


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """Return the schedule of a ``scheduler_config.json`` of diffusers.

    Args:
        config: the file as a dictionary.

    Raises:
        NotSupported: another rule of betas, or none; a shifted flow schedule.

    Example:
        >>> schedule_from_config({"num_train_timesteps": 1000, "beta_schedule": "linear"}).num_steps
        1000
    """
    if "FlowMatch" in config.get("_class_name", ""):
        if config.get("shift", 1.0) != 1.0 or config.get("use_dynamic_shifting"):
            raise NotSupported("a flow schedule with shifted times cannot be imported; set shift to 1.")
        return FlowSchedule()
    steps = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        schedule = DiscreteSchedule.from_betas(config["trained_betas"])
    elif "beta_schedule" not in config and "_class_name" in config:
        raise NotSupported(f"a {config['_class_name']} without beta_schedule and trained_betas cannot be imported.")
    elif kind == "linear":
        schedule = DiscreteSchedule.linear(steps, start, end)
    elif kind == "scaled_linear":
        roots = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64)
        schedule = DiscreteSchedule.from_betas(roots.square())
    elif kind == "squaredcos_cap_v2":
        schedule = DiscreteSchedule.cosine(steps)
    else:
        raise NotSupported(
            f"the beta_schedule {kind!r} cannot be imported, unlike linear, scaled_linear, squaredcos_cap_v2 and "
            "trained_betas."
        )
    return zero_terminal_snr(schedule) if config.get("rescale_betas_zero_snr") else schedule
