"""The Transformer beside RoFormer of `transformers`, and attention with a gate beside attention without.

    python benchmarks/transformer.py [--quick] [--out FILE]

Encoder: the shape of BERT-base, 128 tokens, the same weights on both sides, float32; the peer computes its attention
eagerly, the only way it has. The goal: 1.15 times as fast, outputs equal to 1e-5. Attention: `urpe_attention` with a
table of factors against PyTorch's `scaled_dot_product_attention` without one. The goal: 1.6 times its time. Figures
are medians of ratios within a round; the ways take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from _shared import take_turns, write_record
from kexue.nn import ToeplitzGate, Transformer, TransformerConfig, urpe_attention

ENCODER_GOAL, GATE_GOAL, EQUAL = 1.15, 1.6, 1e-5


def copy_weights(peer: Any, model: Transformer) -> None:
    """Weights of a RoFormer into ours."""
    e = peer.embeddings
    pairs = [(e.word_embeddings, model.tokens), (e.token_type_embeddings, model.segments), (e.LayerNorm, model.norm)]
    for theirs, ours in zip(peer.encoder.layer, model.blocks, strict=True):
        a = theirs.attention
        pairs += [(a.output.dense, ours.out), (a.output.LayerNorm, ours.norm1), (theirs.intermediate.dense, ours.up)]
        pairs += [(theirs.output.dense, ours.down), (theirs.output.LayerNorm, ours.norm2)]
        three: list[nn.Linear] = [a.self.query, a.self.key, a.self.value]
        with torch.no_grad():
            ours.qkv.weight.copy_(torch.cat([m.weight for m in three]))
            ours.qkv.bias.copy_(torch.cat([m.bias for m in three]))
    for source, target in pairs:
        target.load_state_dict(source.state_dict())


def encoder(batch: int, length: int, layers: int, rounds: int) -> dict[str, Any]:
    """How much faster ours is than the peer, and how far the outputs are apart."""
    from transformers import RoFormerConfig, RoFormerModel

    torch.manual_seed(0)
    shape: dict[str, int] = {"vocab_size": 1000, "hidden_size": 768, "intermediate_size": 3072}
    peer = RoFormerModel(
        RoFormerConfig(
            num_hidden_layers=layers,
            num_attention_heads=12,
            max_position_embeddings=512,
            attn_implementation="eager",
            **shape,
        )
    ).eval()
    model = Transformer(TransformerConfig(num_layers=layers, num_heads=12, **shape)).eval()
    copy_weights(peer, model)
    ids = torch.randint(1, 1000, (batch, length))
    mask = torch.arange(length) < torch.linspace(length // 2, length, batch).long()[:, None]
    apart = (model(ids).last_hidden_state - peer(ids).last_hidden_state).abs().max().item()
    ours, theirs = model(ids, mask=mask).last_hidden_state, peer(ids, attention_mask=mask.long()).last_hidden_state
    apart = max(apart, (ours - theirs)[mask].abs().max().item())
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: model(ids),
        "peer": lambda: peer(ids),
        "ours, padding": lambda: model(ids, mask=mask),
        "peer, padding": lambda: peer(ids, attention_mask=mask.long()),
    }
    seconds = take_turns(ways, rounds, warmup=1)
    row = {
        "batch": batch,
        "length": length,
        "layers": layers,
        "speedup": ratio(seconds["peer"], seconds["ours"]),
        "speedup_padding": ratio(seconds["peer, padding"], seconds["ours, padding"]),
        "largest_difference": apart,
        "seconds": seconds,
    }
    print(
        f"encoder, batch {batch}: {row['speedup']:.2f} times as fast, {row['speedup_padding']:.2f} with padding "
        f"({1e3 * statistics.median(seconds['ours']):.0f} against {1e3 * statistics.median(seconds['peer']):.0f} ms), "
        f"outputs within {row['largest_difference']:.0e}",
        flush=True,
    )
    return row


def gate(batch: int, heads: int, length: int, rounds: int) -> dict[str, Any]:
    """Time of attention with a gate, in blocks and whole, in units of attention without."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, batch, heads, length, 64).unbind(0)
    table = ToeplitzGate(heads, length)
    nn.init.normal_(table.table, 1.0, 0.5)
    places = torch.arange(length)
    c = table(places, places)
    apart = (urpe_attention(q, k, v, gate=c) - urpe_attention(q, k, v, gate=c, fused=False)).abs().max().item()
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: functional.scaled_dot_product_attention(q, k, v),
        "fused": lambda: urpe_attention(q, k, v, gate=c),
        "fused, with the look-up": lambda: urpe_attention(q, k, v, gate=table),
        "whole": lambda: urpe_attention(q, k, v, gate=c, fused=False),
    }
    seconds = take_turns(ways, rounds, warmup=2)
    row: dict[str, Any] = {"shape": [batch, heads, length, 64], "largest_difference": apart, "seconds": seconds}
    row["times_plain"] = {name: ratio(seconds[name], seconds["plain"]) for name in ways}
    figures = ", ".join(f"{name} {value:.2f}" for name, value in row["times_plain"].items())
    print(f"gate, batch {batch}, {heads} heads, {length} tokens: {figures}; within {apart:.0e}", flush=True)
    return row


def ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


@torch.inference_mode()
def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few layers, few rounds")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    layers, rounds = (2, 3) if arguments.quick else (12, 7)
    gates = [(8, 12, 128), (2, 12, 512)] if arguments.quick else [(8, 12, 128), (2, 12, 512), (1, 12, 1024)]
    print(f"{torch.get_num_threads()} threads")
    rows = [encoder(batch, 128, layers, rounds) for batch in (1, 8)]
    table = [gate(*shape, 5 * rounds) for shape in gates]
    met = {
        "encoder": all(row["speedup"] >= ENCODER_GOAL and row["largest_difference"] <= EQUAL for row in rows),
        "gate": all(row["times_plain"]["fused"] <= GATE_GOAL for row in table),
    }
    print(
        f"goals of {ENCODER_GOAL} and {GATE_GOAL}: "
        + ", ".join(f"{k} {'met' if v else 'MISSED'}" for k, v in met.items())
    )
    write_record(arguments.out, {"encoder": rows, "gate": table, "goals_met": met}, "torch", "transformers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
