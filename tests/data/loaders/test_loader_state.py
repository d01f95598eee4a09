"""The public Loader: states in the middle of an epoch, and ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.loaders import epoch_of

from fastselfie import Loader
from fastselfie.data import draws
from fastselfie.data.loaders.sampling import one_epoch
from fastselfie.system.distributed import Ranks

COUNT = 22


@pytest.mark.parametrize("done", [0, 1, 3, 5, 6])
def test_a_state_goes_on_in_the_middle_of_an_epoch(numbered, done):
    """At the end of one too; with another batch size and number of workers the images follow."""
    loader = Loader(numbered, 5, size=32, seed=7)
    straight = [batch for _ in range(3) for batch in epoch_of(loader)]
    loader = Loader(numbered, 5, size=32, seed=7)
    seen, state = 0, loader.state_dict()
    while seen < done:
        for _ in loader:
            seen += 1
            state = loader.state_dict()
            if seen == done:
                break
    resumed = Loader(numbered, 5, size=32, seed=7, workers=1)
    resumed.load_state_dict(state)
    rest = [batch for _ in range(resumed.epoch, 3) for batch in epoch_of(resumed)]
    assert len(rest) == len(straight) - done
    for (images, labels), (others, theirs) in zip(rest, straight[done:], strict=True):
        assert labels == theirs
        assert torch.equal(images, others)
    other = Loader(numbered, 3, size=32, seed=7)
    other.load_state_dict(state)
    rest = [
        label for _ in range(other.epoch, 3) for _, labels in epoch_of(other) for label in labels
    ]
    assert rest == [label for _, labels in straight[done:] for label in labels]


def test_set_epoch_keeps_the_place_of_its_own_epoch_alone(numbered):
    loader = Loader(numbered, 5, size=32)
    next(iter(loader))
    state = loader.state_dict()
    for epoch, count in ((0, 4), (3, 5)):
        resumed = Loader(numbered, 5, size=32)
        resumed.load_state_dict(state)
        resumed.set_epoch(epoch)
        assert len(epoch_of(resumed)) == count
        assert resumed.epoch == epoch + 1


def test_a_state_of_another_loader_is_refused(numbered):
    state = Loader(numbered, 5, size=32).state_dict()
    for changes in ({"seed": 1}, {"images": 3}, {"version": 0}, {"shuffle": False}):
        with pytest.raises(ValueError, match=f"state has {next(iter(changes))} = "):
            Loader(numbered, 5, size=32).load_state_dict(state | changes)


def test_the_end_of_an_epoch_is_the_start_of_the_next(numbered):
    """Also where the rest is too small for another batch size."""
    state = Loader(numbered, 4, size=32).state_dict() | {"epoch": 2, "samples": 16}
    loader = Loader(numbered, 8, size=32, drop_last=True)
    loader.load_state_dict(state)
    assert loader.epoch == 3
    assert loader.state_dict()["samples"] == 0
    loader.set_epoch(7)
    assert loader.state_dict()["epoch"] == 7


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_an_epoch(numbered, world):
    """As many batches and images on each; together every image, a few twice at the end."""
    seen = [
        [labels for _, labels in epoch_of(Loader(numbered, 4, size=16, rank=r, world_size=world))]
        for r in range(world)
    ]
    assert len({tuple(map(len, batches)) for batches in seen}) == 1
    labels = [label for batches in seen for batch in batches for label in batch]
    assert set(labels) == set(range(COUNT))
    assert len(labels) - COUNT < world
    whole = [label for batch in zip(*seen, strict=True) for part in batch for label in part]
    assert whole[:COUNT] == draws.epoch_order(0, 0, COUNT).tolist()


def test_more_ranks_than_images_in_the_last_batch():
    parts = [list(one_epoch(np.arange(3), 0, 0, 2, False, Ranks(r, 5))) for r in range(5)]
    assert [[p.samples.tolist() for p in part] for part in parts] == [
        [[0]],
        [[1]],
        [[2]],
        [[0]],
        [[1]],
    ]
