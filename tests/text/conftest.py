"""A tiny packed model, written by the layout that `kexue.text.packed` states, and the weights behind it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁ab", "退", "货", "~", "～", "query", ":", "passage", "c"]
HIDDEN, LAYERS, HEADS, INNER, VOCABULARY, POSITIONS, SEGMENTS = 32, 2, 4, 64, 20, 40, 2


@dataclass
class Packed:
    """The parts of the file, which a test may change before `write`, and the exact numbers of the tensors."""

    magic: bytes = b"E5S1"
    version: int = 1
    sizes: tuple[int, ...] = (HIDDEN, LAYERS, HEADS, INNER, VOCABULARY, POSITIONS, SEGMENTS)
    epsilon: float = 1e-12
    block: int = 32
    special: tuple[int, ...] = (0, 2, 1, 3)  # bos, eos, pad, unk
    pieces: list[str] = field(default_factory=lambda: list(PIECES))
    starts: list[int] | None = None
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    directory: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)  # name -> entry to write instead

    def write(self, path: Path) -> Path:
        text = [piece.encode() for piece in self.pieces]
        starts = self.starts or [0, *np.cumsum([len(piece) for piece in text]).tolist()]
        head = self.magic + struct.pack("<I7ifi", self.version, *self.sizes, self.epsilon, self.block)
        head += struct.pack("<5iQ", len(self.pieces), *self.special, sum(map(len, text)))
        head += struct.pack(f"<{len(starts)}I", *starts)
        scores = [0.0] * 4 + [-float(number) for number in range(1, len(self.pieces) - 3)]
        head += struct.pack(f"<{len(self.pieces)}f", *scores) + b"".join(text)
        head += struct.pack("<iI", 1, 9) + struct.pack("<IBI", ord("ａ"), 1, ord("a"))
        head += struct.pack("<i", len(self.tensors))
        entries = [(name, *encode(name, numbers)) for name, numbers in self.tensors.items()]
        place = len(head) + sum(2 + len(name) + 1 + 4 + 8 + 8 for name, *_ in entries)
        data = b""
        for name, kind, raw in entries:
            entry = self.directory.get(name, (kind, self.tensors[name].size, place + len(data), len(raw)))
            head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", *entry)
            data += raw
        path.write_bytes(head + data)
        return path


def encode(name: str, numbers: np.ndarray) -> tuple[int, bytes]:
    """Kind and bytes of a tensor: matrices of the layers and the word vectors in blocks, all else in float32."""
    if numbers.ndim == 1 or name in ("emb.pos", "emb.type"):
        return 0, numbers.astype("<f4").tobytes()
    scale = np.float16(0.125)  # the numbers are multiples of it, -8 to 7 times
    whole = np.round(numbers.reshape(-1, 32) / np.float32(scale)).astype(np.int64) + 8
    raw = b""
    for block in whole:
        raw += scale.tobytes() + bytes(int(low | high << 4) for low, high in zip(block[:16], block[16:], strict=True))
    return 1, raw


@pytest.fixture
def packed() -> Packed:
    """A packed model with random weights that 4 bits hold exactly."""
    random = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return (random.integers(-8, 8, shape) * 0.125).astype(np.float32)

    def vector(size: int, mean: float) -> np.ndarray:
        return (mean + random.integers(-8, 8, size) / 64).astype(np.float32)

    tensors = {
        "emb.word": matrix(VOCABULARY, HIDDEN),
        "emb.pos": matrix(POSITIONS, HIDDEN),
        "emb.type": matrix(SEGMENTS, HIDDEN),
        "emb.ln.w": vector(HIDDEN, 1),
        "emb.ln.b": vector(HIDDEN, 0),
    }
    for layer in range(LAYERS):
        for name in ("q", "k", "v", "ao"):
            tensors |= {f"l{layer}.{name}.w": matrix(HIDDEN, HIDDEN), f"l{layer}.{name}.b": vector(HIDDEN, 0)}
        tensors |= {f"l{layer}.fi.w": matrix(INNER, HIDDEN), f"l{layer}.fi.b": vector(INNER, 0)}
        tensors |= {f"l{layer}.fo.w": matrix(HIDDEN, INNER), f"l{layer}.fo.b": vector(HIDDEN, 0)}
        for name in ("aln", "oln"):
            tensors |= {f"l{layer}.{name}.w": vector(HIDDEN, 1), f"l{layer}.{name}.b": vector(HIDDEN, 0)}
    return Packed(tensors=tensors)
