"""Vectors of a teacher for the texts of a training run: encoded once, kept in the folder of the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kexue._files import replacing
from kexue._progress import Progress
from kexue.similarity.whitening.estimator import Whitening
from kexue.text.encoder import Encoder

_SAMPLE = 200_000  # vectors from which mean and axes are taken


def teach(
    texts: Sequence[str], teacher: str, folder: Path, *, device: str = "auto", progress: Progress | None = None
) -> np.ndarray:
    """Return the vectors (n, e) float32 of a teacher, read from `folder` if they are there for the same texts.

    A model with a prompt for queries reads them with it, since sentences are compared as equals.
    """
    encoder = Encoder(teacher, device=device)
    prompt = "query" if "query" in encoder.prompts else None
    digest = hashlib.sha256(json.dumps(list(texts), ensure_ascii=False).encode()).hexdigest()
    identity = {"teacher": encoder.fingerprint, "prompt": prompt, "texts": digest}
    path, note = folder / "teacher.npy", folder / "teacher.json"
    if path.is_file() and note.is_file() and json.loads(note.read_text(encoding="utf-8")) == identity:
        return np.asarray(np.load(path, mmap_mode="r"))
    folder.mkdir(parents=True, exist_ok=True)
    before = encoder.prompts[prompt] if prompt else ""
    encoder.encode_to(path, [before + text for text in texts], progress=progress)
    with replacing(note) as temporary:
        temporary.write_text(json.dumps(identity) + "\n", encoding="utf-8")
    return np.asarray(np.load(path, mmap_mode="r"))


def reduce_targets(vectors: np.ndarray, width: int) -> np.ndarray:
    """Return the vectors (n, width) to learn: centred, turned to their principal axes, cut or filled with zeros.

    Centring takes away what all vectors share, most of the cosine of any two. The axes are orthonormal: where nothing
    is cut, all cosines of centred vectors are kept.
    """
    n, e = vectors.shape
    sample = vectors[np.random.default_rng(0).choice(n, min(n, _SAMPLE), replace=False)]
    axes = Whitening(beta=1.0, gamma=0.0, n_components=min(width, e)).fit(np.asarray(sample))
    targets = np.zeros((n, width), dtype=np.float32)
    for start in range(0, n, 65_536):
        part = axes.transform(np.asarray(vectors[start : start + 65_536]))
        targets[start : start + len(part), : part.shape[1]] = part
    return targets
