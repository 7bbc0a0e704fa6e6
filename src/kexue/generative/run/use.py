"""What one does with a trained model: sample, walk between two items, encode, decode, score."""

from __future__ import annotations

import inspect
import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from kexue._counts import check_count
from kexue._files import check_output
from kexue._progress import Progress
from kexue.corpus.vectors import read_array
from kexue.errors import DataError, NotSupported
from kexue.generative.flow.dequantization import bits_per_dim
from kexue.generative.interpolation import interpolate
from kexue.generative.model import GenerativeModel
from kexue.generative.noise import sample_generators
from kexue.generative.recipes import to_batches
from kexue.generative.run.arrays import write_array
from kexue.generative.run.folder import Run
from kexue.generative.run.images import Images

_BATCH = 256
_LATENTS = "Give latents of this model; kexue model encode writes those of items, where a model has it."
_MOST_SHOWN = 10_000  # items of a sheet or a walk
_NOT_OPTIONS = {"condition", "callback"}  # parameters of `draw` that are not settings of a sampler


@dataclass(frozen=True)
class Sampled:
    """Samples in a file.

    Attributes:
        out: the file.
        n: number of samples.
        seconds: time to draw them, without that to write them.
        network_calls: how often each sample went through the network.
    """

    out: str
    n: int
    seconds: float
    network_calls: int


@dataclass(frozen=True)
class Score:
    """How likely a model finds items.

    Attributes:
        n: number of items.
        mean: of the values of the items.
        stderr: standard error of this mean, with the randomness of estimated values in it; None for one item.
        unit: ``"nats"`` per item, of an energy ``""``: it has a temperature of its own.
        kind: ``"exact"``: log p; ``"bound"``: at most log p; ``"energy"``: low for items like the data.
        bits_per_dim: bits that a pixel of an image costs by this; None for sentences and energies.
    """

    n: int
    mean: float
    stderr: float | None
    unit: str
    kind: str
    bits_per_dim: float | None


