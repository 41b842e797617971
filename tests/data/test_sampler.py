from itertools import product

import pytest

from perceiver.data.sampler import KeyedSampler, mix

WORLDS = (1, 2, 3)
SIZES = (1, 2, 7, 101)


def epoch_keys(num_samples=101, *, epoch=0, world_size=1, seed=0, shuffle=True) -> list[list[tuple[int, int]]]:
    """The keys of one epoch, by rank."""
    ranks = []
    for rank in range(world_size):
        sampler = KeyedSampler(num_samples=num_samples, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(sampler) == len(ranks[-1])
    return ranks


@pytest.mark.parametrize("num_samples", SIZES)
@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("epoch", [0, 5])
def test_shuffled_ranks_take_everything_in_equal_parts_and_repeat_as_little_as_possible(num_samples, world_size, epoch):
    ranks = epoch_keys(num_samples, epoch=epoch, world_size=world_size)
    keys = [key for rank in ranks for key in rank]
    assert len({len(rank) for rank in ranks}) == 1
    assert set(keys) == {(epoch, index) for index in range(num_samples)}
    assert len(keys) - num_samples == -num_samples % world_size


@pytest.mark.parametrize("num_samples", SIZES)
@pytest.mark.parametrize("world_size", WORLDS)
def test_unshuffled_ranks_take_every_sample_exactly_once_in_order(num_samples, world_size):
    ranks = epoch_keys(num_samples, world_size=world_size, shuffle=False)
    assert sorted(key for rank in ranks for key in rank) == [(0, index) for index in range(num_samples)]
    assert all(rank == sorted(rank) for rank in ranks)


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {
        (seed, epoch): tuple(index for _, index in epoch_keys(epoch=epoch, seed=seed)[0])
        for seed, epoch in product((0, 1, 2), repeat=2)
    }
    assert len(set(orders.values())) == len(orders)
    assert epoch_keys(epoch=2, seed=1) == epoch_keys(epoch=2, seed=1)


def test_without_samples_there_is_nothing():
    assert epoch_keys(0, world_size=3) == [[], [], []]


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("offset", [0, 1, 23, 31])
def test_resuming_yields_exactly_the_rest_and_whole_epochs_after_it(world_size, offset):
    for rank in range(world_size):
        sampler = KeyedSampler(num_samples=101, seed=3, shuffle=True, rank=rank, world_size=world_size)
        sampler.resume(epoch=2, offset=offset)
        for epoch in (2, 3, 4):
            sampler.set_epoch(epoch)
            whole = epoch_keys(epoch=epoch, seed=3, world_size=world_size)[rank]
            assert list(sampler) == (whole[offset:] if epoch == 2 else whole)
            assert len(sampler) == len(whole)


def test_resuming_sets_the_epoch_too():
    sampler = KeyedSampler(num_samples=7, seed=0, shuffle=True)
    sampler.resume(epoch=5, offset=3)
    assert list(sampler) == epoch_keys(7, epoch=5)[0][3:]


def test_an_epoch_that_has_begun_stays_what_it_is():
    sampler = KeyedSampler(num_samples=7, seed=0, shuffle=True)
    keys = iter(sampler)
    sampler.set_epoch(1)
    assert list(keys) == epoch_keys(7)[0]


def test_mix_separates_its_arguments():
    arguments = [args for length in (1, 2, 3) for args in product(range(-3, 17), repeat=length)]
    assert len({mix(*args) for args in arguments}) == len(arguments)


def test_mix_gives_what_torch_takes_as_a_seed():
    assert all(0 <= mix(*args) < 2**63 for args in product((-1, 0, 2**31, 2**64 - 1), repeat=2))
