"""Texts of the shipped model `kexue/roformer-sim-tiny-zh`, from open sources; its card has the commands that follow.

    python recipes/tiny_zh/prepare.py --data FOLDER --out data

Sources are those whose terms allow it and that are not share-alike; every text that occurs in a validation or test file
of a set of pairs is left out. The teacher scores near sentences: pairs that it finds alike are to be written, and 2,500
pairs with its cosines, whose texts are not trained on, choose the best step.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from edits import write_edits
from grammar import write_groups
from wide import list_words, write_forms, write_rows

from kexue.text import Encoder, find_model

TEACHER = "multilingual-e5-small"
LONGEST = 64  # characters of a text
ALIKE = 0.8  # cosine of centred vectors of the teacher from which two sentences are a pair
SAMPLES = {"dynamics": (25_000, 36), "python": (9_000, 40), "django": (5_000, 40), "bible": (4_000, 36)}  # texts, size


def read_column(path: Path, name: str) -> Iterator[str]:
    """Yield a column of a compressed table without quoting."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        at = next(lines).rstrip("\n").split("\t").index(name)
        for line in lines:
            yield line.rstrip("\n").split("\t")[at]


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a compressed file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from (line.rstrip("\n") for line in lines)


def reduce_text(text: str) -> str:
    """Return what two texts share that differ in width, case, spaces or final marks only."""
    return re.sub(r"[\s。！？!?.]", "", unicodedata.normalize("NFKC", text).lower())


class Texts:
    """Different texts of a size, with enough Chinese characters, that are not in a held-out file."""

    def __init__(self, data: Path) -> None:
        self.seen: set[str] = set()
        for path in sorted(data.glob("pairs_zh/*/*.tsv.gz")):
            if any(part in str(path) for part in ("valid", "test", "dev")):
                for line in read_lines(path):
                    self.seen.update(reduce_text(text) for text in line.split("\t")[:2])

    def keep(self, texts: Iterable[str], least: int = 2) -> list[str]:
        """Return the texts that are new, long ones cut into sentences."""
        kept = []
        for text in texts:
            whole = text.strip()
            parts = [whole] if len(whole) <= LONGEST else re.findall(r"[^。！？；!?]+[。！？；!?]*", whole)
            for part in map(str.strip, parts):
                key = reduce_text(part)
                chinese = len(re.findall(r"[\u4e00-\u9fff]", part))
                if least <= len(part) <= LONGEST and chinese >= 0.3 * len(part) and key not in self.seen:
                    self.seen.add(key)
                    kept.append(part)
        return kept


def read_sources(data: Path) -> dict[str, list[str]]:
    """Return the texts of each source."""
    texts, parallel = Texts(data), data / "parallel_en_zh"
    utterances = list(read_lines(data / "corpus_zh/dialogue_utterances.txt.gz"))
    parts = (part for text in utterances for part in re.split(r"(?<=[，。！？；])", text))
    same, words = data / "pairs_zh_open/same_english_docs.tsv.gz", data / "pairs_zh_open/wordnet_synonyms.tsv.gz"
    columns = ("text_a", "text_b")
    return {
        "tatoeba": texts.keep(read_column(parallel / "tatoeba.tsv.gz", "zh")),
        "dialogue": texts.keep(utterances),
        "dialogue_parts": texts.keep(parts, least=5),
        "tico": texts.keep(read_column(parallel / "tico19.tsv.gz", "zh")),
        "same": texts.keep(text for name in columns for text in read_column(same, name)),
        "dynamics": texts.keep(read_column(parallel / "ms_dynamics365_docs.tsv.gz", "zh")),
        "python": texts.keep(read_column(parallel / "python_docs.tsv.gz", "zh")),
        "django": texts.keep(read_column(parallel / "django_docs.tsv.gz", "zh")),
        "words": texts.keep(text for name in columns for text in read_column(words, name)),
        "bible": texts.keep(read_column(parallel / "bible_cuv_nheb_bbe.tsv.gz", "zh")),
    }


def write_own(sources: dict[str, list[str]]) -> list[list[str]]:
    """Add sentences of the grammar and near copies to the sources; return the groups of the grammar."""
    words = sources["words"]
    groups = list(write_groups(90_000, words=[word for word in words if 2 <= len(word) <= 4], seed=1))
    grammar = list(dict.fromkeys(text for group in groups for text in group))
    short = [text for text in sources["dynamics"] if len(text) < 40]
    bases = [*sources["tatoeba"] * 2, *sources["dialogue_parts"], *random.Random(0).sample(short, 40_000)]
    bases += random.Random(0).sample(grammar, 40_000)
    known = set(grammar)
    edits = []
    for _, copy in write_edits(bases, words, seed=2):
        if copy not in known:
            known.add(copy)
            edits.append(copy)
    sources |= {"grammar": grammar, "edits": edits}
    rng = random.Random(11)
    for name, (count, longest) in SAMPLES.items():
        part = [text for text in sources[name] if 5 <= len(text) <= longest]
        rng.shuffle(part)
        sources[name] = part[:count]
    return groups


