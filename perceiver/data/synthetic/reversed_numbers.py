"""Sequences of numbers and their reversal, which no model without attention copies at length: a test of alignment."""

from collections.abc import Mapping

from perceiver.data.sources.generated import Random
from perceiver.data.synthetic.aligned_texts import AlignedPair, AlignedTexts
from perceiver.types import Stage


class ReversedNumbers(AlignedTexts):
    """`3 17 5` -> `5 17 3`.

    Args:
        num_values: numbers that occur, from 0.
        lengths: least and greatest length.
        num_samples, seed: see `AlignedTexts`.

    Raises:
        ValueError: `num_values` is less than 2, or lengths are out of order.
    """

    name = "reversed_numbers"

    def __init__(
        self, *, num_values: int, lengths: tuple[int, int], num_samples: Mapping[Stage, int], seed: int
    ) -> None:
        super().__init__(num_samples=num_samples, seed=seed)
        if num_values < 2:
            raise ValueError(f"num_values={num_values} must be at least 2")
        if not 1 <= lengths[0] <= lengths[1]:
            raise ValueError(f"lengths={list(lengths)} must be the least and the greatest, at least 1")
        self.num_values = num_values
        self.lengths = lengths

    def draw(self, random: Random, stage: Stage) -> AlignedPair:
        length = int(random.integers(self.lengths[0], self.lengths[1] + 1))
        words = [str(number) for number in random.integers(self.num_values, size=length)]
        links = [[place] for place in reversed(range(length))]
        return AlignedPair(" ".join(words), " ".join(reversed(words)), links)
