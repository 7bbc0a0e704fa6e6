"""Extractors of triples as experiments train them: by `train_extractor`, or step by step where it has no setting."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np

from kexue._optional import import_optional
from kexue.experiments._training import fit, shuffled_rows, torch_seed
from kexue.extract import DistantSupervision, ExtractConfig, TripleExample, TripleSchema
from kexue.extract.supervision import PriorFeatures

Prior = Literal["none", "excluded", "told"]
_EMA = 0.98  # of a few hundred steps; the reference has 0.9999, for many thousands
_BATCH = 32


class Trained(NamedTuple):
    """An extractor, None where the loss became infinite, and whether its training diverged.

    It diverged where the loss became infinite or was higher in the last epoch than in the first.
    """

    model: Any
    diverged: bool


def train(
    examples: Sequence[TripleExample], dev: Sequence[TripleExample], seed: int, *, epochs: int, **settings: Any
) -> Any:
    """Return the extractor of a whole training, whose best step is the one with the highest F1 on `dev`."""
    from kexue.extract import open_extractor, train_extractor

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of triples that are not in their text
        config = ExtractConfig(
            examples, dev, folder, epochs=epochs, ema=_EMA, batch_size=_BATCH, seed=seed, device="cpu",
            precision="fp32", patience=epochs, **settings,
        )  # fmt: skip
        if train_extractor(config).interrupted:
            raise KeyboardInterrupt
        return open_extractor(folder)


def train_plainly(
    examples: Sequence[TripleExample],
    seed: int,
    *,
    epochs: int,
    dim: int,
    lr: float = 2e-3,
    warm: bool = True,
    prior: Prior = "none",
) -> Trained:
    """Train an extractor by all steps of Adam, without averages of weights.

    Args:
        examples: texts to learn from.
        seed: of weights, order and subjects.
        epochs, dim, lr: as of `ExtractConfig`; six layers.
        warm: raise the rate over the first epoch, as `train_extractor` does.
        prior: features of the triples of `examples`, at each text without those that only it has (``"excluded"``), or
            with them (``"told"``).
    """
    torch = import_optional("torch", extra="train")
    from kexue.extract.rows import TripleRows
    from kexue.extract.train import build
    from kexue.train import NonFiniteLossError

    schema, known = TripleSchema.of(examples), prior != "none"
    config = ExtractConfig(
        examples, examples, "", dim=dim, num_layers=6, max_length=64, prior=known, augmentation=0.0, seed=seed
    )
    with torch_seed(seed):
        model: Any = build(config, examples, schema)[0]
        if known:
            model.supervision = SupervisionOfTexts(examples, schema, told=prior == "told")
        rows = TripleRows(examples, model.reader, schema, model.config, supervision=model.supervision, seed=seed)
        optimizer = torch.optim.Adam(model.parameters(), lr)
        orders = [shuffled_rows(len(examples), _BATCH, 1, np.random.default_rng((seed, e))) for e in range(epochs)]
        warming = len(orders[0]) if warm else 1
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warming))

        losses: list[list[float]] = [[] for _ in orders]

        def loss(batch: tuple[int, Any]) -> Any:
            rows.set_epoch(batch[0])
            value = model.training_step(rows.__getitems__(batch[1].tolist())).loss
            losses[batch[0]].append(value.item())
            return value

        batches = [(epoch, order) for epoch, part in enumerate(orders) for order in part]
        try:
            fit(model, loss, batches, optimizer, scheduler=schedule)
        except NonFiniteLossError:
            return Trained(None, True)
    return Trained(model.eval(), bool(np.mean(losses[-1]) > np.mean(losses[0])))


class SupervisionOfTexts(DistantSupervision):
    """Known triples that know which text they are asked for, so that a training text is scored as it was learned from.

    Args:
        examples: the training texts.
        schema: the predicates.
        told: each text is also told its own triples.
    """

    def __init__(self, examples: Sequence[TripleExample], schema: TripleSchema, *, told: bool) -> None:
        super().__init__([example.triples for example in examples], schema)
        self._rows = {} if told else {example.text: row for row, example in enumerate(examples)}

    def features(self, text: str, *, exclude_source: int | None = None) -> PriorFeatures:
        """Return the features of a text; its number in the training is looked up, whatever `exclude_source` is."""
        return super().features(text, exclude_source=self._rows.get(text))

    def share_known(self, examples: Sequence[TripleExample]) -> float:
        """Return the share of the triples of examples that are known."""
        numbers = {name: number for number, name in enumerate(self.schema.predicates)}
        hits = [
            (numbers.get(t.predicate), t.object_span) in self.features(e.text).objects.get(t.subject_span or (0, 0), [])
            for e in examples
            for t in e.triples
        ]
        return float(np.mean(hits))


def score(model: Any, examples: Sequence[TripleExample], tail: float | None = None) -> Any:
    """Return the `TripleScore` of a model, by strings; None, a training that failed, finds nothing."""
    from kexue.extract import triple_f1
    from kexue.extract.tuning import score_extractor

    if model is None:
        return triple_f1([()] * len(examples), [example.triples for example in examples])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a model that has learned little
        return score_extractor(model, examples, tail_threshold=tail)


# ---- work ----------------------------------------------------------------------------------------------------------


def build_readers(length: int, *, small: bool = False) -> dict[str, Any]:
    """Return functions that read one text of `length` characters, by name, in training mode without dropout.

    ``dgcnn``: the article's size, with three subjects and 50 predicates; ``bert_base``: a Transformer encoder of 12
    layers (2 where `small`) of width 768; ``same_width``: one of the width of the first, 128; no tables, no heads.
    """
    torch = import_optional("torch", extra="train")
    from kexue.extract import DGCNNConfig, DGCNNExtractor
    from kexue.extract.reader import CodedTexts

    shape = DGCNNConfig(dim=128, num_layers=12, num_predicates=50, dropout=0.0, gate_dropout=0.0)
    with torch_seed(0):
        network = DGCNNExtractor(shape)
        ids = torch.randint(2, shape.num_characters, (1, length))
        coded = CodedTexts(ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))
        rows, starts = torch.zeros(3, dtype=torch.int64), torch.arange(3) * (length // 4)
        encoders = {
            name: (_build_encoder(width, 2 if small else 12), torch.randn(1, length, width))
            for name, width in (("bert_base", 768), ("same_width", 128))
        }

    def read() -> Any:
        return network.score_objects(network(coded), rows, starts, starts + 2)

    others = {name: (lambda encoder=encoder, x=x: encoder(x)) for name, (encoder, x) in encoders.items()}
    return {"dgcnn": read, **others}


def _build_encoder(width: int, depth: int) -> Any:
    nn = import_optional("torch", extra="train").nn
    layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, "gelu", batch_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


@contextmanager
def counting_attention() -> Iterator[None]:
    """A block in which attention is computed by matrix products, which `count_multiplications` counts."""
    attention = import_optional("torch.nn.attention", extra="train")
    with attention.sdpa_kernel(attention.SDPBackend.MATH):
        yield
