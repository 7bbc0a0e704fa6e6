import numpy as np
import pytest

from kexue.experiments import _questions, run_experiment, supervised_similarity as module


@pytest.mark.slow
def test_runs_at_small_size_without_data(tmp_path, monkeypatch):
    monkeypatch.delenv("KEXUE_DATA", raising=False)
    report = run_experiment("supervised-similarity", budget="smoke", out=tmp_path)
    figures = report.figures
    assert len(report.claims) == 7
    # before training labels play no role
    assert figures["planted_right_untrained"].value == figures["planted_wrong_untrained"].value
    assert 0.7 < figures["planted_right_untrained"].value < np.sqrt(3) / 2  # the ceiling of two equal classes
    assert figures["planted_right_cosent"].value > figures["planted_right_untrained"].value
    assert any("data are missing" in note for note in report.notes)
    assert (tmp_path / "figure.png").exists()


def test_planted_pairs_share_what_their_kind_says():
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.normal(size=(64, 32)))[0].T
    topic_power, meaning_power, noise_power = 16 * module._TOPIC**2, 16.0, 64 * module._SPREAD**2
    shared = {"same": topic_power + meaning_power, "topic": topic_power, "unrelated": 0.0}
    for kind, expected in shared.items():
        a, b = (side.double().numpy() for side in module._draw_pairs(rng, 20_000, mixing, kind))
        assert (a * b).sum(1).mean() == pytest.approx(expected, abs=0.5)  # six standard errors or more
        for side in (a, b):
            assert (side**2).sum(1).mean() == pytest.approx(topic_power + meaning_power + noise_power, abs=1)


@pytest.mark.parametrize("way", module._LOSSES)
def test_every_loss_prefers_cosines_in_the_order_of_the_labels(way):
    torch = pytest.importorskip("torch")
    labels = torch.tensor([1.0, 0.0])
    u = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    close, far = torch.tensor([1.0, 0.1]), torch.tensor([0.1, 1.0])
    right, wrong = torch.stack([close, far]), torch.stack([far, close])
    head, loss = module._build_loss(way, 2)
    if way == "classification":  # scores of class 1 fall with |u - v|
        with torch.no_grad():
            head.linear.weight.zero_()
            head.linear.weight[0, 4:] = 1
    assert loss(u, right, labels) < loss(u, wrong, labels)


def test_a_pair_is_the_same_in_any_order_width_and_spacing():
    name = _questions._name_pair
    assert name("怎么退货?", "如何 退货") == name("如何退货", "怎么退货？")
    assert name("A", "b") != name("A", "c")


@pytest.fixture
def small_folder(tmp_path):
    """Sets of a few hundred pairs: two questions are the same when they name the same thing; numbers are noise."""
    rng = np.random.default_rng(0)

    def write(name, split, n):
        rows = []
        for _ in range(n):
            thing = rng.integers(5)
            label = int(rng.integers(2))
            other = thing if label else (thing + 1) % 5
            a, b = (f"{'甲乙丙丁戊'[t]}{rng.integers(100):02d}" for t in (thing, other))
            rows.append(f"{a}\t{b}\t{label}")
        folder = tmp_path / "pairs_zh" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.tsv").write_text("text_a\ttext_b\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")
        return rows

    for name in _questions.SETS:
        write(name, "test", 200)
    valid, train = (write("atec", split, n) for split, n in (("valid", 200), ("train", 1200)))
    a, b, label = valid[0].split("\t")
    path = tmp_path / "pairs_zh" / "atec" / "train.tsv"
    path.write_text("text_a\ttext_b\tlabel\n" + "\n".join([*train, f"{b}\t {a}\t{label}"]) + "\n", encoding="utf-8")
    return tmp_path


def test_training_leaves_out_pairs_of_the_evaluation_and_learns_from_the_others(small_folder):
    pytest.importorskip("sklearn")
    notes = []
    sets = _questions.load_questions(small_folder, 10**9, notes)
    assert "of 1201 training pairs" in notes[0]
    assert not notes[0].startswith("0 ")
    scores = _questions.measure_questions(sets, ("squared", "cosent"), module._build_loss, [0], 3)
    for way in ("squared", "cosent"):
        assert scores[way]["atec"][0] > scores["untrained"]["atec"][0] + 8  # the thing counts more than the number
        assert scores[way]["history"].shape == (1, 3, 2)
    best = scores["squared"]["history"][0, :, 0].max()
    assert scores["squared"]["valid"][0] == pytest.approx(max(best, scores["untrained"]["valid"][0]))  # the best epoch


def test_missing_sets_are_named(tmp_path):
    notes = []
    assert _questions.load_questions(tmp_path, 10, notes) == {}
    assert "atec, bq, lcqmc, stsb_zh" in notes[0]
