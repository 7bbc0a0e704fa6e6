"""The extractor of dilated gated convolutions, from texts to triples.

Source: kexue.fm/archives/6671.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kexue._devices import choose_device
from kexue.errors import CheckpointError, NotFittedError
from kexue.extract.config import DGCNNConfig
from kexue.extract.decoding import HEAD, TAIL, decode_spans
from kexue.extract.exporting import export_network
from kexue.extract.extractor import MOST_SUBJECTS, MOST_TRIPLES, Decoder, Extracted, Extractor, keep_likeliest
from kexue.extract.folder import RECORD, find_extractor, load_state, read_record, write_extractor
from kexue.extract.network import DGCNNNetwork, Encoded
from kexue.extract.probabilities import joint_event, joint_probability
from kexue.extract.reader import CodedTexts, TextReader
from kexue.extract.rows import Batch
from kexue.extract.supervision import DistantSupervision, PriorFeatures
from kexue.extract.triples import Triple, TripleSchema
from kexue.train.config import LossOutput

_SUBJECTS = 256  # whose objects are scored at a time


class DGCNNExtractor(DGCNNNetwork, Extractor):
    """Triples by dilated gated convolutions and two stages of pointers: subjects, then the objects of each.

    Args:
        config: shape of the network.
        schema: the predicates, as many as `config.num_predicates`.
        reader: texts to numbers.
        supervision: known triples, where ``config.prior``.

    Without `schema` and `reader` it is a bare network, which cannot `extract`.

    Example:
        >>> model = DGCNNExtractor.from_pretrained("run")  # doctest: +SKIP
        >>> [[triple]] = model.extract(["《战狼2》的主演是吴京"])  # doctest: +SKIP
        >>> triple.subject, triple.predicate, triple.object, triple.object_span  # doctest: +SKIP
        ('战狼2', '主演', '吴京', (9, 11))
    """

    kind: ClassVar[str] = "dgcnn"
    head_threshold: ClassVar[float] = HEAD
    tail_threshold: ClassVar[float] = TAIL

    def __init__(
        self,
        config: DGCNNConfig,
        *,
        schema: TripleSchema | None = None,
        reader: TextReader | None = None,
        supervision: DistantSupervision | None = None,
    ) -> None:
        super().__init__(config)
        if schema is not None and len(schema.predicates) != config.num_predicates:
            raise ValueError(f"num_predicates={config.num_predicates}, but the schema has {len(schema.predicates)}")
        if reader is not None and reader.num_characters != config.num_characters:
            raise ValueError(f"num_characters={config.num_characters}, but the reader has {reader.num_characters}")
        if reader is not None and len(reader.words) != config.num_words:
            raise ValueError(f"num_words={config.num_words}, but the reader has {len(reader.words)}")
        self.schema, self.reader, self.supervision = schema, reader, supervision
        self.max_length = config.max_length

    @classmethod
    def from_pretrained(cls, run: str | os.PathLike[str], *, device: str = "cpu") -> DGCNNExtractor:
        """Open the model of a run of `train_extractor`, or of a folder of `save_pretrained`.

        Raises:
            CheckpointError: no such model there, or a damaged one. MissingDependencyError: it needs jieba.
        """
        folder = find_extractor(run)
        record = read_record(folder)
        try:
            if record["kind"] != cls.kind:
                raise ValueError(f"kind {record['kind']!r}, expected {cls.kind!r}")
            config, schema = DGCNNConfig(**record["config"]), TripleSchema(tuple(record["predicates"]))
            reader = TextReader(record["characters"], record["words"], record["segmenter"])
            known = record["supervision"]
            supervision = None if known is None else DistantSupervision.load(known, schema)
            model = cls(config, schema=schema, reader=reader, supervision=supervision)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{folder / RECORD} cannot be used ({type(error).__name__}: {error}).", remedy="Train again."
            ) from error
        load_state(model, folder)
        return model.eval().to(choose_device(device))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write weights (safetensors) and everything else (JSON) into a folder; an earlier model there is replaced.

        Raises:
            NotFittedError: a bare network. DataError: the folder holds other files.
        """
        schema, reader = self._require_parts()
        record = {
            "config": asdict(self.config),
            "predicates": schema.predicates,
            "characters": reader.characters,
            "words": reader.words,
            "segmenter": reader.segmenter,
            "supervision": None if self.supervision is None else self.supervision.dump(),
        }
        write_extractor(folder, self.kind, record, self.state_dict())

    def export_onnx(self, folder: str | os.PathLike[str]) -> None:
        """Write the network as two ONNX graphs, compared with it first; see `kexue.extract.exporting`.

        Raises:
            NotSupported: a network with known triples. MissingDependencyError: needs the extra ``extract``.
            DataError: the folder holds other files.
        """
        export_network(self, folder)

    def _require_parts(self) -> tuple[TripleSchema, TextReader]:
        if self.reader is None or self.schema is None:
            raise NotFittedError("this is a bare network.", remedy="Open a model by DGCNNExtractor.from_pretrained.")
        return self.schema, self.reader

    def training_step(
        self, batch: Batch, *, optimizer_index: int = 0, generator: torch.Generator | None = None
    ) -> LossOutput:
        """Compute the loss of a batch: cross-entropies of heads and tails, means over characters.

        That of objects is summed over the predicates, as in the article's code.
        """
        encoded = self(batch.texts, batch.prior_subjects)
        rows = torch.arange(len(batch.starts), device=batch.starts.device)
        objects = self.score_objects(encoded, rows, batch.starts, batch.lasts, batch.prior_objects)
        keep, characters = encoded.mask, encoded.mask.sum()
        of_subjects = joint_event(encoded.subjects).cross_entropy(batch.subjects).sum(-1)
        of_objects = joint_event(objects).cross_entropy(batch.objects).sum((-1, -2))
        parts = {
            "subjects": of_subjects.masked_fill(~keep, 0.0).sum() / characters,
            "objects": of_objects.masked_fill(~keep, 0.0).sum() / characters,
        }
        return LossOutput(parts["subjects"] + parts["objects"], parts)

    def count_long(self, texts: Sequence[str]) -> int:
        """Return how many texts are longer than `max_length` characters."""
        return sum(len(text) > self.max_length for text in texts)

    def prepare(self, texts: Sequence[str]) -> Decoder:
        """Return the function that decodes texts: all subjects of all texts in one pass."""
        schema, reader = self._require_parts()
        device = self.positions.weight.device
        coded = reader.encode_batch(texts, self.max_length)
        coded = CodedTexts(*(part.to(device) for part in coded))
        prior = self._prior(texts)
        encoded = self(coded, self._stack_subjects(prior, coded.mask))
        ends = joint_probability(encoded.subjects).masked_fill(~coded.mask[..., None], 0.0).numpy(force=True)
        return partial(self._decode, texts, schema, encoded, ends, prior)

    def _decode(
        self,
        texts: Sequence[str],
        schema: TripleSchema,
        encoded: Encoded,
        ends: np.ndarray[Any, Any],
        prior: list[PriorFeatures] | None,
        head: float,
        tail: float,
    ) -> list[Extracted]:
        """Return what is found in texts, from the probabilities (B, T, 2) that subjects begin and end."""
        results = [Extracted([]) for _ in texts]
        places: list[tuple[int, int, int]] = []  # text, first and last place of each subject
        for i, probabilities in enumerate(ends):
            spans = [(start, end - 1) for _, start, end in decode_spans(probabilities[:, None], head, tail)]
            if cut := len(spans) > MOST_SUBJECTS:
                spans = sorted(sorted(spans, key=lambda s: -probabilities[s[0], 0])[:MOST_SUBJECTS])
            results[i] = Extracted([], cut)
            places += [(i, start, last) for start, last in spans]
        for at in range(0, len(places), _SUBJECTS):
            part = places[at : at + _SUBJECTS]
            for (i, start, last), objects in zip(part, self._objects(encoded, part, prior), strict=True):
                subject = start, last + 1
                certainty = ends[i, start, 0] * ends[i, last, 1]
                for kind, begin, end in decode_spans(objects, head, tail):
                    score = certainty * objects[begin, kind, 0] * objects[end - 1, kind, 1]
                    names = texts[i][slice(*subject)], schema.predicates[kind], texts[i][begin:end]
                    results[i].triples.append(Triple(*names, subject, (begin, end), float(score) ** 0.25))
        return [
            Extracted(keep_likeliest(one.triples, MOST_TRIPLES), one.cut or len(one.triples) > MOST_TRIPLES)
            for one in results
        ]

    def _objects(
        self, encoded: Encoded, places: Sequence[tuple[int, int, int]], prior: list[PriorFeatures] | None
    ) -> np.ndarray[Any, Any]:
        """Return the probabilities (N, T, P, 2) of the objects of subjects; zeros at padding."""
        rows, starts, lasts = torch.tensor(places, device=encoded.states.device).unbind(1)
        features = None
        if prior is not None:
            shape = (len(places), encoded.mask.shape[1], self.config.num_predicates, 2)
            known = np.zeros(shape, dtype=np.float32)
            for n, (i, start, last) in enumerate(places):
                own = prior[i].of_subject((start, last + 1))
                known[n, : len(own)] = own
            features = torch.from_numpy(known).to(encoded.states.device)
        probabilities = joint_probability(self.score_objects(encoded, rows, starts, lasts, features))
        kept: np.ndarray[Any, Any] = probabilities.masked_fill(~encoded.mask[rows][..., None, None], 0.0).numpy(
            force=True
        )
        return kept

    def _prior(self, texts: Sequence[str]) -> list[PriorFeatures] | None:
        if not self.config.prior:
            return None
        if self.supervision is None:
            raise NotFittedError("the network takes known triples (prior=True), and has none.", remedy="Give them.")
        return [self.supervision.features(text[: self.max_length]) for text in texts]

    def _stack_subjects(self, prior: list[PriorFeatures] | None, mask: Tensor) -> Tensor | None:
        if prior is None:
            return None
        stacked = torch.zeros(*mask.shape, 2, device=mask.device)
        for i, features in enumerate(prior):
            stacked[i, : len(features.subjects)] = torch.from_numpy(features.subjects)
        return stacked