def sample_run(
    run: Run,
    n: int,
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Sampled:
    """Draw samples into a file; sample i of a seed is the same one whatever n is.

    Args:
        run: the model.
        n: number of samples, >= 1.
        out: file; of images .png (a sheet) or .npy, of texts .txt.
        seed: >= 0.
        progress: called as ``progress(done, total)`` with numbers of samples.
        options: of the model, such as `temperature`, or `steps`, `solver`, `eta` and `scale` of a diffusion; and
            `condition`, the name of a class, or the vector (d,) of a text. None leaves one out.

    Raises:
        NotSupported: an option that the model does not have.
        ValueError: an unknown class, or more samples than a picture can show.
    """
    if (named := options.pop("condition", None)) is not None:
        options["condition"] = _find_condition(run, named)
    given = {name: value for name, value in options.items() if value is not None}
    _check_options(run.model, given)
    if "temperature" in given:
        given |= run.recipe.tempered
    n = check_count(n, "n", 1)
    if check_output(out, *run.medium.files) == ".png":
        _check_shown(n)
    started = time.monotonic()
    with _counting_calls(run.model) as count:
        items = _sample(run.model, n, seed, given, progress)
    seconds = time.monotonic() - started
    run.medium.write(items, Path(out))
    return Sampled(os.fspath(out), n, seconds, count() // math.ceil(n / _BATCH))


def walk_run(
    run: Run,
    out: str | os.PathLike[str],
    *,
    start: str | None = None,
    end: str | None = None,
    n: int = 8,
    seed: int = 0,
) -> int:
    """Write the items on the way between the latents of two items; return their number.

    Args:
        run: a model with `encode` and `decode`.
        out: file; of images .png (a row) or .gif (to and fro), of texts .txt.
        start, end: an image file each, or a sentence; None: a sample of the model. A model that only decodes, as a GAN,
            takes none.
        n: items in all, both ends included, from 2 to 10,000.
        seed: of the samples.

    Raises:
        NotSupported: a model without latents, or with latents that are codes, between which nothing lies.
    """
    check_output(out, *run.medium.walks)
    _check_shown(check_count(n, "n", 2))
    able = run.model.operations
    if start is end is None and "latents" in able and "encode" not in able:
        z1, z2 = run.model.latents(2, generator=seed)
    else:
        ends = run.model.sample(2, generator=seed).cpu()
        pair = [ends[i] if given is None else run.medium.read_one(given) for i, given in enumerate((start, end))]
        z1, z2 = encode(run.model, torch.stack(pair))
    if not z1.is_floating_point():
        raise NotSupported(f"the latents of {type(run.model).__name__} are codes, between which there is nothing.")
    between = getattr(run.model, "interpolate", partial(interpolate, method="slerp"))
    run.medium.write_walk(_decode(run.model, between(z1, z2, n)), Path(out))
    return n


def encode_run(run: Run, source: str | os.PathLike[str], out: str | os.PathLike[str]) -> tuple[int, float]:
    """Write the latents of items to a file .npy; return the number of items and the residual.

    The residual is the root of the mean square of decode(latents) - items, in units of the items; of texts it is the
    share of characters and ends that decode(latents) has not in their places.
    """
    check_output(out, ".npy")
    items = run.medium.read(source)
    z = encode(run.model, items)
    again = _decode(run.model, z)
    write_array(z, Path(out))
    return len(items), run.medium.measure_difference(items, again)


def decode_run(run: Run, source: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """Write the items of the latents in a file .npy; return their number.

    Raises:
        DataError: the file is not an array of finite numbers, or of another shape than the model's latents.
    """
    ending = check_output(out, *run.medium.files)
    z = _read_latents(source)
    if ending == ".png":
        _check_shown(len(z))
    try:
        items = _decode(run.model, z)
    except NotSupported:  # a RuntimeError
        raise
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise DataError(f"{str(error).splitlines()[0]}.", path=source, remedy=_LATENTS) from error
    run.medium.write(items, Path(out))
    return len(items)


def _read_latents(source: str | os.PathLike[str]) -> Tensor:
    """Return the latents of a file .npy: floats in the precision of a run, or codes."""
    array = read_array(source)
    if not array.ndim or not len(array) or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise DataError(
            f"expected latents, finite numbers of shape (n, ...), got {array.dtype} of shape {array.shape}.",
            path=source,
            remedy=_LATENTS,
        )
    return torch.from_numpy(np.array(array, np.float32 if array.dtype.kind == "f" else np.int64))


def score_run(run: Run, source: str | os.PathLike[str], *, progress: Progress | None = None) -> Score:
    """Return how likely the model finds items: exact log p, else a bound, else the energy.

    Args:
        run: the model.
        source: the items, as of `Medium.read`.
        progress: called as ``progress(done, total)`` with numbers of items.

    Raises:
        NotSupported: the model has none of them, as a VQ-VAE.
    """
    items = run.medium.read(source)
    kind, measure = find_measure(run)
    values = apply(measure, items, run.model, progress=progress).double()
    stderr = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
    unit = "" if kind == "energy" else "nats"
    return Score(len(values), float(values.mean()), stderr, unit, kind, find_bits(values, items, kind))


def _sample(model: GenerativeModel, n: int, seed: int, options: dict[str, Any], progress: Progress | None) -> Tensor:
    """Return n samples of a model; the generators of a batch are made with it, not those of all samples at once."""
    items = torch.empty(0)
    for start in range(0, n, _BATCH):
        end = min(start + _BATCH, n)
        noise = sample_generators(seed, end - start, start=start, device=model.device)
        batch = model.sample(end - start, generator=noise, **options).cpu()
        if not start:
            items = batch.new_empty(n, *batch.shape[1:])
        items[start:end] = batch
        if progress is not None:
            progress(end, n)
    return items


def _check_shown(n: int) -> None:
    """Raise a ValueError for more items than can be looked at."""
    if n > _MOST_SHOWN:
        raise ValueError(f"n must be at most {_MOST_SHOWN:,} for a picture or a walk, got {n:,}; samples go to a .npy")


def find_bits(values: Tensor, items: Tensor, kind: str) -> float | None:
    """Return the bits per dimension of images, from log probabilities of their levels; None for other things."""
    if kind == "energy" or not items.is_floating_point():
        return None
    # the models of images state the probability of levels, not the density of some interval
    return bits_per_dim(values, items.shape[1:], levels=1)


def find_measure(run: Run) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Return the strictest statement a model makes about the likelihood of items: its kind, and the function of it.

    The function is for one pass over items, batch by batch: each call draws other noise.
    """
    able, model = run.model.operations, run.model
    if "log_prob" in able:
        return "exact", model.log_prob
    if "log_prob_bound" in able:
        seeds = itertools.count()
        return "bound", lambda x: model.log_prob_bound(x, generator=next(seeds), **run.recipe.bound)
    if "energy" in able:
        return "energy", model.energy
    raise NotSupported(f"{type(model).__name__} has no likelihood; it supports: {', '.join(able)}.")


def encode(model: GenerativeModel, items: Tensor) -> Tensor:
    """Return the latents of items, of a distribution of latents its mean."""

    def middle(batch: Tensor) -> Tensor:
        z = model.encode(batch)
        mean: Tensor = z if isinstance(z, Tensor) else z.mean
        return mean

    return apply(middle, items, model)


def _decode(model: GenerativeModel, z: Tensor) -> Tensor:
    return apply(model.decode, z, model)


@torch.no_grad()
def apply(
    function: Callable[[Tensor], Tensor], items: Tensor, model: GenerativeModel, *, progress: Progress | None = None
) -> Tensor:
    """Return the function of items, computed batch by batch on the model's device."""
    parts: list[Tensor] = []
    for batch in to_batches(items, model.device, _BATCH):
        parts.append(function(batch).cpu())
        if progress is not None:
            progress(sum(map(len, parts)), len(items))
    return torch.cat(parts)


def _find_condition(run: Run, name: str | Tensor) -> int | Tensor:
    """Return the class of a name, of a model that has learnt classes; of one that has learnt captions, the vector."""
    if isinstance(name, Tensor):
        return name
    if not run.recipe.classes or not isinstance(run.medium, Images):
        raise NotSupported(f"{run.name} is a model without classes: it does not take a condition.")
    return run.medium.find_class(name)


def _check_options(model: GenerativeModel, given: dict[str, Any]) -> None:
    """Raise NotSupported for options of sampling that the model does not have."""
    parameters = inspect.signature(model.draw).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return  # the model itself refuses what it does not know
    known = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.name not in _NOT_OPTIONS]
    if other := [name for name in given if name not in {*known, *_NOT_OPTIONS}]:
        raise NotSupported(
            f"{type(model).__name__} does not sample with {', '.join(other)}.",
            remedy=f"It takes: {', '.join(known) or 'no option'}.",
        )


@contextmanager
def _counting_calls(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Yield a function that returns how often the part of the model that was called most has been called."""
    own = {id(part) for part in model.modules() if next(part.parameters(recurse=False), None) is not None}
    calls: Counter[int] = Counter()

    def count(module: nn.Module, _inputs: Any, _output: Any) -> None:
        if id(module) in own:
            calls[id(module)] += 1

    handle = register_module_forward_hook(count)
    try:
        yield lambda: max(calls.values(), default=0)
    finally:
        handle.remove()
