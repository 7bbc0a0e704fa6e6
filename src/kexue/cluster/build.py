"""Build an index whose texts are encoded on a cluster; this machine writes the file."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kexue import search
from kexue._progress import Progress
from kexue._text import standard_input
from kexue.cluster.embed import embed
from kexue.cluster.session import RaySession
from kexue.cluster.shards import list_shards, read_metadata, read_shard
from kexue.cluster.statistics import compute_moments
from kexue.corpus.decoding import MAX_BYTES
from kexue.corpus.open import STDIN
from kexue.errors import DataError
from kexue.search.build import BuildReport
from kexue.search.hubs import Dehub, centre_whitening, check_dehub
from kexue.search.inputs import Inputs
from kexue.search.opening import check_approx
from kexue.search.products import Vectors
from kexue.search.space import SupportsEncode, is_fitted
from kexue.similarity import Whitening

_STDIN_COPY = "stdin.txt"


@dataclass(frozen=True)
class ClusterBuildReport(BuildReport):
    """Result of `build_index`: the report of one machine, with the numbers of shards and of those repeated."""

    shards: int
    retried: int


def build_index(
    inputs: Inputs,
    out: str | os.PathLike[str],
    *,
    encoder: SupportsEncode | str | os.PathLike[str] = "auto",
    ray: str = "local",
    shards: int | None = None,
    whitening: Whitening | None = None,
    dehub: Dehub | None = None,
    text: str | None = None,
    id: str | None = None,
    metadata: Sequence[str] = (),
    format: str = "auto",
    approx: str = "auto",
    errors: str = "strict",
    encoding: str = "auto",
    delimiter: str | None = None,
    sheet: str | None = None,
    max_bytes: int = MAX_BYTES,
    resume: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ClusterBuildReport:
    """Build an index as `kexue.search.build_index` does, with the encoding on a cluster.

    Texts are encoded in shards in the folder ``<out>.shards``; the moments for a whitening that has to be fitted are
    computed shard by shard; then this machine writes the index. After an interruption the same call continues. Long
    texts are not split into passages: `truncated` counts those that were cut.

    Args:
        inputs, out, whitening, dehub, approx, overwrite: see `kexue.search.build_index`.
        encoder, ray, shards, resume: see `embed_files`.
        progress: called as progress(done, n), first for encoded texts, then from 0 for written ones.

    Raises:
        Exception: the same as `embed_files` and `kexue.search.build_index`.
    """
    start = time.perf_counter()
    target = Path(out)
    if os.path.lexists(target) and not overwrite:
        raise search.IndexExistsError(
            f"{target} exists already.", remedy="Choose another name, or pass overwrite=True (--overwrite)."
        )
    check_approx(approx)
    check_dehub(dehub)
    whitening = centre_whitening(dehub, whitening)
    folder = Path(f"{target}.shards")
    sources = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    sources = [_save_stdin(folder) if source == STDIN else source for source in sources]
    reading: dict[str, Any] = {"text": text, "id": id, "metadata": metadata, "format": format, "errors": errors}
    reading |= {"encoding": encoding, "delimiter": delimiter, "sheet": sheet, "max_bytes": max_bytes}
    common: dict[str, Any] = {"resume": resume, "progress": progress, **reading}
    fit = whitening is not None and not is_fitted(whitening)
    with RaySession(ray) as session:
        embedded = embed(session, sources, folder, encoder=encoder, shards=shards, **common)
        if whitening is not None and fit:
            whitening = Whitening(**whitening.get_params()).merge(compute_moments(session, folder))
    space: dict[str, Any] = {"whitening": whitening, "dehub": dehub, "approx": approx, "passages": "none"}
    report = search.build_index(sources, target, encoder=_ShardEncoder(folder), overwrite=overwrite, **space, **common)
    if fit:  # drift is measured from these vectors on
        with search.Index.open(target) as index:
            index.ingest.reset_drift()
    _remove_shards(folder)
    changes = {
        "truncated": embedded.truncated,
        "seconds": time.perf_counter() - start,
        "warnings": list(dict.fromkeys([*embedded.warnings, *report.warnings])),
    }
    return ClusterBuildReport(**{**asdict(report), **changes}, shards=embedded.shards, retried=embedded.retried)


class _ShardEncoder:
    """Encoder that reads the vectors of finished shards: texts come in the order of the shards, some left out.

    Attributes:
        identity: of the encoder that made the shards.
    """

    def __init__(self, folder: Path) -> None:
        stored = read_metadata(list_shards(folder)[0])
        assert stored is not None
        self.identity = stored.identity
        self._pairs = _read_pairs(folder)

    def encode(self, texts: list[str]) -> Vectors:
        """Return the vectors (n, dim); their prompt was put before the texts when they were encoded."""
        return np.stack([self._find(text) for text in texts])

    def _find(self, wanted: str) -> Vectors:
        """Return the vector (dim,) of the next text that equals `wanted`; DataError where there is none."""
        for text, vector in self._pairs:
            if text == wanted:
                return vector
        raise DataError(
            f"the inputs have changed since they were encoded: {wanted!r:.60} is new.",
            remedy="Run the same command again: only shards that changed are encoded.",
        )


def _read_pairs(folder: Path) -> Iterator[tuple[str, Vectors]]:
    """Yield text and vector (dim,) of all shards, in order."""
    for path in list_shards(folder):
        yield from zip(*read_shard(path), strict=True)


def _remove_shards(folder: Path) -> None:
    """Delete the shards and their folder."""
    for path in [*list_shards(folder), folder / _STDIN_COPY]:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # the folder holds other files
        folder.rmdir()


def _save_stdin(folder: Path) -> Path:
    """Save standard input to a file, because it is read twice."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _STDIN_COPY
    with path.open("wb") as file:
        shutil.copyfileobj(standard_input(), file)
    return path
