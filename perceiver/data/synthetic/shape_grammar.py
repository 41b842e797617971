"""A small English of shapes: scenes -> captions, and captions -> what they state.

A caption is a list ("there is a small red circle, a star and two blue squares") or a relation ("a cross is left of a
large shape", "below a cyan star there is a circle"). Phrases leave out some of size, colour and shape. "a" states that
there is such a thing, a number that there are exactly so many. What of it is true is told by
`perceiver.data.synthetic.scene_graph`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perceiver.data.synthetic.shape_scene import (
    COLOURS,
    RELATION_MARGIN,
    RELATIONS,
    SHAPES,
    SIZES,
    Random,
    Thing,
    holds,
)
from perceiver.tokenizer import split_words

ATTRIBUTES = ("size", "colour", "shape")
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
    words = split_words(caption)
    words = [word.lower() for word in words]
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
            phrases.append((min(things[i].x for i in alike), phrase_of(said, len(alike))))
            rest -= alike
    for thing in (things[i] for i in rest):
        phrase = _of(thing, random)
        repeated = phrase in [before for _, before in phrases]
        phrases.append((thing.x, phrase_of(thing.attributes) if repeated else phrase))
    phrases = sorted(phrases) if left_to_right else [phrases[i] for i in random.permutation(len(phrases))]
    text = listed([phrase for _, phrase in phrases])
    return OPENINGS[random.integers(len(OPENINGS))].format(be="is" if text.startswith("a ") else "are") + text


def listed(phrases: Sequence[str]) -> str:
    """Phrases as a list in a sentence."""
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
    return phrase_of(said or thing.attributes)


def phrase_of(said: Mapping[str, str], count: int = 1) -> str:
    """What is said of one thing, or of each of several, by kind of attribute -> a phrase."""
    noun = said.get("shape", "shape")
    number, noun = ("a", noun) if count == 1 else (list(COUNTS)[count - 2], PLURALS[noun])
    return " ".join([number, *(said[kind] for kind in ("size", "colour") if kind in said), noun])
