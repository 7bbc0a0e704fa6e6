"""Every wrapper and every stack of two, on one small model; run as a script it resumes what a test has saved.

    python _cases.py FOLDER

FOLDER holds saved.pt, {case: [checkpoint after each step]}; the ends are written to resumed.pt.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD, Adam

from kexue.optim import extend

STEPS = 20
WRAPPERS = {
    "weight_decay": {"rate": 0.1},
    "layer_adaptation": {},
    "piecewise_linear": {"schedule": {7: 1.0, 15: 0.3}},
    "gradient_accumulation": {"steps": 3},
    "lookahead": {"k": 4, "momentum": "pullback"},
    "lazy": {"mode": "strict"},
    "ema": {},
}
CASES = [(name,) for name in WRAPPERS] + list(product(WRAPPERS, repeat=2))


def build(case):
    """Model and optimizer; SGD at the bottom where Lookahead is alone, which leaves it without state."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Tanh(), nn.Linear(4, 1))
    params = list(model.parameters())
    optimizer = SGD(params, lr=0.1) if case == ("lookahead",) else Adam(params, lr=0.05)
    layers = [(name, WRAPPERS[name] | ({"params": params[:1]} if name == "lazy" else {})) for name in case]
    return model, extend(optimizer, *layers)


def train(model, optimizer, start, stop):
    for step in range(start, stop):
        ids = torch.randint(9, (4, 2), generator=torch.Generator().manual_seed(step))
        (model(ids)[:, 0] - ids.sum(1) / 9).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def end(model, optimizer):
    """All numbers there are, in a list."""
    state = optimizer.state_dict()["state"]
    kept = [state[i][name] for i in sorted(state) for name in sorted(state[i])]
    return [p.detach().clone() for p in model.parameters()] + [t.clone() for t in kept if torch.is_tensor(t)]


def until(case, step):
    """Where a run resumed at `step` is compared: the end for one wrapper, a cycle later for two."""
    return STEPS if len(case) == 1 else min(step + 3, STEPS)


def main(folder: Path) -> None:
    resumed = {}
    for case, checkpoints in torch.load(folder / "saved.pt", weights_only=True).items():
        for step, checkpoint in enumerate(checkpoints[:STEPS]):
            model, optimizer = build(case)
            model.load_state_dict(checkpoint["model"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            train(model, optimizer, step, until(case, step))
            resumed[case, step] = end(model, optimizer)
    torch.save(resumed, folder / "resumed.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
