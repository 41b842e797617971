from collections import Counter
from itertools import product

import pytest
import torch

from perceiver.data.sampler import NO_SAMPLE, KeyedSampler, SimilarLengths, class_balancing_weights, fold_in

WORLDS = (1, 2, 3)
SIZES = (1, 2, 7, 101)


def epoch_keys(
    num_samples=101, *, epoch=0, world_size=1, seed=0, shuffle=True, drop_last=False
) -> list[list[tuple[int, int]]]:
    """The keys of one epoch, by rank."""
    ranks = []
    for rank in range(world_size):
        place = {"rank": rank, "world_size": world_size, "drop_last": drop_last}
        sampler = KeyedSampler(num_samples=num_samples, seed=seed, shuffle=shuffle, **place)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(sampler) == len(ranks[-1])
    return ranks


@pytest.mark.parametrize("num_samples", SIZES)
@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("epoch", [0, 5])
def test_shuffled_ranks_take_every_sample_exactly_once_in_equally_many_places(num_samples, world_size, epoch):
    ranks = epoch_keys(num_samples, epoch=epoch, world_size=world_size)
    samples = [key for rank in ranks for key in rank if key[1] != NO_SAMPLE]
    assert len({len(rank) for rank in ranks}) == 1
    assert sorted(samples) == [(epoch, index) for index in range(num_samples)]
    assert sum(map(len, ranks)) - num_samples == -num_samples % world_size
    (whole,) = epoch_keys(num_samples, epoch=epoch)
    dropping = epoch_keys(num_samples, epoch=epoch, world_size=world_size, drop_last=True)
    assert [key for keys in zip(*dropping, strict=True) for key in keys] == whole[
        : num_samples - num_samples % world_size
    ]


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


RARE_AND_FREQUENT = [[0]] * 3 + [[1]] * 29 + [[2]] * 211
"""Classes of samples of which one class has seventy times as many as another."""
BALANCED = class_balancing_weights(RARE_AND_FREQUENT)


def drawn(weights=BALANCED, *, epoch=0, seed=0, rank=0, world_size=1) -> list[tuple[int, int, int]]:
    """The keys of one process in one epoch of samples with weights."""
    sampler = KeyedSampler(
        num_samples=len(weights), seed=seed, shuffle=True, weights=weights, rank=rank, world_size=world_size
    )
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert len(sampler) == len(keys)
    return keys


class TestClassBalance:
    def test_rare_classes_are_drawn_as_often_as_frequent_ones(self):
        epochs = 23
        counts = Counter(RARE_AND_FREQUENT[index][0] for epoch in range(epochs) for _, index, _ in drawn(epoch=epoch))
        expected = epochs * len(RARE_AND_FREQUENT) / 3
        chi_square = sum((counts[label] - expected) ** 2 / expected for label in range(3))
        assert chi_square < 13.8  # 1 in 1000, with 2 degrees of freedom

    def test_within_a_class_all_are_drawn_equally_often(self):
        counts = Counter(index for epoch in range(101) for _, index, _ in drawn(epoch=epoch) if index < 3)
        expected = counts.total() / 3
        assert sum((counts[index] - expected) ** 2 / expected for index in range(3)) < 13.8

    def test_a_sample_weighs_the_sum_over_its_classes_of_one_over_their_size(self):
        weights = class_balancing_weights([[0], [0, 1], [1, 2], [2, 2], [2]])
        assert weights.tolist() == pytest.approx([1 / 2, 1, 1 / 2 + 1 / 3, 1 / 3, 1 / 3])

    def test_samples_without_a_class_keep_their_share(self):
        weights = class_balancing_weights([[], [0], [0], [1], []])
        assert weights.tolist() == pytest.approx([2 / 3, 1 / 2, 1 / 2, 1, 2 / 3])
        assert float(weights[[0, 4]].sum() / weights.sum()) == pytest.approx(2 / 5)

    def test_as_many_are_drawn_as_there_are_and_each_repetition_has_its_own_key(self):
        keys = drawn(epoch=5)
        assert len(keys) == len(set(keys)) == len(RARE_AND_FREQUENT)
        times = Counter(index for _, index, _ in keys)
        assert set(keys) == {(5, index, time) for index, count in times.items() for time in range(count)}
        assert max(times.values()) > 1

    def test_the_draw_is_a_function_of_seed_and_epoch(self):
        draws = {(seed, epoch): tuple(drawn(seed=seed, epoch=epoch)) for seed, epoch in product((0, 1, 2), repeat=2)}
        assert len({tuple(index for _, index, _ in keys) for keys in draws.values()}) == len(draws)
        torch.rand(3)
        assert tuple(drawn(seed=1, epoch=2)) == draws[1, 2]

    @pytest.mark.parametrize("world_size", [2, 3, 5])
    def test_ranks_share_out_what_one_process_draws(self, world_size):
        ranks = [drawn(epoch=3, rank=rank, world_size=world_size) for rank in range(world_size)]
        whole = drawn(epoch=3)
        assert len({len(keys) for keys in ranks}) == 1
        shared = [keys[place] for place in range(len(ranks[0])) for keys in ranks]
        assert shared[: len(whole)] == whole
        assert {index for _, index, _ in shared[len(whole) :]} <= {NO_SAMPLE}

    @pytest.mark.parametrize("world_size", WORLDS)
    @pytest.mark.parametrize("offset", [0, 1, 23, 79])
    def test_resuming_yields_exactly_the_rest_and_whole_epochs_after_it(self, world_size, offset):
        for rank in range(world_size):
            sampler = KeyedSampler(
                num_samples=len(BALANCED), seed=3, shuffle=True, weights=BALANCED, rank=rank, world_size=world_size
            )
            sampler.resume(epoch=2, offset=offset)
            for epoch in (2, 3, 4):
                sampler.set_epoch(epoch)
                whole = drawn(epoch=epoch, seed=3, rank=rank, world_size=world_size)
                assert list(sampler) == (whole[offset:] if epoch == 2 else whole)


