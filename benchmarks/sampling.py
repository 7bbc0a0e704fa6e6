"""Speed of sampling sentences: proposals of n-grams a second, and what cached prefixes save with a neural model.

    python benchmarks/sampling.py [--steps 2000] [--laws 60]

Prints one JSON object. Times are of the processor, per process: `proposals` of eight chains with the shipped model of
n-grams at gamma 0.8 and 2, and of two processes together (four chains each); `prefix` the time of laws of 64 candidates
for a place of a sentence, by `CausalLM` and by one pass over 64 whole rows, prompt included.
"""

import argparse
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch

from kexue.sampling import ProductTarget, metropolis_hastings
from kexue.sampling.text import CausalLM, Keywords, Length, LMTarget, load_lm
from kexue.sampling.text.writing import make_moves, write_keywords

WORDS = ["广州", "美食"]
TEXT = "周末我想和朋友一起去广州吃美食，你有推荐吗？"


def propose(gamma: float, steps: int, chains: int, seed: int) -> tuple[int, float]:
    """Return the number of proposals, and seconds of the processor that they took."""
    lm = load_lm()
    words = [lm.encode(word) for word in WORDS]
    start = lm.encode(write_keywords(WORDS, lm, steps=1, chains=1, generator=seed).sentences[0])
    target = ProductTarget(Length(10, 20), Keywords(words), LMTarget(lm, gamma))
    begun = time.process_time()
    metropolis_hastings(target, make_moves(lm, words), start, steps=steps, chains=chains, generator=seed)
    return steps * chains, time.process_time() - begun


def measure_proposals(steps: int) -> dict[str, float]:
    """Return proposals a second."""
    rates = {}
    for gamma in (0.8, 2.0):
        count, seconds = propose(gamma, steps, 8, 0)
        rates[f"gamma {gamma}, one process"] = count / seconds
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            runs = list(pool.map(propose, [gamma] * 2, [steps] * 2, [4] * 2, [0, 1]))
        rates[f"gamma {gamma}, two processes"] = sum(count / seconds for count, seconds in runs)
    return {name: round(rate) for name, rate in rates.items()}


def measure_prefixes(laws: int) -> dict[str, float]:
    """Return milliseconds of a law with cached prefixes and by whole rows."""
    torch.set_num_threads(1)
    lm, plain = (CausalLM("roformer-sim-tiny-zh", prompt="广州有什么好吃的美食推荐") for _ in range(2))
    text = lm.encode(TEXT)
    places = np.random.default_rng(0).integers(len(text), size=laws).tolist()
    lm.log_rho([text])  # where a chain is
    cached = whole = 0.0
    for i, place in enumerate(places):
        left, right = text[:place], (*text[place + 1 :], text[i % len(text)])  # another right side for each
        begun = time.process_time()
        law = lm.law(left, right, 64)
        cached += time.process_time() - begun
        reader = plain._reader
        rows = torch.tensor([[*reader.before, *left, token, *right] for token in law.tokens])
        begun = time.process_time()
        scores, _ = reader.read(rows, None)
        total = scores[:, len(reader.before) - 1 : -1].gather(-1, rows[:, len(reader.before) :, None]).sum((1, 2))
        total += scores[:, -1, reader.end]
        whole += time.process_time() - begun
        weights = (total - total.max()).exp()
        assert math.isclose(law.probability(law.tokens[0]), float(weights[0] / weights.sum()), abs_tol=1e-3)
    return {"cached ms": 1e3 * cached / laws, "whole ms": 1e3 * whole / laws, "ratio": whole / cached}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--laws", type=int, default=60)
    options = parser.parse_args()
    print(json.dumps({"proposals": measure_proposals(options.steps), "prefix": measure_prefixes(options.laws)}))


if __name__ == "__main__":
    main()
