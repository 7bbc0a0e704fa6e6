"""Glow and RealNVP beside normflows, zuko and nflows: a training step, log_prob and samples of the same networks.

    python benchmarks/flows.py [--quick] [--rounds 15] [--out FILE]

Peers are not a dependency of kexue: `pip install normflows nflows zuko`. Before anything is timed, layers with the same
weights are compared: the affine coupling and the 1 x 1 convolution of normflows, the affine coupling and the linear LU
layer of nflows; results and log-determinants must agree within 1e-5. Then each pair has layers of the same widths, and
the ways take turns; the processor's time counts. Goal: at most 0.9 of the time of each peer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from _shared import take_turns, write_record
from kexue.generative import AffineCoupling, CouplingConv, CouplingMLP, Flow, InvertibleConv1x1, StandardNormal, glow

TIME_GOAL, ERROR_GOAL = 0.9, 1e-5
DIM, WIDTH = 64, 128


def main() -> int:
    """Compare, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="few rounds, small models")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else arguments.rounds
    warnings.simplefilter("ignore")  # peers call what torch has deprecated
    try:
        gaps = compare_layers()
    except ImportError as missing:
        print(f"{missing.name} is missing: pip install normflows nflows zuko")
        return 0
    for name, gap in gaps.items():
        print(f"largest difference to {name}: {gap:.2g} {'met' if gap <= ERROR_GOAL else 'MISSED'}")
    if max(gaps.values()) > ERROR_GOAL:
        return 1
    steps, hidden = (2, 16) if arguments.quick else (8, 128)
    ratios: dict[str, float] = {}
    ratios |= compare_times("Glow", glow_ways(steps, hidden), rounds)
    for name, ways in vector_ways(4 if arguments.quick else 8).items():
        ratios |= compare_times(name, ways, rounds)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f} of its time, {'met' if ratio <= TIME_GOAL else 'MISSED'}", flush=True)
    write_record(arguments.out, {"gaps": gaps, "ratios": ratios, "rounds": rounds}, "torch")
    return 0


# ---- the same layers -----------------------------------------------------------------------------------------------


def compare_layers() -> dict[str, float]:
    """Largest difference of results, log-determinants and inverses, by peer and layer, with the same weights."""
    import nflows.transforms
    import normflows

    torch.manual_seed(0)
    x = torch.randn(16, 8, 4, 4)
    gaps = {}

    net = CouplingConv(4, 8, 32)
    disturb(net)
    peer = normflows.flows.AffineCouplingBlock(normflows.nets.ConvNet2d((4, 32, 32, 8), (3, 1, 3)), scale_map="exp")
    copy_conv(net, peer.flows[1].param_map.net)
    ours = AffineCoupling(net, scale="exp")
    # there z -> x is forward and multiplies: its forward is our forward
    gaps["normflows affine coupling"] = gap(ours, peer.forward, peer.inverse, x)

    theirs = normflows.flows.Invertible1x1Conv(8, use_lu=True)
    disturb(theirs)
    mixing = InvertibleConv1x1(8)
    with torch.no_grad():
        mixing.lower.copy_(theirs.L)
        mixing.upper.copy_(theirs.U)
        mixing.log_scale.copy_(theirs.log_S)
        mixing.sign.copy_(theirs.sign_S)
        mixing.order.copy_(theirs.P.argmax(1))
    gaps["normflows 1 x 1 convolution"] = gap(mixing, theirs.inverse, theirs.forward, x)

    plain = CouplingMLP(4, 8, (16, 16))
    disturb(plain)
    coupling = nflows.transforms.AffineCouplingTransform(
        torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        lambda n_in, n_out: Answers(plain),
    )
    coupling._scale_and_shift = lambda answer: (
        answer[:, :4].exp(),
        answer[:, 4:],
    )  # its own scale has an offset of 1e-3
    gaps["nflows affine coupling"] = gap(
        AffineCoupling(plain, scale="exp"), coupling.forward, coupling.inverse, x[..., 0, 0]
    )

    linear = nflows.transforms.LULinear(8, identity_init=False)
    with torch.no_grad():
        lower, upper = linear._create_lower_upper()
        mixing.lower.copy_(lower)
        mixing.upper.copy_(upper)
        mixing.log_scale.copy_(upper.diagonal().log())
        mixing.sign.fill_(1)
        mixing.order.copy_(torch.arange(8))
    gaps["nflows LU"] = gap(mixing, linear.forward, None, x[..., 0, 0])  # its inverse calls what torch has removed
    return gaps


class Answers(nn.Module):
    """A network called with a context, as nflows calls its networks."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, context: object = None) -> torch.Tensor:
        return self.net(x)


@torch.no_grad()
def gap(ours: Any, forward: Callable[..., Any], inverse: Callable[..., Any] | None, x: torch.Tensor) -> float:
    """Largest difference of both directions and their log-determinants."""
    pairs = [*zip(ours(x), forward(x), strict=True)]
    if inverse is not None:
        pairs += zip(ours.inverse(x), inverse(x), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@torch.no_grad()
def disturb(net: nn.Module) -> None:
    """Move the weights away from zero."""
    for weight in net.parameters():
        weight.add_(0.1 * torch.randn_like(weight))


@torch.no_grad()
def copy_conv(net: CouplingConv, layers: nn.Sequential) -> None:
    """Copy our convolutions into normflows', whose last one has shift and scale in turn."""
    for ours, theirs in ((net.first, layers[0]), (net.middle, layers[2])):
        theirs.weight.copy_(ours.weight)
        theirs.bias.copy_(ours.bias)
    factor = (3 * net.last.log_scale).exp()
    half = len(factor) // 2
    order = torch.stack([torch.arange(half, 2 * half), torch.arange(half)], 1).flatten()  # t, s, t, s, ...
    layers[4].weight.copy_((net.last.weight * factor[:, None, None, None])[order])
    layers[4].bias.copy_((net.last.bias * factor)[order])


