"""Small UniVAEs of the experiments: built, trained until they reconstruct, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kexue._optional import import_optional
from kexue.experiments._training import fit, torch_seed


@dataclass(frozen=True)
class Setting:
    """Sizes of a model and of its training."""

    width: int
    layers: int
    latents: int
    dim: int
    kappa: float
    batch: int
    rate: float
    norm: Literal["post", "pre"]


def build(texts: Sequence[str], setting: Setting, length: int, seed: int, **options: Any) -> tuple[Any, Any]:
    """An untrained model, and its vocabulary: the characters of the texts."""
    torch = import_optional("torch", extra="train")
    from kexue.generative import CharacterVocabulary, UniVAE
    from kexue.nn import Transformer, TransformerConfig

    vocabulary = CharacterVocabulary.from_texts(texts)
    with torch_seed(seed):
        config = TransformerConfig(
            len(vocabulary),
            hidden_size=setting.width,
            num_layers=setting.layers,
            num_heads=setting.width // 32,
            norm=setting.norm,
        )
        backbone = Transformer(config)
        for part in backbone.blocks.modules():  # for a small width BERT's weights begin too small
            if isinstance(part, torch.nn.Linear):
                torch.nn.init.xavier_uniform_(part.weight)
        settings = {"latent_dim": setting.dim, "kappa": setting.kappa, "max_length": length} | options
        model = UniVAE(backbone, n_latent_layers=setting.latents, **settings)
    return model.initialize(vocabulary.encode(texts[:512], length)), vocabulary


def train(model: Any, rows: Any, setting: Setting, seed: int, steps: int, *, until: Any = None) -> int:
    """Train with a rate that falls linearly to a tenth; return the number of steps taken."""
    torch = import_optional("torch", extra="train")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.rate, weight_decay=0.01)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (i + 1) / 100) * (1 - 0.9 * i / steps))
    batches = [torch.randint(len(rows), (setting.batch,), generator=generator) for _ in range(steps)]
    done = fit(
        model,
        lambda chosen: model.loss(rows[chosen], generator=generator).loss,
        batches,
        optimizer,
        scheduler=falling,
        until=until,
    )
    model.eval()
    return done.steps + 1


def every_hundred(reached: Callable[[], bool]) -> Callable[[], bool]:
    """What ends a training: `reached`, asked every 100 steps."""
    steps = 0

    def until() -> bool:
        nonlocal steps
        steps += 1
        return steps % 100 == 0 and reached()

    return until


def share_of_tokens(model: Any, rows: Any) -> float:
    """Share of tokens, the end included, that the sentence decoded from the middle latents has at the same place."""
    kept = rows != model.special.pad
    kept[:, 0] = False
    return float((model.reconstruct(rows) == rows)[kept].double().mean())
