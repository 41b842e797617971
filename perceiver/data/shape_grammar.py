"""A small English of shapes: scenes -> captions, and captions -> what they state and what of it is true.

A caption is a list ("there is a small red circle, a star and two blue squares") or a relation ("a cross is left of a
large shape", "below a cyan star there is a circle"). Phrases leave out some of size, colour and shape. "a" states that
there is such a thing, a number that there are exactly so many. Captions are scored by comparison with the scene itself,
as in ShapeWorld (Kuhnle & Copestake 2017), and not with other captions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, permutations, product
from statistics import fmean, mode
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from perceiver.data.shape_scene import COLOURS, RELATION_MARGIN, RELATIONS, SHAPES, SIZES, Random, Thing, holds
from perceiver.tokenizer import words_in
from perceiver.types import Mention

ATTRIBUTES = ("size", "colour", "shape")
KINDS = ("object", *ATTRIBUTES, "count", "relation")
"""The kinds of proposition of a scene graph."""
COUNTS = {"two": 2, "three": 3, "four": 4}
PLURALS = {noun: "crosses" if noun == "cross" else f"{noun}s" for noun in (*SHAPES, "shape")}
WAYS = {word: (f"{word} of", f"to the {word} of") if axis == "x" else (word,) for word, (axis, _) in RELATIONS.items()}
OPENINGS = ("", "", "there {be} ", "the picture shows ", "i see ")
ALIKE = ("colour", "shape", "colour shape", "size colour", "size shape", "size colour shape")
"""What things that are counted have in common."""
OMITTED = {"size": 0.4, "colour": 0.15, "shape": 0.1}
"""How often a phrase leaves something out."""
RELATED, INVERTED, COMPLETE, COUNTED = 0.4, 0.3, 0.7, 0.75
"""How often the relation of two things is told; from its end; how often a list names all things; counts what it can."""
MOST_PHRASES = 4
MOST_WORDS = 256
"""Of a sentence: nobody writes a longer one, and matching takes time in proportion."""

# Words as letters, one each, so that a sentence is a regular expression and a letter's place the number of a word.
_LETTERS = {
    **{"shape": "g", "shapes": "G", "a": "a", "and": "&", ",": ",", ".": ".", "i": "I", "see": "v"},
    **{"there": "t", "is": "b", "are": "B", "the": "e", "picture": "p", "shows": "w", "to": "T", "of": "f"},
    **dict.fromkeys(COUNTS, "n"),
    **dict.fromkeys(SIZES, "s"),
    **dict.fromkeys(COLOURS, "c"),
    **dict.fromkeys(SHAPES, "o"),
    **{PLURALS[shape]: "O" for shape in SHAPES},
    **{word: "h" if axis == "x" else "r" for word, (axis, _) in RELATIONS.items()},
}
WORDS = [word for word in _LETTERS if word != "."]
"""All that captions are made of."""
_ONE = "a(?:s?c?o|(?:sc?|c)g)"
_MANY = "n(?:s?c?O|(?:sc?|c)G)"
_LIST = f"(?:(?:tb|epw|Iv)?{_ONE}|(?:tB|epw|Iv)?{_MANY})(?:(?:,(?:{_ONE}|{_MANY}))*&(?:{_ONE}|{_MANY}))?"
_RELATION = "(?:(?:Te)?hf|r)"
_PAIR = f"{_ONE}b?{_RELATION}{_ONE}|(?:tb|epw|Iv){_ONE}{_RELATION}{_ONE}|{_RELATION}{_ONE}t?b{_ONE}"
_SENTENCE = re.compile(rf"(?:{_LIST}|{_PAIR})\.?")
_PHRASE = re.compile(f"{_ONE}|{_MANY}")
_KINDS = {"s": "size", "c": "colour", "o": "shape", "O": "shape"}
_SINGULAR = {plural: noun for noun, plural in PLURALS.items()}


@dataclass(frozen=True)
class Phrase:
    """What is said of one thing, or of each of several.

    Attributes:
        count: how many things it speaks of.
        word: the number of its first word, article or count, among the caption's words.
        said: kind (`size`, `colour`, `shape`) -> what it is, and the number of the word that says so.
    """

    count: int
    word: int
    said: dict[str, tuple[str, int]]

    def fits(self, thing: Thing | None) -> int:
        """How much of it is true of a thing."""
        return sum(thing.attributes[kind] == value for kind, (value, _) in self.said.items()) if thing else 0


@dataclass(frozen=True)
class Statement:
    """A caption, understood; `relation` is the word (and its number) for what the first thing is to the second."""

    phrases: list[Phrase]
    relation: tuple[str, int] | None

    @property
    def slots(self) -> list[Phrase]:
        """Each phrase as often as it counts things."""
        return [phrase for phrase in self.phrases for _ in range(phrase.count)]

    @property
    def counted(self) -> list[Phrase]:
        return [phrase for phrase in self.phrases if phrase.count > 1]


def parsed(caption: str) -> Statement | None:
    """What a caption states; None if it is no sentence of the grammar. Capitals and a final dot make no difference."""
    words = [word.group().lower() for word in islice(words_in(caption), MOST_WORDS + 1)]
    letters = "".join(_LETTERS.get(word, "?") for word in words)
    if len(words) > MOST_WORDS or not _SENTENCE.fullmatch(letters):
        return None
    phrases = []
    for found in _PHRASE.finditer(letters):
        at = [place for place in range(*found.span()) if letters[place] in _KINDS]
        said = {_KINDS[letters[place]]: (_SINGULAR.get(words[place], words[place]), place) for place in at}
        phrases.append(Phrase(COUNTS.get(words[found.start()], 1), found.start(), said))
    relation = next(((word, place) for place, word in enumerate(words) if word in RELATIONS), None)
    return Statement(phrases[::-1] if relation and relation[1] < phrases[0].word else phrases, relation)


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

    def judged(self, text: str) -> dict[str, float]:
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
    phrases = [_phrase(one) for one in said if one]
    best, found = 0.0, list[str]()
    while len(found) < max(map(len, scenes)):
        score, phrase = max((fmean(graph.spice(_listed([*found, one])) for graph in graphs), one) for one in phrases)
        if score <= best:
            break
        best, found = score, [*found, phrase]
    return _listed(found)


def captions(things: Sequence[Thing], random: Random, *, count: int, left_to_right: bool) -> list[str]:
    """Different true captions of a scene: `count`, or as many as are found.

    If `left_to_right`, what is farther left is mentioned first; where up and down is told, what is farther up.
    """
    found: dict[str, None] = {}
    for _ in range(10 * count):
        related = len(things) > 1 and random.random() < RELATED
        found[(related and _relation(things, random, left_to_right)) or _list(things, random, left_to_right)] = None
        if len(found) == count:
            break
    return list(found)


def _relation(things: Sequence[Thing], random: Random, left_to_right: bool) -> str:
    """A caption of two things; empty if they are in the same place, more or less."""
    pair = [things[i] for i in random.permutation(len(things))[:2]]
    axes = [a for a in ("x", "y") if abs(getattr(pair[0], a) - getattr(pair[1], a)) >= RELATION_MARGIN]
    if not axes:
        return ""
    axis = axes[random.integers(len(axes))]
    if left_to_right:
        pair.sort(key=lambda thing: getattr(thing, axis))
    # The first has the relation to the second or, told from its end, the second to the first.
    inverted = random.random() < INVERTED
    one, other = pair[::-1] if inverted else pair
    ways = [way for word, of in WAYS.items() if RELATIONS[word][0] == axis and holds(word, one, other) for way in of]
    way = ways[random.integers(len(ways))]
    first, second = (_of(thing, random) for thing in pair)
    if inverted:
        return f"{way} {first} {('there is', 'is')[random.integers(2)]} {second}"
    opening = OPENINGS[random.integers(len(OPENINGS))].format(be="is")
    return f"{opening}{first} {'is ' if not opening and random.random() < 0.5 else ''}{way} {second}"


def _list(things: Sequence[Thing], random: Random, left_to_right: bool) -> str:
    """A caption of two things or more, if there are."""
    most = min(len(things), MOST_PHRASES)
    size = most if most < 3 or random.random() < COMPLETE else int(random.integers(2, most))
    rest = set(random.permutation(len(things))[:size].tolist())
    phrases: list[tuple[float, str]] = []
    for said, alike in _alike(things, random) if random.random() < COUNTED else []:
        if alike <= rest:
            phrases.append((min(things[i].x for i in alike), _phrase(said, len(alike))))
            rest -= alike
    for thing in (things[i] for i in rest):
        phrase = _of(thing, random)
        repeated = phrase in [before for _, before in phrases]
        phrases.append((thing.x, _phrase(thing.attributes) if repeated else phrase))
    phrases = sorted(phrases) if left_to_right else [phrases[i] for i in random.permutation(len(phrases))]
    text = _listed([phrase for _, phrase in phrases])
    return OPENINGS[random.integers(len(OPENINGS))].format(be="is" if text.startswith("a ") else "are") + text


def _listed(phrases: Sequence[str]) -> str:
    *front, last = phrases
    return f"{', '.join(front)} and {last}" if front else last


def _alike(things: Sequence[Thing], random: Random) -> list[tuple[dict[str, str], set[int]]]:
    """What several things have in common that no other has, and the numbers of those, in random order."""
    groups: dict[tuple[tuple[str, str], ...], set[int]] = {}
    for number, thing in enumerate(things):
        for kinds in ALIKE:
            groups.setdefault(tuple((kind, thing.attributes[kind]) for kind in kinds.split()), set()).add(number)
    found = [(dict(said), alike) for said, alike in groups.items() if len(alike) in COUNTS.values()]
    return [found[i] for i in random.permutation(len(found))]


def _of(thing: Thing, random: Random) -> str:
    """A phrase that speaks of a thing, mostly without saying all."""
    said = {kind: value for kind, value in thing.attributes.items() if random.random() >= OMITTED[kind]}
    return _phrase(said or thing.attributes)


def _phrase(said: Mapping[str, str], count: int = 1) -> str:
    noun = said.get("shape", "shape")
    number, noun = ("a", noun) if count == 1 else (list(COUNTS)[count - 2], PLURALS[noun])
    return " ".join([number, *(said[kind] for kind in ("size", "colour") if kind in said), noun])
