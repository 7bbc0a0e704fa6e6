import gzip

import pytest

from kexue.experiments import Report, run_experiment
from kexue.experiments._short_sentences import TEMPLATES, TOPICS, read_short, write_grammar
from kexue.generative import VonMisesFisher


@pytest.mark.slow
def test_univae_holds_where_training_plays_no_part(tmp_path, monkeypatch):
    monkeypatch.delenv("KEXUE_DATA", raising=False)
    report = run_experiment("univae", budget="smoke", out=tmp_path)
    assert [report.claims[i].verdict for i in (0, 1)] == ["reproduced"] * 2
    assert report.figures["writer_change"].value == 0
    assert report.figures["grammar_kl"].value == pytest.approx(2 * VonMisesFisher(32, 200.0).kl)
    assert "corpus_tokens" not in report.figures
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict


def test_sentences_are_distinct_and_short(tmp_path):
    every = write_grammar()
    assert len(set(every)) == len(every) == 6 * 8 * 6 * 8 * 3
    assert max(map(len, every)) == 11
    assert len({template.format(topic) for topic in TOPICS for template in TEMPLATES}) == 48
    assert read_short(tmp_path, 7, 500) == []
    folder = tmp_path / "parallel_en_zh"
    folder.mkdir()
    with gzip.open(folder / "tatoeba.tsv.gz", "wt", encoding="utf-8") as file:
        file.write("Hi.\t你好你\tx\nIt is late now.\t现在已经很晚了吧\tx\nA\t好\tx\nNo\t不好\tx\n")
    assert sorted(read_short(tmp_path, 7, 3)) == ["不好", "你好你"]
    assert read_short(tmp_path, 7, 2) == ["你好你"]
