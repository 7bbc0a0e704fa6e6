"""RoFormer-Sim with its tokenizer: texts to vectors; sentences that mean the same; folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from kexue._progress import Progress
from kexue._tensors import evaluating
from kexue.errors import CheckpointError, KexueError
from kexue.similarity.whitening.estimator import Whitening
from kexue.text.batches import split_by_tokens
from kexue.text.models import find_model
from kexue.text.roformer_sim.folders import Dtype, read_parts, read_weights, write_folder
from kexue.text.roformer_sim.generation import read_text, write_sentences
from kexue.text.roformer_sim.model import RoFormerSimConfig, SentenceNetwork
from kexue.text.roformer_sim.similar import Similar, SimilarSentences, longest_rewrite, rank_similar
from kexue.text.roformer_sim.token_sampler import TokenSampler
from kexue.text.tokenizer import TextTokenizer, list_texts


class RoFormerSim(SentenceNetwork):
    """RoFormer-Sim: a Transformer that turns sentences into vectors, and writes sentences that mean the same.

    The vector of a text is P h + c, scaled to length 1, with h the state of [CLS].

    Source: kexue.fm/archives/8454; with ``position="learned"`` it is SimBERT, kexue.fm/archives/7427.

    Args:
        config: shape of the network.
        tokenizer: texts to token ids, which it then cuts at ``config.max_length``; None for a network that is given
            token ids only.

    Attributes:
        tokenizer: the same.
        truncated_: texts cut to the limit in the last call of `encode`.

    Raises:
        ValueError: the tokenizer has more tokens than the network.

    Example:
        >>> model = RoFormerSim.from_pretrained("my-model")  # doctest: +SKIP
        >>> model.encode(["怎么退货", "退货流程是什么"]).shape  # doctest: +SKIP
        (2, 256)
    """

    def __init__(self, config: RoFormerSimConfig, tokenizer: TextTokenizer | None = None) -> None:
        super().__init__(config)
        self.tokenizer = tokenizer
        self.truncated_ = 0
        if tokenizer is not None:
            if tokenizer.vocabulary_size > config.vocab_size:
                raise ValueError(
                    f"the tokenizer has {tokenizer.vocabulary_size} tokens, the network {config.vocab_size}: "
                    f"expected vocab_size={tokenizer.vocabulary_size} at least, or the network's own tokenizer."
                )
            tokenizer.set_max_length(min(config.max_length, tokenizer.model_max_length))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> RoFormerSim:
        """Read a model: a folder of `save_pretrained`, or a RoFormer, RoFormer-Sim or SimBERT folder of Hugging Face.

        Args:
            folder: the folder, or a name that `kexue.text.find_model` knows. It needs safetensors weights with the
                pooler and the language model head, and vocab.txt or tokenizer.json.

        Returns:
            The model in float32, in evaluation mode.

        Raises:
            ModelNotFoundError: no such folder. CheckpointError: weights that are missing or not known (all are
                listed), settings that are not computed, a vocabulary of words or of another network, a damaged file.
        """
        place = find_model(folder)
        try:
            model = cls(*read_parts(place))
            model.load_state_dict(read_weights(place, model.state_dict()))
        except KexueError:
            raise
        except Exception as error:  # damaged files raise many types of errors
            raise CheckpointError(
                f"{place} cannot be loaded: {type(error).__name__}: {error}", remedy="Copy the whole folder again."
            ) from error
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: Dtype = "float32") -> None:
        """Write a folder that `from_pretrained`, `kexue.text.Encoder` and sentence-transformers open.

        Args:
            folder: written completely or not at all; one that was written by this method is replaced.
            dtype: of the weights in the file: ``"float32"``, ``"float16"``, or ``"int8"`` for a quarter of float32's
                size, rows of integers with a scale, which kexue alone reads.

        Raises:
            ValueError: no tokenizer, an unknown dtype, a shape that the published format does not have, or a weight
                that is not finite in this dtype.
            DataError: the folder holds files that are not of such a model.
        """
        write_folder(folder, self.config, self.state_dict(), self._require_tokenizer(), dtype)

    def whiten(self, whitening: Whitening) -> RoFormerSim:
        """Return a model whose vectors are those of this one after a whitening, which becomes a part of the pooler.

        Args:
            whitening: fitted on vectors of ``encode(texts, normalize=False)``.

        Raises:
            ValueError: it was fitted on vectors of another width.

        Example:
            >>> vectors = model.encode(texts, normalize=False)  # doctest: +SKIP
            >>> shorter = model.whiten(Whitening(128, gamma=0.0).fit(vectors))  # doctest: +SKIP
        """
        kernel, bias = (torch.from_numpy(np.asarray(part)) for part in (whitening.kernel_, whitening.bias_))
        if len(kernel) != self.config.width:
            raise ValueError(f"the whitening is for vectors of {len(kernel)} dimensions, got {self.config.width}.")
        other = RoFormerSim(replace(self.config, vector_size=kernel.shape[1]), self.tokenizer)
        state = self.state_dict()
        weight, shift = state["pooler.weight"], state["pooler.bias"]
        folded = {"pooler.weight": kernel.T @ weight.double(), "pooler.bias": shift.double() @ kernel + bias}
        other.load_state_dict({**state, **{name: value.to(weight.dtype) for name, value in folded.items()}})
        return other.train(self.training)

    @torch.inference_mode()
    def encode(
        self,
        texts: Iterable[str],
        *,
        normalize: bool = True,
        batch_tokens: int = 2048,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Compute the vectors of texts, in their order.

        Args:
            texts: n strings; one plain string counts as a list of one. An empty text is [CLS] [SEP].
            normalize: scale vectors to length 1; False leaves them as the pooler returns them.
            batch_tokens: limit of tokens in one forward pass, padding included, at least 1; a longer text is a batch
                by itself.
            progress: called as ``progress(texts_done, n)``.

        Returns:
            (n, d) float32; (0, d) for no texts. `truncated_` is the number of texts that were cut.

        Raises:
            TypeError: an element is not a string; its position is named. ValueError: no tokenizer, `batch_tokens` < 1.
        """
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}.")
        tokenizer = self._require_tokenizer()
        tokens = tokenizer.encode(list_texts(texts))
        self.truncated_ = tokens.truncated
        n, done = len(tokens.lengths), 0
        vectors = np.empty((n, self.config.width), dtype=np.float32)
        device = self.pooler.weight.device
        with evaluating(self):
            for rows in split_by_tokens(tokens.lengths, batch_tokens):
                ids, keep = (torch.from_numpy(part).to(device) for part in tokens.pad(rows, tokenizer.pad_id))
                mask = None if bool(keep.all()) else keep
                batch = self(ids, mask=mask).vectors.float()
                vectors[rows] = (functional.normalize(batch) if normalize else batch).numpy(force=True)
                done += len(rows)
                if progress is not None:
                    progress(done, n)
        return vectors

    def generate(
        self,
        text: str,
        *,
        n: int = 100,
        top_p: float = 0.95,
        top_k: int | None = None,
        temperature: float = 1.0,
        max_length: int = 32,
        mask_positions: Iterable[int] = (),
        generator: torch.Generator | int | None = None,
    ) -> list[str]:
        """Write n sentences that mean about the same as a text, drawn at random, token by token.

        With a seed, a smaller n gives the first sentences of a larger one. Sentences may be equal, or equal to the
        text; `similar` sorts them out.

        Args:
            text: one sentence; cut at ``config.max_length`` tokens.
            n: number of sentences, at least 1.
            top_p, top_k, temperature: which tokens are drawn, as of `TokenSampler`: the nucleus of this mass, in
                (0, 1], of the `top_k` likeliest ones; a temperature of 0 always takes the likeliest.
            max_length: tokens of a sentence at most, at least 1; one that has not ended by then breaks off.
            mask_positions: tokens of the text, from 0 on, that are hidden from the model, so that it may depart from
                them; a Chinese character is one token, spaces are none.
            generator: on the CPU, or a seed.

        Raises:
            TypeError: not a string. ValueError: a blank text, a number out of range, or no tokenizer.

        Example:
            >>> model = RoFormerSim.from_pretrained("kexue/roformer-sim-tiny-zh")  # doctest: +SKIP
            >>> model.generate("怎么退货", n=3, generator=0)  # doctest: +SKIP
        """
        tokenizer = self._require_tokenizer()
        ids, marks = read_text(tokenizer, text, mask_positions)
        unnamed = range(tokenizer.vocabulary_size, self.config.vocab_size)  # rows of the table without a token
        marks = replace(marks, never=(*marks.never, *unnamed))
        sampler = TokenSampler(top_p, top_k, temperature)
        [sentences] = write_sentences(
            self, [ids], marks, n=n, max_length=max_length, sampler=sampler, generator=generator
        )
        return [tokenizer.decode(one) for one in sentences]

    def similar(
        self,
        text: str,
        *,
        n: int = 100,
        k: int = 20,
        min_score: float | None = None,
        max_score: float | None = None,
        generator: torch.Generator | int | None = None,
    ) -> list[Similar]:
        """Return sentences that mean about the same as a text, the most similar first.

        Of n that `generate` writes, the text itself is left out, and of those that differ in punctuation, case, width
        or spaces only, all but one. The cosine to the text, by this model's own vectors, orders them.

        Args:
            text: one sentence.
            n: number of sentences written, at least 1.
            k: number of results at most, at least 1.
            min_score, max_score: bounds of their cosines, in [-1, 1].
            generator: on the CPU, or a seed.

        Raises:
            TypeError: not a string. ValueError: a blank text, a number out of range, or no tokenizer.

        Example:
            >>> model = RoFormerSim.from_pretrained("kexue/roformer-sim-tiny-zh")  # doctest: +SKIP
            >>> for sentence, score in model.similar("怎么退货", k=3, generator=0):  # doctest: +SKIP
            ...     print(f"{score:.2f} {sentence}")
        """
        return write_similar(
            self, text, n=n, k=k, min_score=min_score, max_score=max_score, generator=generator
        ).results

    def _require_tokenizer(self) -> TextTokenizer:
        """Return the tokenizer; ValueError where the model has none."""
        if self.tokenizer is None:
            raise ValueError(
                "this model has no tokenizer, so it takes token ids only; build it with RoFormerSim(config, "
                "TextTokenizer(folder))."
            )
        return self.tokenizer


def write_similar(
    model: RoFormerSim,
    text: str,
    *,
    n: int,
    k: int,
    min_score: float | None,
    max_score: float | None,
    generator: torch.Generator | int | None,
    **how: Any,
) -> SimilarSentences:
    """Return what `RoFormerSim.similar` returns, with the numbers of sentences written and left out.

    Args:
        model: writes and ranks.
        text, n, k, min_score, max_score, generator: as of `RoFormerSim.similar`.
        how: which tokens are drawn, and which of the text are hidden: as of `RoFormerSim.generate`.
    """
    tokens = len(read_text(model._require_tokenizer(), text)[0])
    limit = longest_rewrite(tokens)
    if model.config.position == "learned":
        limit = max(1, min(limit, model.config.max_length - tokens))
    written = model.generate(text, n=n, max_length=limit, generator=generator, **how)
    return rank_similar(model.encode, text, written, k=k, min_score=min_score, max_score=max_score)
