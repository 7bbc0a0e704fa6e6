"""The rest of an epoch is the same wherever it is taken up, whoever loads it."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from toys import points, run_of

from kexue.train.data import epoch_batches, group, move


class Noisy(Dataset):
    """Items that carry their number and draws from all three global generators; counts what is loaded."""

    def __init__(self, n=23):
        self.n, self.loaded = n, 0

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        self.loaded += 1
        return torch.tensor([index, torch.rand(()), random.random(), np.random.rand()], dtype=torch.float64)


class Stream(IterableDataset):
    def __iter__(self):
        return (torch.rand(()) + i for i in range(23))


class Shuffled(list):
    """A batch sampler of one's own, that draws from a global generator."""

    def __iter__(self):
        return iter([[int(i)] for i in torch.randperm(9)])


LOADERS = {
    "shuffled": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "in order": lambda: DataLoader(Noisy(), 4, drop_last=True),
    "weighted": lambda: DataLoader(Noisy(), 4, sampler=WeightedRandomSampler([1.0] * 10, 17)),
    "own sampler": lambda: DataLoader(Noisy(), batch_sampler=Shuffled([0] * 9)),
    "whole": lambda: DataLoader(Noisy(), batch_size=None, shuffle=True),
    "stream": lambda: DataLoader(Stream(), 4),
    "list": lambda: [torch.full((2,), float(i)) for i in range(7)],
}


def take(loader, **options):
    return list(epoch_batches(loader, **{"seed": 5, "epoch": 2} | options))


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("start", [0, 1, 4])
def test_the_rest_of_an_epoch(name, start):
    whole = take(LOADERS[name]())
    torch.manual_seed(start)  # the state of the global generators must not matter
    before = torch.get_rng_state(), random.getstate()
    rest = take(LOADERS[name](), start=start)
    assert len(rest) == len(whole) - start > 0
    assert all(map(torch.equal, rest, whole[start:]))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


@pytest.mark.parametrize("name", ["shuffled", "weighted", "own sampler", "whole"])
def test_epochs_and_seeds_differ(name):
    a, b, c = (take(LOADERS[name](), **key) for key in ({}, {"epoch": 3}, {"seed": 6}))
    assert not torch.equal(torch.cat(a), torch.cat(b))
    assert not torch.equal(torch.cat(a), torch.cat(c))


def test_skipped_batches_are_not_loaded():
    loader = DataLoader(Noisy(), 4, shuffle=True)
    assert len(take(loader, start=4)) == 2
    assert loader.dataset.loaded == 23 - 16


def test_workers_change_nothing():
    """Noise in a data set belongs to the batch, not to the worker that happens to load it."""
    alone = take(LOADERS["shuffled"]())
    shared = take(DataLoader(Noisy(), 4, shuffle=True, num_workers=2), start=2)
    assert all(map(torch.equal, shared, alone[2:]))


@pytest.mark.parametrize("name", ["shuffled", "in order", "stream", "list"])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_epoch(name, world):
    whole = take(LOADERS[name]())
    shares = [take(LOADERS[name](), rank=rank, world=world) for rank in range(world)]
    assert {len(share) for share in shares} == {len(whole) // world}
    dealt = [share[turn] for turn in range(len(whole) // world) for share in shares]
    assert all(map(torch.equal, dealt, whole))


def test_a_loader_that_shares_out_itself_is_refused():
    data = Noisy()
    loader = DataLoader(data, 4, sampler=DistributedSampler(data, 2, 0))
    with pytest.raises(ValueError, match="DistributedSampler"):
        take(loader)


def test_set_epoch_is_called():
    class Counted(list):
        def set_epoch(self, epoch):
            self[:] = [epoch] * 2

    assert take(Counted([0]), epoch=4) == [4, 4]


@pytest.mark.parametrize("n", range(8))
def test_groups(n):
    groups = list(group(iter(range(n)), 3))
    assert [x for items, _ in groups for x in items] == list(range(n))
    assert [last for _, last in groups] == [False] * (len(groups) - 1) + [True] * (n > 0)
    assert all(len(items) == 3 for items, last in groups if not last)


def test_move_goes_into_every_nest():
    from typing import NamedTuple

    class Pair(NamedTuple):
        a: object
        b: object

    batch = {"x": [torch.ones(1), ("text", torch.ones(2))], "y": Pair(torch.ones(3), 5)}
    moved = move(batch, torch.device("meta"))
    assert moved["x"][0].is_meta
    assert moved["x"][1][1].is_meta
    assert moved["y"].a.is_meta
    assert (moved["x"][1][0], moved["y"].b, type(moved["x"][1])) == ("text", 5, tuple)


class Epochs(IterableDataset):
    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter(torch.zeros(4, 3))


def test_every_part_of_a_loader_hears_of_the_epoch(tmp_path):
    dataset = Epochs()
    run_of(tmp_path / "a", steps=None, epochs=3).fit(DataLoader(dataset, 2))
    assert dataset.epochs == [0, 1, 2]

    class Sampler(RandomSampler):
        heard = ()

        def set_epoch(self, epoch):
            self.heard = (*self.heard, epoch)

    data = TensorDataset(*points(8))
    sampler = Sampler(data)
    batches = torch.utils.data.BatchSampler(sampler, 4, drop_last=False)
    list(epoch_batches(DataLoader(data, batch_sampler=batches), seed=0, epoch=5))
    assert sampler.heard == (5,)


def test_a_sampler_that_shares_out_is_refused_and_one_for_one_process_is_taken():
    data = TensorDataset(torch.arange(8.0))
    with pytest.raises(ValueError, match="DistributedSampler shares out the data among 2 processes"):
        list(epoch_batches(DataLoader(data, 2, sampler=DistributedSampler(data, 2, 0)), seed=0, epoch=0))
    one = DataLoader(data, 2, sampler=DistributedSampler(data, 1, 0, seed=3))
    orders = [[x.tolist() for (x,) in epoch_batches(one, seed=0, epoch=epoch)] for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
