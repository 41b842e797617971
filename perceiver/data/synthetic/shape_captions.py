"""Captions of scenes of shapes: a grammar that generates and parses them, and their SPICE against the scene graph.

A caption is a list ("there is a small red circle, a star and two blue squares") or a relation ("a cross is left of a
large shape", "below a cyan star there is a circle"). Phrases omit some attributes. "a" states that there is such an
object, a number that there are exactly so many. Captions are scored against the scene itself, as in ShapeWorld (Kuhnle
& Copestake 2017), not against other captions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, permutations, product
from statistics import fmean, mode
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from perceiver.data.synthetic.shapes import (
    COLORS,
    RELATION_MARGIN,
    RELATIONS,
    SHAPES,
    SIZES,
    Random,
    SceneObject,
    is_related,
)
from perceiver.tokenizer import split_words
from perceiver.types import Mention

ATTRIBUTES = ("size", "color", "shape")
KINDS = ("object", *ATTRIBUTES, "count", "relation")
"""Kinds of proposition of a scene graph."""
COUNTS = {"two": 2, "three": 3, "four": 4}
PLURALS = {noun: "crosses" if noun == "cross" else f"{noun}s" for noun in (*SHAPES, "shape")}
RELATION_PHRASES = {
    word: (f"{word} of", f"to the {word} of") if axis == "x" else (word,) for word, (axis, _) in RELATIONS.items()
}
OPENINGS = ("", "", "there {be} ", "the picture shows ", "i see ")
COUNTED_ATTRIBUTES = ("color", "shape", "color shape", "size color", "size shape", "size color shape")
"""Attributes that counted objects have in common."""
P_OMITTED = {"size": 0.4, "color": 0.15, "shape": 0.1}
"""Probability that a phrase omits an attribute."""
P_RELATION, P_INVERTED, P_COMPLETE, P_COUNTED = 0.4, 0.3, 0.7, 0.75
"""Probability that a caption is a relation, that it begins with the relation, that a list names all objects, and that
it counts the objects it can."""
MAX_PHRASES = 4
MAX_WORDS = 256
"""Longer texts are not parsed: no caption is as long, and the time of matching is proportional to the length."""

# Each word is one letter, so that a regular expression parses a caption and positions of letters are those of words.
_LETTERS = {
    **{"shape": "g", "shapes": "G", "a": "a", "and": "&", ",": ",", ".": ".", "i": "I", "see": "v"},
    **{"there": "t", "is": "b", "are": "B", "the": "e", "picture": "p", "shows": "w", "to": "T", "of": "f"},
    **dict.fromkeys(COUNTS, "n"),
    **dict.fromkeys(SIZES, "s"),
    **dict.fromkeys(COLORS, "c"),
    **dict.fromkeys(SHAPES, "o"),
    **{PLURALS[shape]: "O" for shape in SHAPES},
    **{word: "h" if axis == "x" else "r" for word, (axis, _) in RELATIONS.items()},
}
WORDS = [word for word in _LETTERS if word != "."]
"""All words of captions."""
_ONE = "a(?:s?c?o|(?:sc?|c)g)"
_MANY = "n(?:s?c?O|(?:sc?|c)G)"
_LIST = f"(?:(?:tb|epw|Iv)?{_ONE}|(?:tB|epw|Iv)?{_MANY})(?:(?:,(?:{_ONE}|{_MANY}))*&(?:{_ONE}|{_MANY}))?"
_RELATION = "(?:(?:Te)?hf|r)"
_PAIR = f"{_ONE}b?{_RELATION}{_ONE}|(?:tb|epw|Iv){_ONE}{_RELATION}{_ONE}|{_RELATION}{_ONE}t?b{_ONE}"
_SENTENCE = re.compile(rf"(?:{_LIST}|{_PAIR})\.?")
_PHRASE = re.compile(f"{_ONE}|{_MANY}")
_ATTRIBUTE_OF_LETTER = {"s": "size", "c": "color", "o": "shape", "O": "shape"}
_SINGULAR = {plural: noun for noun, plural in PLURALS.items()}


@dataclass(frozen=True)
class Phrase:
    """A noun phrase about one object, or about several with the same attributes.

    Attributes:
        count: number of objects.
        position: of its first word, article or count, among the caption's words.
        attributes: name (`size`, `color`, `shape`) -> value, and position of its word.
    """

    count: int
    position: int
    attributes: dict[str, tuple[str, int]]

    def num_true(self, one: SceneObject | None) -> int:
        """Return how many of the attributes an object has."""
        return sum(one.attributes[name] == value for name, (value, _) in self.attributes.items()) if one else 0


@dataclass(frozen=True)
class ParsedCaption:
    """A parsed caption.

    Attributes:
        phrases: about the objects, the subject of a relation first.
        relation: of the first object to the second, and the position of its word.
    """

    phrases: list[Phrase]
    relation: tuple[str, int] | None

    @property
    def slots(self) -> list[Phrase]:
        """Each phrase, repeated by its count."""
        return [phrase for phrase in self.phrases for _ in range(phrase.count)]

    @property
    def counted(self) -> list[Phrase]:
        return [phrase for phrase in self.phrases if phrase.count > 1]


@lru_cache(maxsize=256)
def parse(caption: str) -> ParsedCaption | None:
    """Parse a caption; None if it is not grammatical. Case and a final period are ignored."""
    words = [word.lower() for word in split_words(caption)]
    letters = "".join(_LETTERS.get(word, "?") for word in words)
    if len(words) > MAX_WORDS or not _SENTENCE.fullmatch(letters):
        return None
    phrases = []
    for match in _PHRASE.finditer(letters):
        positions = [position for position in range(*match.span()) if letters[position] in _ATTRIBUTE_OF_LETTER]
        attributes = {_ATTRIBUTE_OF_LETTER[letters[i]]: (_SINGULAR.get(words[i], words[i]), i) for i in positions}
        phrases.append(Phrase(COUNTS.get(words[match.start()], 1), match.start(), attributes))
    relation = next(((word, position) for position, word in enumerate(words) if word in RELATIONS), None)
    return ParsedCaption(phrases[::-1] if relation and relation[1] < phrases[0].position else phrases, relation)


class CaptionSampler:
    """Draws different true captions of a scene.

    Args:
        order: of the objects in a caption: `random`, or `left_to_right` (from top to bottom in vertical relations).
        num_references: captions of a scene, if so many are found.
    """

    def __init__(self, *, order: Literal["random", "left_to_right"], num_references: int) -> None:
        if order not in ("random", "left_to_right"):
            raise ValueError(f"order={order!r} must be random or left_to_right")
        if num_references < 1:
            raise ValueError(f"num_references={num_references} must be at least 1")
        self.is_ordered = order == "left_to_right"
        self.num_references = num_references

    def sample(self, random: Random, objects: Sequence[SceneObject], count: int | None = None) -> list[str]:
        """Draw `count` captions, by default `num_references`."""
        count = self.num_references if count is None else count
        captions: dict[str, None] = {}
        for _ in range(10 * count):
            is_relation = len(objects) > 1 and random.random() < P_RELATION
            captions[(is_relation and self._relation(random, objects)) or self._list(random, objects)] = None
            if len(captions) == count:
                break
        return list(captions)

    def _relation(self, random: Random, objects: Sequence[SceneObject]) -> str:
        """Return a caption of two objects, empty if their distance is too small."""
        pair = [objects[i] for i in random.permutation(len(objects))[:2]]
        axes = [a for a in ("x", "y") if abs(getattr(pair[0], a) - getattr(pair[1], a)) >= RELATION_MARGIN]
        if not axes:
            return ""
        axis = axes[random.integers(len(axes))]
        if self.is_ordered:
            pair.sort(key=lambda one: getattr(one, axis))
        inverted = random.random() < P_INVERTED
        subject, other = pair[::-1] if inverted else pair
        true = [word for word in RELATIONS if RELATIONS[word][0] == axis and is_related(word, subject, other)]
        options = [phrase for word in true for phrase in RELATION_PHRASES[word]]
        relation = options[random.integers(len(options))]
        first, second = (_random_phrase(random, one) for one in pair)
        if inverted:
            return f"{relation} {first} {('there is', 'is')[random.integers(2)]} {second}"
        opening = OPENINGS[random.integers(len(OPENINGS))].format(be="is")
        return f"{opening}{first} {'is ' if not opening and random.random() < 0.5 else ''}{relation} {second}"

    def _list(self, random: Random, objects: Sequence[SceneObject]) -> str:
        """Return a caption of at least two objects, if there are so many."""
        most = min(len(objects), MAX_PHRASES)
        size = most if most < 3 or random.random() < P_COMPLETE else int(random.integers(2, most))
        rest = set(random.permutation(len(objects))[:size].tolist())
        phrases: list[tuple[float, str]] = []
        for attributes, group in _groups(random, objects) if random.random() < P_COUNTED else []:
            if group <= rest:
                phrases.append((min(objects[i].x for i in group), phrase_of(attributes, len(group))))
                rest -= group
        for one in (objects[i] for i in rest):
            phrase = _random_phrase(random, one)
            repeated = phrase in [earlier for _, earlier in phrases]
            phrases.append((one.x, phrase_of(one.attributes) if repeated else phrase))
        phrases = sorted(phrases) if self.is_ordered else [phrases[i] for i in random.permutation(len(phrases))]
        text = enumeration([phrase for _, phrase in phrases])
        return OPENINGS[random.integers(len(OPENINGS))].format(be="is" if text.startswith("a ") else "are") + text


def _groups(random: Random, objects: Sequence[SceneObject]) -> list[tuple[dict[str, str], set[int]]]:
    """Return common attributes of several objects that no other has, and their indices, in random order."""
    groups: dict[tuple[tuple[str, str], ...], set[int]] = {}
    for index, one in enumerate(objects):
        for names in COUNTED_ATTRIBUTES:
            groups.setdefault(tuple((name, one.attributes[name]) for name in names.split()), set()).add(index)
    found = [(dict(attributes), group) for attributes, group in groups.items() if len(group) in COUNTS.values()]
    return [found[i] for i in random.permutation(len(found))]


def _random_phrase(random: Random, one: SceneObject) -> str:
    attributes = {name: value for name, value in one.attributes.items() if random.random() >= P_OMITTED[name]}
    return phrase_of(attributes or one.attributes)


def phrase_of(attributes: Mapping[str, str], count: int = 1) -> str:
    """Return the noun phrase of attributes: "a red circle", "two small shapes"."""
    return f"{'a' if count == 1 else list(COUNTS)[count - 2]} {noun_of(attributes, plural=count > 1)}"


def noun_of(attributes: Mapping[str, str], *, plural: bool = False) -> str:
    """Return the noun phrase of attributes without article: "red circle", "small shapes"."""
    noun = attributes.get("shape", "shape")
    adjectives = [attributes[name] for name in ("size", "color") if name in attributes]
    return " ".join([*adjectives, PLURALS[noun] if plural else noun])


def enumeration(phrases: Sequence[str]) -> str:
    """Join phrases by commas and "and"."""
    *front, last = phrases
    return f"{', '.join(front)} and {last}" if front else last


class Matching(NamedTuple):
    """The mean over all best matchings of the slots of a caption to objects.

    Attributes:
        weights: fraction of the matchings in which a slot is matched to an object.
        related: pairs of objects with the stated relation in one of them.
        p_related: fraction of the matchings in which the relation is true.
    """

    weights: Float[np.ndarray, "slots objects"]
    related: list[tuple[int, int]]
    p_related: float


class ShapeFacts:
    """The scene graph of an image, with which captions are compared; see `perceiver.types.Facts`.

    Scores are those of SPICE (Anderson et al. 2016, arXiv:1607.08822, section 3.2): F, precision and recall over the
    propositions of a scene graph, which is known here instead of parsed from references. For each object it states its
    existence (`object`), `color`, `shape` and `size`; for each shape of several objects, their number (`count`); and
    for each two objects, along each axis with sufficient distance, their order (`relation`).

    Slots of a caption are matched to different objects so that as many propositions as possible are true. If several
    matchings are equally good, scores are the mean over all of them.

    Args:
        objects: of the scene.
        image_size: side of the image, in pixels.
        constant: a caption that is the same for all images, whose F is `spice_constant`; empty for none.
    """

    def __init__(self, objects: Sequence[SceneObject], image_size: int, constant: str = "") -> None:
        self.objects = list(objects)
        self.image_size = image_size
        self.constant = constant
        by_shape = (frozenset(i for i, one in enumerate(objects) if one.shape == shape) for shape in SHAPES)
        self._shared_shapes = {indices for indices in by_shape if len(indices) > 1}
        ordered = [is_related(word, *pair) for word in ("left", "above") for pair in permutations(objects, 2)]
        self._graph = {
            **dict.fromkeys(("object", *ATTRIBUTES), float(len(objects))),
            **{"count": float(len(self._shared_shapes)), "relation": float(sum(ordered))},
        }

    def scores(self, text: str) -> dict[str, float]:
        """Return `spice`, `spice_precision` and `spice_recall`, and the same of each kind as `spice/<kind>`, ….

        Precision and recall of ungrammatical texts are 0. Of a kind, precision is defined if the text states a
        proposition of it, recall if the graph has one, and F if either is.
        """
        caption = parse(text)
        propositions = self._propositions(caption)
        scores = _f_scores("", *(sum(part.values()) for part in propositions))
        for kind in KINDS:
            scores |= _f_scores(f"/{kind}", *(part[kind] for part in propositions))
        scores["grammatical"] = float(caption is not None)
        return scores | ({"spice_constant": self.spice(self.constant)} if self.constant else {})

    def spice(self, text: str) -> float:
        """Return F over all propositions."""
        return _f_scores("", *(sum(part.values()) for part in self._propositions(parse(text))))["spice"]

    def mentions(self, text: str) -> list[Mention]:
        caption = parse(text)
        if caption is None:
            return []
        matching = self._match(caption)
        found: dict[tuple[int, str], dict[int, None]] = {}
        for slot, phrase in enumerate(caption.slots):
            for name, (value, position) in phrase.attributes.items():
                for index in np.flatnonzero(matching.weights[slot]).tolist():
                    if self.objects[index].attributes[name] == value:
                        found.setdefault((position, name), {})[index] = None
        for phrase in caption.counted:
            if self._is_exact(phrase):
                found[phrase.position, "count"] = dict.fromkeys(self._fitting(phrase))
        if caption.relation and matching.related:
            found[caption.relation[1], "relation"] = dict.fromkeys(chain(*matching.related))
        return [
            Mention(position, kind, [self.objects[index].box(self.image_size) for index in found[position, kind]])
            for position, kind in sorted(found)
        ]

    def _propositions(self, caption: ParsedCaption | None) -> tuple[dict[str, float], ...]:
        """Count by kind the propositions that are stated and true, stated, found in the graph, and in the graph."""
        stated, true = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
        if caption is None:
            return true, dict.fromkeys(KINDS, 1.0), true, self._graph
        matching = self._match(caption)
        for phrase, weights in zip(caption.slots, matching.weights.tolist(), strict=True):
            for kind in ("object", *phrase.attributes):
                stated[kind] += 1.0
            for weight, one in zip(weights, self.objects, strict=True):
                true["object"] += weight
                for name, (value, _) in phrase.attributes.items():
                    true[name] += weight * (one.attributes[name] == value)
        exact = [frozenset(self._fitting(phrase)) for phrase in caption.counted if self._is_exact(phrase)]
        stated["count"], true["count"] = len(caption.counted), len(exact)
        if caption.relation:
            stated["relation"], true["relation"] = 1.0, matching.p_related
        return true, stated, true | {"count": float(len(self._shared_shapes & set(exact)))}, self._graph

    def _fitting(self, phrase: Phrase) -> list[int]:
        """Return the indices of the objects with all attributes of a phrase."""
        return [index for index, one in enumerate(self.objects) if phrase.num_true(one) == len(phrase.attributes)]

    def _is_exact(self, phrase: Phrase) -> bool:
        return len(self._fitting(phrase)) == phrase.count

    def _match(self, caption: ParsedCaption) -> Matching:
        gains = np.array([[1 + slot.num_true(one) for one in self.objects] for slot in caption.slots])
        if caption.relation is None:
            return Matching(_mean_matching(gains), [], 0.0)
        relation, _ = caption.relation
        # Index -1 is no object: with a single one, one of the two phrases remains unmatched.
        objects: dict[int, SceneObject | None] = dict(enumerate(self.objects))
        if len(objects) == 1:
            objects[-1] = None
        totals = {
            pair: sum(gains[slot, i] for slot, i in enumerate(pair) if i >= 0)
            + is_related(relation, *map(objects.get, pair))
            for pair in permutations(objects, 2)
        }
        most = max(totals.values())
        best = [pair for pair, total in totals.items() if total == most]
        weights = np.mean([np.array(pair)[:, None] == np.arange(len(self.objects)) for pair in best], axis=0)
        related = [pair for pair in best if is_related(relation, *map(objects.get, pair))]
        return Matching(weights, related, len(related) / len(best))


def _f_scores(suffix: str, true: float, stated: float, found: float, graph: float) -> dict[str, float]:
    """Return F, precision and recall, if they are defined."""
    precision, recall = true / stated if stated else 0.0, found / graph if graph else 0.0
    f_score = 2.0 * precision * recall / (precision + recall) if precision and recall else 0.0
    return {
        **({f"spice{suffix}": f_score} if stated or graph else {}),
        **({f"spice_precision{suffix}": precision} if stated else {}),
        **({f"spice_recall{suffix}": recall} if graph else {}),
    }


def _mean_matching(gains: Int[np.ndarray, "slots objects"]) -> Float[np.ndarray, "slots objects"]:
    """Return the mean over all matchings of slots to different objects with the greatest total gain.

    Dynamic programming over the slots: for each set of matched objects (a bit mask), the greatest gain so far, the
    number of matchings that reach it, and their sum.
    """
    states = {0: (0, 1.0, np.zeros(gains.shape))}
    for slot, row in enumerate(gains.tolist()):
        extended = dict(states)  # the slot is not matched
        for used, (gain, ways, sums) in states.items():
            for index, more in enumerate(row):
                if used >> index & 1:
                    continue
                key, matched = used | 1 << index, sums.copy()
                matched[slot, index] += ways
                previous = extended.get(key, (-1, 0.0, np.zeros(gains.shape)))
                if gain + more > previous[0]:
                    extended[key] = (gain + more, ways, matched)
                elif gain + more == previous[0]:
                    extended[key] = (previous[0], previous[1] + ways, previous[2] + matched)
        states = extended
    most = max(gain for gain, _, _ in states.values())
    best = [(ways, sums) for gain, ways, sums in states.values() if gain == most]
    return np.sum([sums for _, sums in best], axis=0) / sum(ways for ways, _ in best)


def constant_caption(scenes: Sequence[Sequence[SceneObject]]) -> str:
    """Return the list with the highest mean F on all scenes, found by greedy search.

    Phrases may state a size, the most frequent color and the most frequent shape: no other color or shape would be
    right more often.
    """
    graphs = [ShapeFacts(objects, 1) for objects in scenes]
    every_object = [one for objects in scenes for one in objects]
    frequent = {name: mode(one.attributes[name] for one in every_object) for name in ("color", "shape")}
    options = [[None, *SIZES], *([None, value] for value in frequent.values())]
    attributes = [{name: v for name, v in zip(ATTRIBUTES, values, strict=True) if v} for values in product(*options)]
    phrases = [phrase_of(one) for one in attributes if one]
    best, found = 0.0, list[str]()
    while len(found) < max(map(len, scenes)):
        score, phrase = max(
            (fmean(graph.spice(enumeration([*found, one])) for graph in graphs), one) for one in phrases
        )
        if score <= best:
            break
        best, found = score, [*found, phrase]
    return enumeration(found)
