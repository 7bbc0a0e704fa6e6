"""Make the Chinese model of n-grams that is a part of kexue.

    python recipes/ngram_zh.py --data FOLDER [--out src/kexue/sampling/text/zh_ngram]

FOLDER holds `corpus_zh/dialogue_utterances.txt.gz` (turns of KdConv and CrossWOZ, Apache-2.0) and
`parallel_en_zh/tatoeba.tsv.gz` (sentences of Tatoeba, CC BY 2.0 FR). Every fiftieth text is held out for the perplexity
that is printed; the model that is written has read all.
"""

import argparse
from itertools import islice
from pathlib import Path

from kexue.corpus import read_records
from kexue.sampling.text import NGramLM

ORDER, MIN_COUNT = 5, 2


def is_simplified(text: str) -> bool:
    """Return whether all characters are those of mainland texts."""
    try:
        text.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True


def read(data: Path) -> list[str]:
    """Return the texts, each once."""
    dialogues = (record.text for record in read_records(data / "corpus_zh/dialogue_utterances.txt.gz"))
    rows = read_records(data / "parallel_en_zh/tatoeba.tsv.gz", format="txt")  # not quoted: English, Chinese, credit
    tatoeba = (row.text.split("\t")[1] for row in islice(rows, 1, None))
    texts = [*dialogues, *(text for text in tatoeba if is_simplified(text))]
    return list(dict.fromkeys(text.strip() for text in texts))


def main() -> None:
    """Train, measure and write the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("src/kexue/sampling/text/zh_ngram"))
    options = parser.parse_args()
    texts = read(options.data)
    held_out = texts[::50]
    lm = NGramLM(ORDER, min_count=MIN_COUNT).fit([text for i, text in enumerate(texts) if i % 50])
    print(f"{len(texts):,} texts; perplexity of {len(held_out):,} held-out ones {lm.perplexity(held_out):.1f}")
    lm = NGramLM(ORDER, min_count=MIN_COUNT).fit(texts)
    card = (options.out / "README.md").read_text(encoding="utf-8") if (options.out / "README.md").is_file() else None
    lm.save(options.out)
    if card is not None:
        (options.out / "README.md").write_text(card, encoding="utf-8")
    print(f"{len(lm):,} n-grams, {len(lm.vocabulary):,} tokens, read {lm.tokens_:,}")


if __name__ == "__main__":
    main()
