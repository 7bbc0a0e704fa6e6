"""A student that starts as a part of its teacher: the first layers, and the teacher's vectors of its characters.

A small network with random weights has to learn the words of a language from the few texts it is given; one that
starts from a teacher knows them, and has to learn only what the layers left out would have done (ours).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kexue._counts import is_whole
from kexue.errors import CheckpointError, KexueError
from kexue.text.bert import list_unsupported
from kexue.text.folder import ModelFolder, load_weights, read_config, read_model_folder
from kexue.text.models import find_model
from kexue.text.roformer_sim.model import RoFormerSimConfig
from kexue.text.roformer_sim.sentences import RoFormerSim
from kexue.text.roformer_sim.weights import from_published, plain_name, to_published
from kexue.text.tokenizer import TextTokenizer
from kexue.text.wordpiece import SPECIAL

_PLACES = 32  # positions whose mean stands for all of them, since the student turns its positions instead


def start_from_teacher(teacher: str, tokenizer: TextTokenizer, *, num_layers: int) -> RoFormerSim:
    """Return a new model with the first `num_layers` layers of a BERT and its own vocabulary.

    A token starts as the mean of the teacher's vectors of the pieces that the teacher splits it into. The teacher's
    learned positions become rotary ones: their mean is added to every token. States are pooled as the teacher pools
    them, by their mean or by [CLS].

    Args:
        teacher: a model as `kexue.text.Encoder` takes it, whose transformer is a BERT.
        tokenizer: of the new model.
        num_layers: at least 1, at most those of the teacher.

    Raises:
        CheckpointError: the teacher is no BERT, or none that the student can continue, or its folder is damaged.
        ValueError: it has fewer layers.
    """
    stack = read_model_folder(find_model(teacher))
    shape = read_config(stack.transformer)
    faults = [] if shape.get("model_type") == "bert" else [f"model_type={shape.get('model_type')!r}"]
    if faults := faults or list_unsupported(shape):
        raise CheckpointError(
            f"{teacher} has {', '.join(faults)}; a student can start from a BERT only, and one of the usual form.",
            remedy="Leave out the start from the teacher.",
        )
    layers = shape.get("num_hidden_layers", 0)
    if not is_whole(num_layers) or not 1 <= num_layers <= layers:
        raise ValueError(f"num_layers must be a whole number between 1 and the teacher's {layers}, got {num_layers!r}")
    try:
        return _start(stack, shape, tokenizer, num_layers)
    except KexueError:
        raise
    except Exception as error:  # damaged files raise many types of errors
        raise CheckpointError(
            f"{teacher} cannot be loaded: {type(error).__name__}: {error}", remedy="Copy the whole folder again."
        ) from error


def _start(stack: ModelFolder, shape: dict[str, Any], tokenizer: TextTokenizer, num_layers: int) -> RoFormerSim:
    """Return the new model of a teacher's folder and its config.json."""
    model = RoFormerSim(
        RoFormerSimConfig(
            tokenizer.vocabulary_size,
            hidden_size=shape["hidden_size"],
            num_layers=num_layers,
            num_heads=shape["num_attention_heads"],
            intermediate_size=shape["intermediate_size"],
            pooling="mean" if stack.pooling == "last-avg" else "cls",
        ),
        tokenizer,
    )
    own = to_published(model.state_dict(), prefix="")
    given = {plain_name(name): value.float() for name, value in load_weights(stack.transformer).items()}
    taken = {name: given[name] for name in own if name.startswith("encoder.") or name.startswith("embeddings.Layer")}
    words, places = given["embeddings.word_embeddings.weight"], given["embeddings.position_embeddings.weight"]
    taken["embeddings.word_embeddings.weight"] = _token_vectors(
        tokenizer.tokens, TextTokenizer(stack.transformer, lower=stack.lower), words
    )
    segment = given["embeddings.token_type_embeddings.weight"][0] + places[2 : 2 + _PLACES].mean(0)
    taken["embeddings.token_type_embeddings.weight"] = segment.repeat(2, 1)
    model.load_state_dict(from_published({**own, **taken}, model.state_dict(), where=str(stack.transformer)))
    return model


def _token_vectors(tokens: list[str], teacher: TextTokenizer, table: Tensor) -> Tensor:
    """Return the start (V, d) of each token: the mean of the teacher's vectors of its pieces.

    [CLS] and [SEP] start as the teacher's first and last token of a text, other special tokens as the mean of all.
    """
    teacher.set_max_length(16)
    records = teacher.encode_with_offsets([token.removeprefix("##") for token in tokens])
    vectors = table.mean(0).repeat(len(tokens), 1)
    for i, (token, record) in enumerate(zip(tokens, records, strict=True)):
        pieces = [
            number
            for number, piece, special in zip(record.ids, record.tokens, record.special_tokens_mask, strict=True)
            if not special and piece.strip("▁")
        ]
        if token in SPECIAL:
            pieces = {"[CLS]": record.ids[:1], "[SEP]": record.ids[-1:]}.get(token, [])
        if pieces:
            vectors[i] = table[torch.tensor(pieces)].mean(0)
    return vectors