@pytest.mark.parametrize(("num_samples", "world_size"), [(7, 1), (7, 3), (101, 2)])
def test_without_weights_the_order_is_the_one_it_always_was(num_samples, world_size):
    """Runs that were interrupted before there were weights go on as they began."""
    for rank, epoch in product(range(world_size), (0, 3)):
        order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(fold_in(5, epoch))).tolist()
        order += [NO_SAMPLE] * (-num_samples % world_size)
        expected = [(epoch, index) for index in order[rank::world_size]]
        assert epoch_keys(num_samples, epoch=epoch, world_size=world_size, seed=5)[rank] == expected


def test_mix_separates_its_arguments():
    arguments = [args for length in (1, 2, 3) for args in product(range(-3, 17), repeat=length)]
    assert len({fold_in(*args) for args in arguments}) == len(arguments)


def test_mix_gives_what_torch_takes_as_a_seed():
    assert all(0 <= fold_in(*args) < 2**63 for args in product((-1, 0, 2**31, 2**64 - 1), repeat=2))


@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_of_similar_lengths_have_each_sample_once_and_little_padding(world_size):
    size, lengths = 101, torch.randint(3, 97, (101,), generator=torch.Generator().manual_seed(0))

    def batches(groups: SimilarLengths | None, epoch: int = 0) -> list[list[int]]:
        parts = []
        for rank in range(world_size):
            sampler = KeyedSampler(
                num_samples=size, seed=5, shuffle=True, rank=rank, world_size=world_size, groups=groups
            )
            sampler.set_epoch(epoch)
            indices = [index for _, index in sampler]
            parts.append(
                [indices[start : start + 12 // world_size] for start in range(0, len(indices), 12 // world_size)]
            )
        return [[index for part in batch for index in part if index != NO_SAMPLE] for batch in zip(*parts, strict=True)]

    def padding(found: list[list[int]]) -> int:
        return sum(int(lengths[batch].max()) * len(batch) - int(lengths[batch].sum()) for batch in found)

    groups = SimilarLengths(lengths, 12, 4)
    found = batches(groups)
    assert sorted(index for batch in found for index in batch) == list(range(size))
    assert [len(batch) for batch in found] == [12] * 8 + [5]
    assert padding(found) < 0.5 * padding(batches(None))
    assert found == batches(groups)
    assert found != batches(groups, epoch=1)
    means = [float(lengths[batch].float().mean()) for batch in found]
    assert means not in (sorted(means), sorted(means, reverse=True))