def write_wide(data: Path, sources: dict[str, list[str]]) -> list[list[str]]:
    """Add sentences and rows of the teacher's words to the sources; return 10,000 groups of these sentences."""
    tokenizer = json.loads((find_model(TEACHER) / "tokenizer.json").read_text("utf-8"))
    words = list_words([piece for piece, _ in tokenizer["model"]["vocab"]])
    groups, rows = list(write_forms(words, 42_000, seed=1)), list(write_rows(words, 40_000, seed=2))
    texts = Texts(data)
    pieces, forms = texts.keep(words), texts.keep(text for group in groups for text in group)
    sources |= {"pieces": pieces, "forms": forms, "rows": texts.keep(rows)}
    kept = set(forms)
    written = [[text for text in group if text in kept] for group in groups]
    return random.Random(4).sample([group for group in written if len(group) > 1], 10_000)


def encode_centred(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """Return unit vectors of the teacher about their mean."""
    vectors = encoder.encode_queries(texts)
    vectors -= vectors.mean(0)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_validation(sources: dict[str, list[str]], groups: list[list[str]], encoder: Encoder, path: Path) -> set[str]:
    """Write pairs of near sentences with the teacher's cosines; return their texts."""
    rng = random.Random(7)
    texts = {name: sources[name] for name in ("tatoeba", "dialogue_parts", "grammar")}
    raw = {name: encoder.encode_queries(part) for name, part in texts.items()}
    mean = np.concatenate([part[:20_000] for part in raw.values()]).mean(0)
    vectors = {name: (part - mean) / np.linalg.norm(part - mean, axis=1, keepdims=True) for name, part in raw.items()}
    pairs: list[tuple[str, str, float]] = []

    def add_near(name: str, count: int, near: int) -> None:
        chosen = rng.sample(range(len(texts[name])), count)
        for i, row in zip(chosen, vectors[name][chosen] @ vectors[name].T, strict=True):
            row[i] = -2
            j = int(rng.choice(list(np.argpartition(-row, near)[:near])))
            pairs.append((texts[name][i], texts[name][j], float(row[j])))

    add_near("tatoeba", 700, 60)
    add_near("dialogue_parts", 500, 60)
    place = {text: i for i, text in enumerate(texts["grammar"])}
    for group in rng.sample(groups, 500):
        a, b = rng.sample(group, 2)
        pairs.append((a, b, float(vectors["grammar"][place[a]] @ vectors["grammar"][place[b]])))
    add_near("grammar", 600, 200)
    for _ in range(200):
        i, j = rng.randrange(len(texts["tatoeba"])), rng.randrange(len(texts["tatoeba"]))
        pairs.append((texts["tatoeba"][i], texts["tatoeba"][j], float(vectors["tatoeba"][i] @ vectors["tatoeba"][j])))
    rng.shuffle(pairs)
    rows = "".join(f"{a}\t{b}\t{label:.5f}\n" for a, b, label in pairs)
    path.write_text("text_a\ttext_b\tlabel\n" + rows, encoding="utf-8")
    return {text for a, b, _ in pairs for text in (a, b)}


def find_alike(texts: list[str], encoder: Encoder) -> Iterator[tuple[str, str]]:
    """Yield pairs of different sentences that the teacher finds alike, among the three nearest of each."""
    vectors, seen = encode_centred(encoder, texts), set()
    for start in range(0, len(texts), 2048):
        cosines = vectors[start : start + 2048] @ vectors.T
        for i, row in enumerate(cosines, start):
            row[i] = -1
            for j in map(int, np.argsort(-row)[:3]):
                pair = min(i, j), max(i, j)
                plain = [re.sub(r"\W", "", unicodedata.normalize("NFKC", texts[k]).lower()) for k in pair]
                if row[j] >= ALIKE and plain[0] != plain[1] and pair not in seen:
                    seen.add(pair)
                    yield texts[i], texts[j]


def main() -> None:
    """Write the files into the folder of ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sources")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    sources, encoder = read_sources(arguments.data), Encoder(TEACHER)
    groups, wide = write_own(sources), write_wide(arguments.data, sources)
    held = write_validation(sources, groups, encoder, out / "validation.tsv")
    for name, texts in sources.items():
        (out / f"{name}.txt").write_text("\n".join(text for text in texts if text not in held) + "\n", encoding="utf-8")
    alike = find_alike([*sources["tatoeba"], *sources["dialogue_parts"]], encoder)
    pairs = [pair for pair in alike if not held & set(pair) and max(map(len, pair)) <= 30]
    random.Random(3).shuffle(groups)
    written = [[text for text in group if text not in held] for group in [*groups[:14_000], *wide]]
    with (out / "similar.jsonl").open("w", encoding="utf-8") as file:
        for texts in [*pairs, *(group for group in written if len(group) > 1)]:
            file.write(json.dumps({"texts": texts}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
