"""The scene graph of a picture of shapes, and how well captions tell it: SPICE, with the graph known.

Captions are scored by comparison with the scene itself, as in ShapeWorld (Kuhnle & Copestake 2017), and not with other
captions.
"""

from collections.abc import Sequence
from itertools import chain, permutations, product
from statistics import fmean, mode
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from perceiver.data.synthetic.shape_grammar import ATTRIBUTES, Phrase, Statement, listed, parsed, phrase_of
from perceiver.data.synthetic.shape_scene import SHAPES, SIZES, Thing, holds
from perceiver.types import Mention

KINDS = ("object", *ATTRIBUTES, "count", "relation")
"""The kinds of proposition of a scene graph."""


class Matching(NamedTuple):
    """Which things the phrases of a statement mean, as the mean over all best matchings.

    Attributes:
        shares: in which share of the matchings a phrase means a thing.
        related: the pairs of things that have the stated relation in one of them.
        holds: in which share of the matchings the relation holds.
    """

    shares: Float[np.ndarray, "slots things"]
    related: list[tuple[int, int]]
    holds: float


class ShapeFacts:
    """The scene graph of a picture, with which captions are compared; see `perceiver.types.Facts`.

    Scores are those of SPICE (Anderson et al. 2016, arXiv:1607.08822, section 3.2): F, precision and recall over the
    propositions of a scene graph, which here is known instead of parsed from references. It states of each thing that
    there is one (`object`), its `colour`, `shape` and `size`; of each shape that several things have, how many they are
    (`count`); and of each two things, along each axis on which they are far enough apart, their order (`relation`).

    Phrases are matched to different things, so that as many propositions as possible are true. Where several matchings
    are equally good, scores are the mean over all of them.

    Args:
        things: all there are.
        image_size: side of the picture, in pixels.
        constant: the same caption for all pictures, whose F is given as `spice_constant`; empty for none.
    """

    def __init__(self, things: Sequence[Thing], image_size: int, constant: str = "") -> None:
        self.things = list(things)
        self.image_size = image_size
        self.constant = constant

    def scores(self, text: str) -> dict[str, float]:
        """`spice`, `spice_precision` and `spice_recall`, and the same of each kind as `spice/<kind>`, ….

        A text that is not a sentence of the grammar has precision and recall 0. Of a kind, precision is defined where
        the text states a proposition of it, recall where the graph has one, and F where either does.
        """
        scores = self._scores(text) | {"grammatical": float(parsed(text) is not None)}
        return scores | ({"spice_constant": self.spice(self.constant)} if self.constant else {})

    def spice(self, text: str) -> float:
        """F of all propositions."""
        return self._scores(text)["spice"]

    def mentions(self, text: str) -> list[Mention]:
        statement = parsed(text)
        if statement is None:
            return []
        matching = self._matched(statement)
        found: dict[tuple[int, str], dict[int, None]] = {}
        for slot, phrase in enumerate(statement.slots):
            for kind, (value, word) in phrase.said.items():
                for number in np.flatnonzero(matching.shares[slot]).tolist():
                    if self.things[number].attributes[kind] == value:
                        found.setdefault((word, kind), {})[number] = None
        for phrase in statement.counted:
            if self._is_exact(phrase):
                found[phrase.word, "count"] = dict.fromkeys(self._alike(phrase))
        if statement.relation and matching.related:
            found[statement.relation[1], "relation"] = dict.fromkeys(chain(*matching.related))
        return [
            Mention(word, kind, [self.things[number].box(self.image_size) for number in found[word, kind]])
            for word, kind in sorted(found)
        ]

    def _scores(self, text: str) -> dict[str, float]:
        statement, graph = parsed(text), self._graph()
        if statement is None:
            stated, true, found = dict.fromkeys(KINDS, 1.0), dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
        else:
            stated, true, found = self._compared(statement)
        scores = _f_score("", *(sum(part.values()) for part in (true, stated, found, graph)))
        for kind in KINDS:
            scores |= _f_score(f"/{kind}", true[kind], stated[kind], found[kind], graph[kind])
        return scores

    def _graph(self) -> dict[str, float]:
        """How many propositions of each kind the scene graph has."""
        ordered = [holds(word, *pair) for word in ("left", "above") for pair in permutations(self.things, 2)]
        return {
            **dict.fromkeys(("object", *ATTRIBUTES), len(self.things)),
            "count": len(self._shared_shapes()),
            "relation": sum(ordered),
        }

    def _compared(self, statement: Statement) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """By kind: propositions that are stated, those of them that are true, and those of the graph that are found."""
        matching = self._matched(statement)
        stated, true = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
        for phrase, shares in zip(statement.slots, matching.shares.tolist(), strict=True):
            for kind in ("object", *phrase.said):
                stated[kind] += 1.0
            for share, thing in zip(shares, self.things, strict=True):
                true["object"] += share
                for kind, (value, _) in phrase.said.items():
                    true[kind] += share * (thing.attributes[kind] == value)
        exact = [frozenset(self._alike(phrase)) for phrase in statement.counted if self._is_exact(phrase)]
        stated["count"], true["count"] = len(statement.counted), len(exact)
        if statement.relation:
            stated["relation"], true["relation"] = 1.0, matching.holds
        return stated, true, true | {"count": len(self._shared_shapes() & set(exact))}

    def _shared_shapes(self) -> set[frozenset[int]]:
        """The numbers of the things of each shape that several have."""
        by_shape = (frozenset(n for n, thing in enumerate(self.things) if thing.shape == shape) for shape in SHAPES)
        return {numbers for numbers in by_shape if len(numbers) > 1}

    def _alike(self, phrase: Phrase) -> list[int]:
        """The numbers of the things of which all of a phrase is true."""
        return [number for number, thing in enumerate(self.things) if phrase.fits(thing) == len(phrase.said)]

    def _is_exact(self, phrase: Phrase) -> bool:
        """Whether there are as many things as a phrase counts."""
        return len(self._alike(phrase)) == phrase.count

    def _matched(self, statement: Statement) -> Matching:
        true = np.array([[1 + slot.fits(thing) for thing in self.things] for slot in statement.slots])
        if statement.relation is None:
            return Matching(_mean_matching(true), [], 0.0)
        relation, _ = statement.relation
        # A single thing leaves one of the two phrases without any.
        numbers = [*range(len(self.things)), *([-1] if len(self.things) == 1 else [])]
        things = {number: None if number < 0 else self.things[number] for number in numbers}
        totals = {
            pair: sum(true[slot, n] for slot, n in enumerate(pair) if n >= 0) + holds(relation, *map(things.get, pair))
            for pair in permutations(numbers, 2)
        }
        most = max(totals.values())
        best = [pair for pair, total in totals.items() if total == most]
        shares = np.mean([np.array(pair)[:, None] == np.arange(len(self.things)) for pair in best], axis=0)
        related = [pair for pair in best if holds(relation, *map(things.get, pair))]
        return Matching(shares, related, len(related) / len(best))


