"""Model folders of sentence-transformers and Hugging Face: stages from JSON, weights from safetensors, no pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kexue._text import parse_json
from kexue.errors import CheckpointError, DataError
from kexue.text.hashes import file_sha256, json_sha256
from kexue.text.tokenizer_files import tokenizer_identity

if TYPE_CHECKING:
    import torch

    from kexue.text.bert import Bert
    from kexue.text.general import General

_CONVERT = (
    "Only safetensors weights are read. Convert once, where you trust the file: "
    "AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER)."
)
_STAGES = ("Transformer", "Pooling", "Dense", "Normalize")
_POOLING_KEYS = {  # key of 1_Pooling/config.json -> name in `kexue.text.pooling`, None = not supported
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "last-avg",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": None,
    "pooling_mode_weightedmean_tokens": None,
    "pooling_mode_lasttoken": None,
}
_POOLING_NAMES = {"cls": "cls", "mean": "last-avg", "max": "max"}
_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
}


@dataclass(frozen=True)
class DenseStage:
    """Dense stage y = f(x A^T + b), with f the identity or tanh; its weights are in `folder`."""

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class ModelFolder:
    """Stages and settings of a model folder, read from its JSON files.

    Attributes:
        transformer: folder of the transformer and its tokenizer.
        pooling: name of the pooling, one of `kexue.text.pooling.POOLINGS`; None where it is not supported.
        pooling_raw: name of the pooling as the folder states it.
        stages: stages after the pooling, in order: dense stages and ``"normalize"``.
        max_length: limit of tokens; None where the folder states none.
        lower: True where text is turned into lower case before the tokenizer.
        prompts: name -> text put before an input.
        default_prompt_name: prompt that is used when none is named; None = none.
    """

    transformer: Path
    pooling: str | None
    pooling_raw: str
    stages: tuple[DenseStage | str, ...]
    max_length: int | None
    lower: bool
    prompts: dict[str, str]
    default_prompt_name: str | None


def read_model_folder(folder: Path) -> ModelFolder:
    """Read the JSON files of a model folder; a plain Hugging Face folder has mean pooling and no stage after it.

    Raises:
        CheckpointError: a damaged file, or an unknown stage.
    """
    sentence = _read(folder / "config_sentence_transformers.json", default={})
    prompts = sentence.get("prompts") or {}
    if not (folder / "modules.json").is_file():
        return ModelFolder(folder, "last-avg", "mean", (), None, False, prompts, sentence.get("default_prompt_name"))
    kinds: list[str] = []
    paths: list[Path] = []
    for module in _read(folder / "modules.json", kind=list):
        if not isinstance(module, dict) or not {"type", "path"} <= set(module):
            raise CheckpointError(
                f"{folder / 'modules.json'}: expected stages with type and path, got {module!r:.40}.",
                remedy="Fetch the folder again.",
            )
        library, _, kind = str(module["type"]).rpartition(".")
        if library.partition(".")[0] != "sentence_transformers" or kind not in _STAGES:
            raise CheckpointError(
                f"{folder / 'modules.json'}: stage {module['type']!r} is not known, expected {', '.join(_STAGES)}.",
                remedy="Use a model whose stages are among these.",
            )
        kinds.append(kind)
        paths.append(folder / module["path"])
    if kinds[:1] != ["Transformer"] or kinds[1:2] not in ([], ["Pooling"]) or set(kinds[2:]) - {"Dense", "Normalize"}:
        raise CheckpointError(
            f"{folder / 'modules.json'}: expected Transformer, Pooling, Dense or Normalize in order, got {kinds}.",
            remedy="Use a model of this form.",
        )
    transformer = paths[0]
    settings = _read(transformer / "sentence_bert_config.json", default={})
    limit = settings.get("max_seq_length")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise CheckpointError(
            f"{transformer / 'sentence_bert_config.json'}: max_seq_length must be a whole number >= 1, got {limit!r}.",
            remedy="Fetch the folder again.",
        )
    pooling, raw = _read_pooling(paths[1]) if len(kinds) > 1 else ("last-avg", "mean")
    stages = tuple(
        _read_dense(path) if kind == "Dense" else "normalize" for kind, path in zip(kinds[2:], paths[2:], strict=True)
    )
    return ModelFolder(
        transformer,
        pooling,
        raw,
        stages,
        limit,
        bool(settings.get("do_lower_case")),
        prompts,
        sentence.get("default_prompt_name"),
    )


def _read(path: Path, default: Any = None, kind: type = dict) -> Any:
    if default is not None and not path.is_file():
        return default
    try:
        return parse_json(path.read_bytes(), path, kind=kind)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.", remedy="Copy the whole model folder.") from None
    except (DataError, OSError) as error:
        reason = error.message if isinstance(error, DataError) else error
        raise CheckpointError(f"{path} cannot be read as JSON: {reason}", remedy="Fetch the folder again.") from error


def _read_pooling(folder: Path) -> tuple[str | None, str]:
    config = _read(folder / "config.json")
    modes = config.get("pooling_mode")
    if modes is None:
        named = {key: value for key, value in config.items() if key.startswith("pooling_mode_") and value is True}
        names = [_POOLING_KEYS.get(key) for key in named] or ["last-avg"]
        raw = ", ".join(named) or "mean"
    else:
        modes = [modes] if isinstance(modes, str) else list(modes)
        names = [_POOLING_NAMES.get(mode) for mode in modes]
        raw = ", ".join(modes)
    if config.get("include_prompt") is False:
        return None, f"{raw} without the prompt's tokens"
    return (names[0] if len(names) == 1 else None), raw


def _read_dense(folder: Path) -> DenseStage:
    path = folder / "config.json"
    config = _read(path)
    activation = _ACTIVATIONS.get(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if activation is None:
        raise CheckpointError(
            f"{path}: activation {config['activation_function']!r} is not known, expected {', '.join(_ACTIVATIONS)}."
        )
    name = config.get("module_input_name", "sentence_embedding")
    output = config.get("module_output_name") or name
    if config.get("use_residual") or (name, output) != ("sentence_embedding", "sentence_embedding"):
        raise CheckpointError(f"{path}: only a plain dense stage from sentence vector to sentence vector is read.")
    width, out = config.get("in_features"), config.get("out_features")
    if not all(type(size) is int and size > 0 for size in (width, out)):
        raise CheckpointError(
            f"{path}: in_features and out_features must be whole numbers >= 1, got {width!r} and {out!r}.",
            remedy="Fetch the folder again.",
        )
    return DenseStage(folder, width, out, bool(config.get("bias", True)), activation)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a transformer or dense folder: one file, or the shards of its index.

    Raises:
        CheckpointError: the folder has no weights, or only a pickle.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        return sorted({folder / name for name in _read(index)["weight_map"].values()})
    if (folder / "pytorch_model.bin").is_file():
        raise CheckpointError(f"{folder} has its weights as a pickle (pytorch_model.bin).", remedy=_CONVERT)
    raise CheckpointError(f"{folder} has no model.safetensors.", remedy="Copy the whole model folder.")


_IGNORED_KEYS = (  # of config.json: they change no vector
    "_name_or_path", "architectures", "attention_probs_dropout_prob", "classifier_dropout", "dtype", "torch_dtype",
    "gradient_checkpointing", "hidden_dropout_prob", "id2label", "initializer_range", "label2id", "use_cache",
    "transformers_version", "tie_word_embeddings", "output_attentions", "output_hidden_states",
)  # fmt: skip


def compute_fingerprint(stack: ModelFolder, pooling: str) -> str:
    """Return the sha256 over everything in a folder that changes a vector, in hexadecimal.

    It covers the bytes of the weights; configuration, tokenizer and limits by the meaning of their JSON, not its
    layout; the pooling, the stages after it, and the prompts.
    """
    transformer = stack.transformer
    parts: list[object] = [
        [file_sha256(file) for file in weight_files(transformer)],
        json_sha256(transformer / "config.json", _IGNORED_KEYS),
        tokenizer_identity(transformer),
        [stack.max_length, stack.lower, pooling, stack.prompts, stack.default_prompt_name],
    ]
    stages = stack.stages
    if stages[-1:] == ("normalize",):  # the caller decides on a last Normalize stage
        stages = stages[:-1]
    for stage in stages:
        if isinstance(stage, DenseStage):
            parts.append([stage.activation, stage.bias, [file_sha256(file) for file in weight_files(stage.folder)]])
        else:
            parts.append(stage)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_transformer(folder: Path) -> Bert | General:
    """Load the transformer of a folder in float32: BERT and RoFormer by `kexue.text.bert`, others through transformers.

    Raises:
        CheckpointError: a damaged file, an unknown architecture, or missing weights (named).
    """
    from kexue.text.bert import from_checkpoint, list_unsupported
    from kexue.text.general import General

    config = read_config(folder)
    weight_files(folder)  # refuses a pickle
    if list_unsupported(config):
        return General.from_folder(folder)
    try:
        return from_checkpoint(config, load_weights(folder))
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{folder}: {error} is missing from its weights or its config.json.") from error
    except Exception as error:  # damaged files raise many types of errors
        raise CheckpointError(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a transformer; CheckpointError where it is missing or damaged."""
    config: dict[str, Any] = _read(folder / "config.json")
    return config


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a transformer or dense folder by their names: those in eight bits in float32, others in the
    dtype of the file.

    Raises:
        CheckpointError: no safetensors files, or damaged ones; integers without scales.
    """
    from safetensors.torch import load_file

    from kexue.text.row_weights import restore_rows

    try:
        return restore_rows({name: x for file in weight_files(folder) for name, x in load_file(file).items()})
    except CheckpointError:
        raise
    except Exception as error:  # damaged files raise many types of errors
        raise CheckpointError(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error


def load_dense(stage: DenseStage) -> torch.nn.Sequential:
    """Load one dense stage in float32.

    Raises:
        CheckpointError: its weights do not fit its config.json.
    """
    import torch

    linear = torch.nn.Linear(stage.in_features, stage.out_features, bias=stage.bias)
    weights = {name.removeprefix("linear."): value.float() for name, value in load_weights(stage.folder).items()}
    try:
        linear.load_state_dict(weights)
    except Exception as error:
        raise CheckpointError(f"{stage.folder} does not fit its config.json: {error}") from error
    activation = torch.nn.Tanh() if stage.activation == "tanh" else torch.nn.Identity()
    return torch.nn.Sequential(linear, activation).eval()
