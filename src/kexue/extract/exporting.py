"""An extractor as two ONNX graphs, compared with the model before they are kept.

``subjects.onnx`` encodes texts and gives the probabilities of subjects; ``objects.onnx`` takes what it has encoded and
the subjects, and gives the probabilities of objects. Decoding is `kexue.extract.decode_triples` on both.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kexue._files import replacing_folder
from kexue._optional import import_optional
from kexue._tensors import evaluating
from kexue.errors import KexueError, NotSupported
from kexue.extract.network import DGCNNNetwork, Encoded
from kexue.extract.probabilities import joint_probability
from kexue.extract.reader import CodedTexts

SUBJECTS, OBJECTS = "subjects.onnx", "objects.onnx"
_ENCODED = ("states", "shared", "entity", "predicate")
_CLOSE = 1e-4  # largest difference of a probability


class _Subjects(nn.Module):
    """characters, words, mask -> probabilities of subjects, and what the objects need."""

    def __init__(self, network: DGCNNNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, characters: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        encoded = self.network(CodedTexts(characters, words, mask))
        return joint_probability(encoded.subjects), *(getattr(encoded, name) for name in _ENCODED)


class _Objects(nn.Module):
    """Encoded texts, their mask, and subjects -> probabilities of objects."""

    def __init__(self, network: DGCNNNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, states: Tensor, shared: Tensor, entity: Tensor, predicate: Tensor, mask: Tensor,
        rows: Tensor, starts: Tensor, lasts: Tensor,
    ) -> Tensor:  # fmt: skip
        encoded = Encoded(states, mask, (), shared, entity, predicate)
        return joint_probability(self.network.score_objects(encoded, rows, starts, lasts))


def export_network(network: DGCNNNetwork, folder: str | os.PathLike[str]) -> None:
    """Write both graphs into a folder, once they give what the network gives.

    Args:
        network: without features of known triples.
        folder: new, or one that was written before.

    Raises:
        NotSupported: a network with `prior`. MissingDependencyError: onnx, onnxscript or onnxruntime is missing.
        KexueError: a graph gives other probabilities than the network. DataError: the folder holds other files.
    """
    if network.config.prior:
        raise NotSupported("a network with known triples (prior=True) cannot be exported; train one without.")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_optional(package)
    home = next(network.parameters()).device
    network.cpu()
    try:
        with evaluating(network), torch.no_grad(), replacing_folder(folder, foreign=_list_foreign) as temporary:
            first, second = _example(network, 3, 20, 4)
            _export(_Subjects(network), first, temporary / SUBJECTS, ("probabilities", *_ENCODED))
            _export(_Objects(network), second, temporary / OBJECTS, ("probabilities",))
            for sizes in ((3, 20, 4), (1, 7, 1), (5, 31, 9)):
                _compare(network, temporary, *sizes)
    finally:
        network.to(home)


def _list_foreign(folder: Path) -> list[str]:
    return sorted(set(os.listdir(folder)) - {SUBJECTS, OBJECTS})


def _example(network: DGCNNNetwork, b: int, t: int, n: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return inputs of both graphs: b texts of up to t characters, or `max_length`, and n subjects."""
    t = min(t, network.config.max_length)
    random = torch.Generator().manual_seed(0)
    mask = torch.arange(t) < torch.randint(1, t + 1, (b, 1), generator=random)
    mask[0] = True
    characters = torch.randint(1, network.config.num_characters, (b, t), generator=random) * mask
    words = torch.randint(network.config.num_words + 1, (b, t), generator=random) * mask
    first = {"characters": characters, "words": words, "mask": mask}
    encoded = dict(zip(_ENCODED, _Subjects(network)(**first)[1:], strict=True))
    ends = torch.randint(t, (n, 2), generator=random).sort(-1).values
    rows = torch.randint(b, (n,), generator=random)
    return first, {**encoded, "mask": mask, "rows": rows, "starts": ends[:, 0], "lasts": ends[:, 1]}


_AXES = {
    "rows": ("n",), "starts": ("n",), "lasts": ("n",), "predicate": ("b",),
    **dict.fromkeys(("characters", "words", "mask", "states", "shared", "entity"), ("b", "t")),
}  # fmt: skip


def _export(module: nn.Module, inputs: dict[str, Tensor], path: Path, outputs: tuple[str, ...]) -> None:
    sizes = {name: torch.export.Dim(name, min=1) for name in "btn"}
    shapes = {name: {at: sizes[axis] for at, axis in enumerate(_AXES[name])} for name in inputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own code
        torch.onnx.export(
            module,
            (),
            path,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _compare(network: DGCNNNetwork, folder: Path, b: int, t: int, n: int) -> None:
    """Raise a KexueError unless the graphs give the probabilities of the network."""
    runtime: Any = import_optional("onnxruntime")
    for module, name, inputs in zip(
        (_Subjects(network), _Objects(network)), (SUBJECTS, OBJECTS), _example(network, b, t, n), strict=True
    ):
        session = runtime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        wanted = module(**inputs)
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
        known = {one.name for one in session.get_inputs()}
        found = session.run(["probabilities"], {key: x.numpy() for key, x in inputs.items() if key in known})[0]
        far = float(np.abs(found - wanted.numpy()).max())
        if not far <= _CLOSE:
            raise KexueError(f"{name} differs from the network by {far:.2g} in a probability.")