def _f_score(suffix: str, true: float, stated: float, found: float, graph: float) -> dict[str, float]:
    """F, precision and recall, as far as they are defined."""
    precision, recall = true / stated if stated else 0.0, found / graph if graph else 0.0
    f_score = 2.0 * precision * recall / (precision + recall) if precision and recall else 0.0
    return {
        **({f"spice{suffix}": f_score} if stated or graph else {}),
        **({f"spice_precision{suffix}": precision} if stated else {}),
        **({f"spice_recall{suffix}": recall} if graph else {}),
    }


def _mean_matching(gains: Int[np.ndarray, "slots things"]) -> Float[np.ndarray, "slots things"]:
    """The mean over all matchings of slots to different things whose gain is the greatest.

    Dynamic programming over the slots: for each set of things that are taken, the greatest gain so far, the number of
    ways to it, and the sum over these of who is matched to whom.
    """
    reached = {0: (0, 1.0, np.zeros(gains.shape))}
    for slot, row in enumerate(gains.tolist()):
        longer = dict(reached)  # where the slot is matched to nothing
        for taken, (gain, ways, sums) in reached.items():
            for thing, more in enumerate(row):
                if taken >> thing & 1:
                    continue
                key, matched = taken | 1 << thing, sums.copy()
                matched[slot, thing] += ways
                before = longer.get(key, (-1, 0.0, np.zeros(gains.shape)))
                if gain + more > before[0]:
                    longer[key] = (gain + more, ways, matched)
                elif gain + more == before[0]:
                    longer[key] = (before[0], before[1] + ways, before[2] + matched)
        reached = longer
    most = max(gain for gain, _, _ in reached.values())
    best = [(ways, sums) for gain, ways, sums in reached.values() if gain == most]
    return np.sum([sums for _, sums in best], axis=0) / sum(ways for ways, _ in best)


def constant_caption(scenes: Sequence[Sequence[Thing]]) -> str:
    """The list that has the highest mean F on these scenes if it is the caption of each, found by greedy search.

    Phrases may state a size, the most frequent colour and the most frequent shape: no other colour or shape would be
    right more often.
    """
    graphs = [ShapeFacts(things, 1) for things in scenes]
    everything = [thing for things in scenes for thing in things]
    frequent = {kind: mode(thing.attributes[kind] for thing in everything) for kind in ("colour", "shape")}
    options = [[None, *SIZES], *([None, value] for value in frequent.values())]
    said = [{kind: v for kind, v in zip(ATTRIBUTES, values, strict=True) if v} for values in product(*options)]
    phrases = [phrase_of(one) for one in said if one]
    best, found = 0.0, list[str]()
    while len(found) < max(map(len, scenes)):
        score, phrase = max((fmean(graph.spice(listed([*found, one])) for graph in graphs), one) for one in phrases)
        if score <= best:
            break
        best, found = score, [*found, phrase]
    return listed(found)