# ---- time ----------------------------------------------------------------------------------------------------------

Ways = dict[str, dict[str, Callable[[], object]]]  # operation: whose: what is timed


def compare_times(what: str, ways: Ways, rounds: int) -> dict[str, float]:
    """Print medians; return our time as a share of that of each peer, by operation."""
    ratios = {}
    for operation, whose in ways.items():
        seconds = take_turns(whose, rounds, warmup=2, clock=time.process_time)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        print(f"{what}, {operation}: " + ", ".join(f"{name} {1e3 * median:.2f} ms" for name, median in medians.items()))
        for name, median in medians.items():
            if name != "kexue":
                ratios[f"{what}, {operation}, {name}"] = medians["kexue"] / median
    return ratios


def trained(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
    """A training step with Adam."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


class Way(NamedTuple):
    """A model, and what is timed of it."""

    model: nn.Module
    loss: Callable[[], torch.Tensor]
    log_prob: Callable[[], object]
    sample: Callable[[], object]


def ways_of(**ways: Way) -> Ways:
    """The timed operations of models, by operation and owner."""
    for way in ways.values():
        way.model.eval()  # nothing here differs while training
    return {
        "training step": {name: trained(way.model, way.loss) for name, way in ways.items()},
        "log_prob": {name: without_gradients(way.log_prob) for name, way in ways.items()},
        "sample": {name: without_gradients(way.sample) for name, way in ways.items()},
    }


def without_gradients(work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return work()

    return run


def glow_ways(steps: int, hidden: int) -> Ways:
    """Two levels on 32 images 1 x 16 x 16; normflows has no conditional prior, so its one more convolution is ours."""
    import normflows

    torch.manual_seed(0)
    x = torch.rand(32, 1, 16, 16)
    ours = glow((1, 16, 16), levels=2, steps=steps, hidden=hidden)
    bases, merges, flows = [], [], []
    for level in range(2):
        channels = 4 if level else 4 * 2
        blocks = [normflows.flows.GlowBlock(channels, hidden) for _ in range(steps)]
        flows.append(nn.ModuleList([*blocks, normflows.flows.Squeeze()]))
        if level:
            merges.append(normflows.flows.Merge())
        shape = (2, 8, 8) if level else (8, 4, 4)
        bases.append(normflows.distributions.DiagGaussian(shape))
    peer = normflows.MultiscaleFlow(bases, flows, merges)
    ours.initialize(x)
    peer.log_prob(x, None)
    return ways_of(
        kexue=Way(ours, lambda: ours.loss(x).loss, lambda: ours.log_prob(x), lambda: ours.sample(32)),
        normflows=Way(peer, lambda: peer.forward_kld(x), lambda: peer.log_prob(x, None), lambda: peer.sample(32)),
    )


def vector_ways(couplings: int) -> dict[str, Ways]:
    """Affine couplings of 64 values with two hidden layers of 128, halves in turn, 128 vectors, by model.

    The factors of normflows are e^r, those of zuko and nflows are bounded; ours are of the same kind each time.
    """
    import nflows.distributions
    import nflows.flows
    import nflows.transforms
    import normflows
    import zuko

    torch.manual_seed(0)
    x = torch.randn(128, DIM)
    half = DIM // 2

    def our_way(scale: Any) -> Way:
        nets = [CouplingMLP(half, DIM, (WIDTH, WIDTH)) for _ in range(couplings)]
        layers = [AffineCoupling(net, swap=i % 2 == 1, scale=scale) for i, net in enumerate(nets)]
        ours = Flow(layers, StandardNormal((DIM,)))
        return Way(ours, lambda: ours.loss(x).loss, lambda: ours.log_prob(x), lambda: ours.sample(128))

    parts = []
    for _ in range(couplings):
        net = normflows.nets.MLP([half, WIDTH, WIDTH, DIM], init_zeros=True)
        parts += [normflows.flows.AffineCouplingBlock(net), normflows.flows.Permute(DIM, mode="swap")]
    norm = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(DIM, trainable=False), parts)
    lazy = zuko.flows.RealNVP(DIM, 0, transforms=couplings, hidden_features=(WIDTH, WIDTH), randmask=False)
    layers = []
    for i in range(couplings):
        mask = torch.tensor([i % 2, 1 - i % 2]).repeat_interleave(half)
        layers.append(
            nflows.transforms.AffineCouplingTransform(mask, lambda a, b: Answers(CouplingMLP(a, b, (WIDTH, WIDTH))))
        )
    transform = nflows.transforms.CompositeTransform(layers)
    old = nflows.flows.Flow(transform, nflows.distributions.StandardNormal([DIM]))
    return {
        "RealNVP": ways_of(
            kexue=our_way("exp"),
            normflows=Way(norm, lambda: norm.forward_kld(x), lambda: norm.log_prob(x), lambda: norm.sample(128)),
        ),
        "RealNVP with bounded factors": ways_of(
            kexue=our_way("tanh"),
            zuko=Way(
                lazy,
                lambda: -lazy().log_prob(x).mean(),
                lambda: lazy().log_prob(x),
                lambda: lazy().sample((128,)),
            ),
            nflows=Way(old, lambda: -old.log_prob(x).mean(), lambda: old.log_prob(x), lambda: old.sample(128)),
        ),
    }


if __name__ == "__main__":
    sys.exit(main())
