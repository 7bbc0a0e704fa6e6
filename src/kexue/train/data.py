"""The batches of an epoch, from any batch on; the same for one seed, with any number of processes and workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kexue.train._random import fork_random, generator_of
from kexue.train._signals import IgnoreFirstSignal


def epoch_batches(
    loader: Iterable[Any], *, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Any]:
    """Batches of an epoch for one process, from number `start` on.

    Process r of w takes batches r, r + w, r + 2w, ...; batches at the end that are not enough for all processes are
    left out.
    While a batch is loaded the global generators start from (seed, epoch, number of the batch), so that noise in a data
    set or in `collate_fn` does not depend on the workers, on the model, or on where the run was resumed.

    Args:
        loader: a `DataLoader`, of which batches before `start` are not loaded; or any iterable that gives the same
            batches in each pass, of which batches before `start` are read and dropped. `set_epoch(epoch)` is called on
            the loader, its data set, batch sampler and sampler where they have it.
        seed, epoch: numbers that determine the order, if a sampler takes a generator.
        start: number of batches that this process has taken already.
        rank, world: number of this process, and number of processes.

    Raises:
        ValueError: the loader distributes the data among processes itself.
    """
    samplers: list[Any] = [getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)]
    samplers.append(getattr(samplers[0], "sampler", None))
    for part in (loader, getattr(loader, "dataset", None), *samplers):
        if getattr(part, "num_replicas", 1) > 1:
            raise ValueError(
                f"the loader's {type(part).__name__} shares out the data among {part.num_replicas} processes; use a "
                "plain one: Trainer distributes the batches"
            )
        getattr(part, "set_epoch", id)(epoch)
    for part in samplers:
        if isinstance(getattr(part, "generator", 0), (torch.Generator, type(None))):
            part.generator = generator_of(seed, epoch)
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        indices = loader.batch_sampler or loader.sampler
        if any(part and type(part).__module__ != "torch.utils.data.sampler" for part in samplers):
            indices = _read(indices, seed, epoch)  # a sampler of the user may draw from a global generator
        yield from _load(loader, _share(enumerate(indices), start, rank, world), seed, epoch)
    else:
        yield from _share(_read(loader, seed, epoch), start, rank, world)


def count_batches(loader: Iterable[Any], world: int) -> int | None:
    """Number of batches of an epoch for one process; None when the loader does not know."""
    try:
        return len(loader) // world  # type: ignore[arg-type]
    except TypeError:
        return None


def group(batches: Iterator[Any], size: int) -> Iterator[tuple[list[Any], bool]]:
    """Yield lists of `size` batches, each with whether it is the last of the epoch; the last may be shorter."""
    batch = next(batches, _END)
    gathered = []
    while batch is not _END:
        gathered.append(batch)
        batch = next(batches, _END)
        if len(gathered) == size or batch is _END:
            yield gathered, batch is _END
            gathered = []


_END = object()


def move(batch: Any, device: torch.device) -> Any:
    """A batch on `device`: tensors, objects with `.to`, and dicts, lists, tuples and dataclasses of them."""
    if hasattr(batch, "to"):
        return batch.to(device, non_blocking=True) if isinstance(batch, torch.Tensor) else batch.to(device)
    if isinstance(batch, Mapping):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(move(value, device) for value in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: move(getattr(batch, f.name), device) for f in fields(batch) if f.init})
    return batch


def _share(items: Iterable[Any], start: int, rank: int, world: int) -> Iterator[Any]:
    """Every `world`-th item for this process."""
    rounds = zip(*[iter(items)] * world, strict=False)  # without a last round that is not full
    return (everyone[rank] for everyone in islice(rounds, start, None))


def _read(loader: Iterable[Any], seed: int, epoch: int) -> Iterator[Any]:
    """The items of an iterable, each made with the global generators started from its number."""
    fixed = type(loader) in (list, tuple)

    def seeded_block(number: int) -> AbstractContextManager[None]:
        return nullcontext() if fixed else fork_random(seed, epoch, number)

    with seeded_block(0), _workers_ignore_first_signal(loader):
        batches = iter(loader)
    number = 0
    while True:
        with seeded_block(number):
            batch = next(batches, _END)
        if batch is _END:
            return
        yield batch
        number += 1


@contextmanager
def _workers_ignore_first_signal(loader: Iterable[Any]) -> Iterator[None]:
    """Workers started within the `with` leave the first ending signal to this process."""
    if not isinstance(loader, DataLoader):
        yield
        return
    given = loader.worker_init_fn
    loader.worker_init_fn = IgnoreFirstSignal(given)
    try:
        yield
    finally:
        loader.worker_init_fn = given


class _Batches(Dataset[Any]):
    """A data set of whole batches: (number, indices from the sampler) -> the batch that the loader would give."""

    def __init__(self, loader: DataLoader[Any], seed: int, epoch: int) -> None:
        self.dataset, self.collate = loader.dataset, loader.collate_fn
        self.whole = loader.batch_sampler is None
        self.key = seed, epoch

    def __getitem__(self, numbered: tuple[int, Any]) -> Any:
        number, indices = numbered
        with fork_random(*self.key, number):
            if self.whole:
                return self.collate(self.dataset[indices])
            many: Callable[[list[int]], list[Any]] | None = getattr(self.dataset, "__getitems__", None)
            return self.collate(many(indices) if many else [self.dataset[index] for index in indices])


def _load(loader: DataLoader[Any], indices: Iterator[Any], seed: int, epoch: int) -> Iterator[Any]:
    """The batches for numbered indices, by the workers of the loader if it has any."""
    batches = _Batches(loader, seed, epoch)
    if not loader.num_workers and not loader.pin_memory:
        return map(batches.__getitem__, indices)
    return iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=indices,
            collate_fn=_as_is,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=IgnoreFirstSignal(loader.worker_init_fn),
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            generator=generator_of(seed, epoch),
        )
    )


def _as_is(batch: Any) -> Any:
    return batch
