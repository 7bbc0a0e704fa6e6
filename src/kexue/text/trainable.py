"""The transformer of a model folder as a module to train, from token ids to states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kexue.errors import CheckpointError
from kexue.nn.transformer import Transformer
from kexue.text.bert import list_unsupported
from kexue.text.folder import load_weights, read_config, read_model_folder
from kexue.text.general import General
from kexue.text.roformer_sim.folders import read_shape
from kexue.text.roformer_sim.weights import from_published, plain_name

_PREFIX = "transformer."
_OURS = {"layer_norm_eps": 1e-12, "type_vocab_size": 2}  # of a `Transformer`


class TrainableEncoder(nn.Module):
    """Token ids to the states of the last layer: ``forward(token_ids (B, T), mask (B, T) bool)`` gives (B, T, d).

    Segment ids are 0 everywhere. The layers are the longest `ModuleList` inside, as `kexue.nn.LadderSideNetwork`
    counts them.

    Args:
        network: a `kexue.nn.Transformer`, or an encoder of the transformers library.
        hidden_size: width d of the states.
        num_layers: number of layers.
        max_positions: largest number of tokens; None = no limit.
    """

    def __init__(self, network: nn.Module, hidden_size: int, num_layers: int, max_positions: int | None) -> None:
        super().__init__()
        self.network = network
        self.config: Any = network.config  # with the width under `hidden_size`
        self.hidden_size, self.num_layers, self.max_positions = hidden_size, num_layers, max_positions

    @property
    def token_table(self) -> Tensor:
        """The vectors (V, d) of the tokens."""
        network: Any = self.network  # mypy would take its attributes for tensors
        table: nn.Embedding = network.tokens if isinstance(network, Transformer) else network.get_input_embeddings()
        return table.weight

    def forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Compute the states (B, T, d)."""
        if isinstance(self.network, Transformer):
            output = self.network(token_ids, mask=mask)
        else:
            output = self.network(input_ids=token_ids, attention_mask=mask.long())
        states: Tensor = output.last_hidden_state
        return states


def open_trainable(folder: Path) -> TrainableEncoder:
    """Return the transformer of a model folder, in float32 on the CPU, in evaluation mode.

    BERTs and RoFormers become a `kexue.nn.Transformer`, also those with weights in 8 bits; others are opened by the
    transformers library. Poolers and heads are left out.

    Args:
        folder: as `kexue.text.find_model` returns it.

    Raises:
        CheckpointError: a damaged file, missing weights, only a pickle.
    """
    transformer = read_model_folder(folder).transformer
    config = read_config(transformer)
    if list_unsupported(config) or any(config.get(name, value) != value for name, value in _OURS.items()):
        general = General.from_folder(transformer)
        shape = general.model.config
        return TrainableEncoder(general.model, general.hidden_size, shape.num_hidden_layers, general.max_positions)
    shape = read_shape(config, transformer)
    network = Transformer(shape)
    weights = load_weights(transformer)
    own = {name: x for name, x in weights.items() if plain_name(name).startswith(("embeddings.", "encoder."))}
    state = {_PREFIX + name: x for name, x in network.state_dict().items()}
    try:
        fitted = from_published(own, state, where=str(transformer))
    except CheckpointError as error:
        raise CheckpointError(error.message, remedy="Copy the whole folder again.") from error
    network.load_state_dict({name.removeprefix(_PREFIX): x for name, x in fitted.items()})
    return TrainableEncoder(network.eval(), shape.hidden_size, shape.num_layers, shape.max_length)
