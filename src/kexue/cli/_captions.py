"""Captions of images and prompts as vectors, for `kexue model`: by the sentence encoder."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from kexue._text import say_count
from kexue.cli._verb import Output
from kexue.errors import DataError, NotSupported, SpaceMismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from kexue.generative import Captions, Run
    from kexue.text import Encoder

_LOG = logging.getLogger(__name__)


def load_captions(path: str, device: str, out: Output) -> Captions:
    """Return the captions in a table with the columns file and text; they are encoded when the training begins.

    The model is that of ``Encoder("auto")`` for these texts.

    Raises:
        DataError: the table cannot be read, or names a file twice.
    """
    from kexue.generative import Captions
    from kexue.text import Encoder

    texts = _read(path)
    encoder = Encoder(device=device, dtype="float32")
    encoder.choose_model(list(texts.values()))
    known = {"model": encoder.model_id, "fingerprint": encoder.fingerprint, "dim": encoder.dim}

    def encode(captions: Sequence[str]) -> Tensor:
        with out.progress("encoding captions") as progress:
            return _encode(encoder, captions, progress=progress)

    return Captions(texts, known, encode)


def _read(path: str) -> dict[str, str]:
    """Return the texts of a table by the names of files."""
    from kexue.corpus.records import read_records

    texts: dict[str, str] = {}
    try:
        for record in read_records(path, text="text", id="file"):
            name = str(record.id)
            if name in texts:
                raise DataError(f"{name} has two captions.", path=path, line=record.line, remedy="Leave one.")
            texts[name] = record.text
    except DataError as error:
        if "--" in (error.remedy or ""):  # options of other verbs
            error.remedy = "Name a table (.csv, .tsv, .jsonl) with the columns file and text."
        raise
    return texts


def encode_prompt(run: Run, prompt: str, device: str) -> Tensor:
    """Return the vector (d,) of a text, by the encoder of the captions that a run has learnt.

    Raises:
        ValueError: a blank text. NotSupported: the run has learnt no captions.
        SpaceMismatchError: their encoder is not here any more as it was.
    """
    from kexue.text import Encoder

    if not prompt.strip():
        raise ValueError("the prompt is blank; leave it out for images of anything")
    known = getattr(run.medium, "encoder", None)
    if known is None:
        raise NotSupported(
            f"{run.folder} has learnt no captions: it does not take a prompt.",
            remedy="Train with --captions FILE; of a model with classes name one by --condition.",
        )
    encoder = Encoder(known["model"], device=device, dtype="float32")
    if encoder.fingerprint != known["fingerprint"]:
        raise SpaceMismatchError(
            f"{known['model']} is not the encoder that the captions of {run.folder} were read by.",
            expected=known["fingerprint"],
            received=encoder.fingerprint,
            remedy="Put that model back in its place, or train again.",
        )
    return _encode(encoder, [prompt])[0]


def _encode(encoder: Encoder, texts: Sequence[str], **options: Any) -> Tensor:
    """Return vectors (n, d) of texts, of length sqrt(d), so that their numbers are about 1."""
    import torch

    vectors: Tensor = torch.from_numpy(encoder.encode(texts, **options)).float()
    if encoder.truncated_:
        _LOG.warning("the encoder reads %d tokens: %s cut", encoder.max_length, say_count(encoder.truncated_, "text"))
    return vectors * math.sqrt(encoder.dim)
