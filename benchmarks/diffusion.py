"""The sampling loop of diffusion beside diffusers, and what the loop adds to the time of the network.

    python benchmarks/diffusion.py [--quick] [--rounds 9] [--out FILE]

diffusers is not a dependency of kexue: `pip install diffusers`. The network is its UNet2DModel with 2 million
parameters, on images of 32 x 32. Before anything is timed, both loops sample from the same noise, and the images must
agree within 1e-4. Then the loops take turns, with the network and with one that costs nothing, which leaves the loop
itself; the processor's time counts. Shares of the loop in the whole are measured within one run, by a clock around each
call of the network. Goals: a share of 3 % at most, and no more time than diffusers takes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _shared import take_turns, write_record
from kexue.generative import MLPDenoiser
from kexue.generative.diffusion import Denoiser, DiscreteSchedule, make_grid, schedule_from_config, solve

SHARE_GOAL, RATIO_GOAL, ERROR_GOAL = 0.03, 1.0, 1e-4


def main() -> int:
    """Compare, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="few rounds and steps")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    try:
        import diffusers
    except ImportError:
        print("diffusers is missing: pip install diffusers")
        return 0
    diffusers.utils.logging.set_verbosity_error()
    rounds, steps, images = (3, 3, 1) if arguments.quick else (arguments.rounds, 10, 4)
    unet = build_unet(diffusers)
    gap = compare_images(diffusers, unet, steps)
    print(f"largest difference of the images: {gap:.2g} {'met' if gap <= ERROR_GOAL else 'MISSED'}")
    if gap > ERROR_GOAL:
        return 1
    ratios = {
        "UNet of 2 million parameters": compare_loops(diffusers, unet, images, steps, rounds),
        "a network that costs nothing": compare_loops(diffusers, Free(), images, 5 * steps, 3 * rounds),
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f} of diffusers' time, {'met' if ratio <= RATIO_GOAL else 'MISSED'}", flush=True)
    shares = measure_shares(unet, images, steps, rounds)
    for name, share in shares.items():
        print(f"{name}: the loop is {share:.2%} of the time, {'met' if share <= SHARE_GOAL else 'MISSED'}", flush=True)
    write_record(arguments.out, {"gap": gap, "ratios": ratios, "shares": shares, "rounds": rounds}, "torch")
    return 0


def build_unet(diffusers: Any) -> nn.Module:
    """UNet2DModel with 2 million parameters, of random weights."""
    torch.manual_seed(0)
    unet: nn.Module = diffusers.UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(24, 48, 112),
        norm_num_groups=8, down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    print(f"UNet2DModel: {sum(p.numel() for p in unet.parameters()) / 1e6:.2f} million parameters")
    return unet


class Free(nn.Module):
    """A network without work, in the form of diffusers."""

    config = type("Config", (), {"sample_size": 32, "in_channels": 3})()
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, sample: torch.Tensor, timestep: object, **_named: object) -> Any:
        return Answer(sample)


class Answer:
    """Output of a network of diffusers."""

    def __init__(self, sample: torch.Tensor) -> None:
        self.sample = sample


# ---- the loops -----------------------------------------------------------------------------------------------------


def scheduler_of(diffusers: Any) -> Any:
    """DDIM of diffusers on DDPM's schedule, with trailing times and without clipping."""
    return diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")


def ours(diffusers: Any, net: nn.Module, steps: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Our loop: noise to images."""
    denoiser = Denoiser(net, schedule_from_config(dict(scheduler_of(diffusers).config)))

    @torch.no_grad()
    def sample(x: torch.Tensor) -> torch.Tensor:
        out = solve(denoiser, x, make_grid(denoiser.schedule, steps, kind="trailing"))
        assert isinstance(out, torch.Tensor)
        return out

    return sample


def theirs(diffusers: Any, net: nn.Module, steps: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The loop in the middle of diffusers' DDIMPipeline, without its pictures and progress bar."""
    scheduler = scheduler_of(diffusers)

    @torch.no_grad()
    def sample(x: torch.Tensor) -> torch.Tensor:
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x, eta=0.0, use_clipped_model_output=None).prev_sample
        return x

    return sample


def compare_images(diffusers: Any, net: nn.Module, steps: int) -> float:
    """Largest difference of what both loops make of the same noise, as a share of the largest value."""
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, other = ours(diffusers, net, steps)(x), theirs(diffusers, net, steps)(x)
    return float((one - other).abs().max() / other.abs().max())


def compare_loops(diffusers: Any, net: nn.Module, images: int, steps: int, rounds: int) -> float:
    """Time of our loop in that of diffusers': the median over rounds of the ratio."""
    x = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, other = ours(diffusers, net, steps), theirs(diffusers, net, steps)
    seconds = take_turns(
        {"ours": lambda: one(x), "theirs": lambda: other(x)}, rounds, warmup=1, clock=time.process_time
    )
    for name, values in seconds.items():
        print(f"  {name}: {statistics.median(values) / steps * 1e6:.0f} us a step", flush=True)
    return statistics.median(a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True))


# ---- the share of the loop -----------------------------------------------------------------------------------------


class Timed(nn.Module):
    """A network and the processor's time in it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seconds = net, 0.0

    def forward(self, *values: Any, **named: Any) -> Any:
        start = time.process_time()
        out = self.net(*values, **named)
        self.seconds += time.process_time() - start
        return out


def measure_shares(unet: nn.Module, images: int, steps: int, rounds: int) -> dict[str, float]:
    """Share of a sampling that is not spent in the network, by network, number of events and solver."""
    mlp = MLPDenoiser((1, 16, 16), hidden=512, blocks=3)
    print(f"MLPDenoiser: {sum(p.numel() for p in mlp.parameters()) / 1e6:.2f} million parameters")
    shares = {}
    for solver in ("ddim", "ddpm", "dpmpp_2m"):
        shares[f"UNet, {images} images, {solver}"] = measure_share(unet, (images, 3, 32, 32), solver, steps, rounds)
        shares[f"MLP, 64 vectors, {solver}"] = measure_share(mlp, (64, 1, 16, 16), solver, steps, rounds)
    return shares


@torch.no_grad()
def measure_share(net: nn.Module, shape: tuple[int, ...], solver: str, steps: int, rounds: int) -> float:
    """Median over rounds of the share of the loop."""
    timed = Timed(net.eval())
    schedule = DiscreteSchedule.linear()
    denoiser, grid = Denoiser(timed, schedule), make_grid(schedule, steps)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    shares = []
    for _ in range(rounds + 1):
        timed.seconds, start = 0.0, time.process_time()
        solve(denoiser, x, grid, solver=solver, generator=torch.Generator().manual_seed(0))
        shares.append(1 - timed.seconds / (time.process_time() - start))
    return statistics.median(shares[1:])


if __name__ == "__main__":
    sys.exit(main())
