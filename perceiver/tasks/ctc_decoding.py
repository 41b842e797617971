"""Texts from the outputs of connectionist temporal classification: the best path, and the best prefixes.

Best path: Graves et al. (2006, section 3.2). Prefix beam search: Hannun et al. (2014, arXiv:1408.2873), without a
language model.
"""

import math
from collections import defaultdict
from itertools import groupby

from jaxtyping import Float
from torch import Tensor

BLANK = 0


def best_path(logs: Float[Tensor, "outputs ids"]) -> list[int]:
    """Return the text of the likeliest alignment, from log-probabilities."""
    return [id for id, _ in groupby(logs.argmax(dim=1).tolist()) if id != BLANK]


def prefix_beam_search(logs: Float[Tensor, "outputs ids"], num_beams: int) -> list[list[int]]:
    """Return the likeliest texts over all their alignments, best first: at most `num_beams`, by as many prefixes.

    Args:
        logs: log-probabilities.
        num_beams: prefixes that are kept after each output.
    """
    # Prefix -> log-probability of its alignments that end with the blank, and of those that do not.
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for row in logs.tolist():
        grown: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
        for prefix, (blank, other) in beams.items():
            either = add_logs(blank, other)
            for id, log in enumerate(row):
                if log == -math.inf:
                    continue
                if id == BLANK:
                    grown[prefix][0] = add_logs(grown[prefix][0], either + log)
                    continue
                longer = (*prefix, id)
                if prefix and prefix[-1] == id:  # merged, unless a blank is between
                    grown[prefix][1] = add_logs(grown[prefix][1], other + log)
                    grown[longer][1] = add_logs(grown[longer][1], blank + log)
                else:
                    grown[longer][1] = add_logs(grown[longer][1], either + log)
        best = sorted(grown.items(), key=lambda item: -add_logs(*item[1]))[:num_beams]
        beams = {prefix: (blank, other) for prefix, (blank, other) in best}
    return [list(prefix) for prefix in beams]


def add_logs(one: float, other: float) -> float:
    """Return log(exp(one) + exp(other))."""
    high, low = max(one, other), min(one, other)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
