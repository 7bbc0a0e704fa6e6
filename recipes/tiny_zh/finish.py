"""The last step of the shipped model: whitening and calibration, and the folder, with weights in eight bits.

    python recipes/tiny_zh/finish.py --model run/model --data data --out src/kexue/text/tiny_zh

Whitening: mean and 191 principal axes of the vectors of 20,000 texts, no scaling (gamma = 0), as a part of the pooler.
The 192nd number is 1 for every text, before vectors are scaled to length 1. So the cosine of two short vectors, of
texts that the model knows little about, is neither far above nor far below that of any two texts.
Calibration: cosines of 5,000 random pairs of these texts, for `kexue.similarity.ScoreCalibrator.load`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kexue.similarity import ScoreCalibrator, Whitening
from kexue.text import RoFormerSim

TEXTS, PAIRS, AXES = 20_000, 5_000, 191
FILES = ("tatoeba", "dialogue_parts", "dialogue", "grammar")


def add_constant(model: RoFormerSim) -> RoFormerSim:
    """Return the model with one more number in its vectors, which is 1 for every text."""
    state = model.state_dict()
    weight, bias = state["pooler.weight"], state["pooler.bias"]
    longer = RoFormerSim(replace(model.config, vector_size=len(bias) + 1), model.tokenizer)
    pooler = {
        "pooler.weight": torch.cat([weight, weight.new_zeros(1, weight.shape[1])]),
        "pooler.bias": torch.cat([bias, bias.new_ones(1)]),
    }
    longer.load_state_dict({**state, **pooler})
    return longer.eval()


def main() -> None:
    """Write the folder of ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    lines = [line for name in FILES for line in (options.data / f"{name}.txt").read_text("utf-8").splitlines()]
    texts = [lines[i] for i in generator.choice(len(lines), TEXTS, replace=False)]
    model = RoFormerSim.from_pretrained(options.model)
    whitening = Whitening(AXES, beta=1.0, gamma=0.0).fit(model.encode(texts, normalize=False))
    model = add_constant(model.whiten(whitening))
    card, calibration = (options.out / name for name in ("README.md", "calibration.safetensors"))
    text = card.read_bytes() if card.is_file() else b""
    for path in (card, calibration):  # the folder of a model is replaced only if it holds nothing else
        path.unlink(missing_ok=True)
    model.save_pretrained(options.out, dtype="int8")
    vectors = RoFormerSim.from_pretrained(options.out).encode(texts)
    left, right = generator.permutation(TEXTS)[:PAIRS], generator.permutation(TEXTS)[:PAIRS]
    left, right = left[left != right], right[left != right]
    ScoreCalibrator().fit((vectors[left] * vectors[right]).sum(1)).save(calibration)
    card.write_bytes(text)


if __name__ == "__main__":
    main()
