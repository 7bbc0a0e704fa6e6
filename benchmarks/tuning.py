"""Memory of tuning a BERT-base on headlines: all weights, a ladder beside it, its head alone.

    python benchmarks/tuning.py [--quick] [--out FILE]

Each way runs in a process of its own: two steps of AdamW on 16 rows of 128 tokens, random weights. `peak` is the most
memory that the process held, the interpreter and torch included; `base` what it held before the model was built;
`saved` the tensors that autograd keeps for the backward pass, parameters left out.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from _shared import write_record
from kexue.clue import get_task
from kexue.clue.model import TaskModel
from kexue.text.trainable import TrainableEncoder

WAYS = ("full", "ladder", "linear")
GOAL = 0.45  # of the peak of full tuning, for a ladder


def peak_bytes() -> int:
    """Most memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(way: Any, rows: int, layers: int) -> dict[str, float]:
    """Memory and time of two steps."""
    base = peak_bytes()
    torch.manual_seed(0)
    config = transformers.BertConfig(num_hidden_layers=layers)
    network = transformers.BertModel(config, add_pooling_layer=False)
    encoder = TrainableEncoder(network, config.hidden_size, layers, config.max_position_embeddings)
    model = TaskModel(encoder, get_task("tnews").framing, way, "cls").train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    batch = {
        "token_ids": torch.randint(1000, 20000, (rows, 128)),
        "mask": torch.ones(rows, 128, dtype=torch.bool),
        "gold": torch.randint(15, (rows,)),
    }
    storages: dict[int, Any] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    seconds = []
    for _ in range(2):
        start = time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model.training_step(batch).loss
        saved = sum(storage.nbytes() for storage in storages.values())
        storages.clear()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"base": base, "peak": peak_bytes(), "saved": saved, "seconds": min(seconds), "trained": trained}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows, layers = (2, 2) if arguments.quick else (16, 12)
    if arguments.way:
        print(json.dumps(measure(arguments.way, rows, layers)))
        return 0
    ways = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, *["--quick"] * arguments.quick]
        ways[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        one = ways[way]
        print(
            f"{way:7} peak {one['peak'] / 2**20:8,.0f} MiB ({one['peak'] / ways['full']['peak']:.0%} of full), "
            f"saved {one['saved'] / 2**20:8,.1f} MiB, {one['trained']:12,} trained, {one['seconds']:.1f} CPU s a step"
        )
    share = ways["ladder"]["peak"] / ways["full"]["peak"]
    record = {"rows": rows, "layers": layers, "ways": ways, "ladder_share": share, "goal": GOAL}
    write_record(arguments.out, record, "torch", "transformers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
