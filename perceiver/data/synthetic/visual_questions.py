"""Questions about synthetic scenes of shapes, whose answers are classes: an image and a text are both needed.

There are four kinds of question, which are groups of samples with metrics of their own:

    count     how many red circles are there?                 zero to three
    color     what color is the star?                         a color
    shape     what shape is the red shape?                    a shape
    relation  is the red circle left of the blue square?      yes or no

Kind and answer are a function of the index, so that all answers of a kind are equally frequent. The answer is drawn
before the scene and independently of the words of the question, so that all answers to one question are equally
probable: the text alone says nothing but the kind. A scene has as many objects as the answer needs, otherwise their
number does not depend on it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Any, NamedTuple

from perceiver.data.sources.base import Item, OnError
from perceiver.data.synthetic.shape_captions import RELATION_PHRASES, noun_of
from perceiver.data.synthetic.shape_scenes import NUM_TEXTS, RenderedScenes
from perceiver.data.synthetic.shapes import (
    COLORS,
    RELATION_MARGIN,
    RELATIONS,
    SHAPES,
    ObjectSampler,
    Random,
    SceneObject,
    is_related,
    render,
)
from perceiver.types import Stage

NUMBERS = ("zero", "one", "two", "three")
ANSWERS: dict[str, Sequence[str]] = {
    "count": NUMBERS,
    "color": list(COLORS),
    "shape": SHAPES,
    "relation": ("yes", "no"),
}
"""Kind of question -> its answers."""
CLASS_NAMES = list(chain(*ANSWERS.values()))
PAIRS = [{"color": color, "shape": shape} for color, shape in product(COLORS, SHAPES)]
NAMED = (("color",), ("shape",), ("color", "shape"))
"""Attributes by which a question refers to objects."""
P_SIMILAR = 0.5
"""Probability that an object that is not counted has one of the two attributes of those that are."""


class Question(NamedTuple):
    """A question about a scene.

    Attributes:
        text: the question.
        objects: of the scene.
        referents: indices of the objects on which the answer depends.
    """

    text: str
    objects: list[SceneObject]
    referents: list[int]


class VisualQuestions(RenderedScenes):
    """Scenes and questions, the targets `label`, `group` (the kind of question) and, except in training, `boxes`.

    The boxes are those of the objects on which the answer depends, as boxes of its class.

    Args:
        num_classes: number of answers of all kinds, 19.
        kinds: of question that are used: `count`, `color`, `shape`, `relation`.
        image_size, num_samples, objects, seed: see `RenderedScenes`.
    """

    name = "visual_questions"
    roles = ("image", "text")

    def __init__(
        self,
        *,
        image_size: int,
        num_samples: Mapping[Stage, int],
        num_classes: int,
        objects: ObjectSampler,
        kinds: Sequence[str],
        seed: int,
    ) -> None:
        super().__init__(
            image_size=image_size, num_samples=num_samples, objects=objects, seed=seed, num_classes=num_classes
        )
        if num_classes != len(CLASS_NAMES):
            raise ValueError(f"num_classes={num_classes} must be {len(CLASS_NAMES)}, the number of answers")
        if not kinds or not set(kinds) <= set(ANSWERS):
            raise ValueError(f"kinds={list(kinds)} must be one or more of {', '.join(ANSWERS)}")
        self.kinds = list(kinds)

    @property
    def class_names(self) -> list[str]:
        return CLASS_NAMES

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        """Yield training questions."""
        return (self.question(self.random("train", index), index).text for index in range(NUM_TEXTS))

    def kind_and_answer(self, index: int) -> tuple[str, str]:
        """Return the kind and the answer of the question of a sample."""
        number, place = divmod(index, len(self.kinds))
        kind = self.kinds[place]
        return kind, ANSWERS[kind][number % len(ANSWERS[kind])]

    def question(self, random: Random, index: int) -> Question:
        kind, answer = self.kind_and_answer(index)
        return _QUESTIONS[kind](random, self.objects, answer)

    def sample_classes(self, stage: Stage, index: int) -> Sequence[int]:
        return [CLASS_NAMES.index(self.kind_and_answer(index)[1])]

    def item(self, stage: Stage, index: int, random: Random) -> Item:
        text, objects, referents = self.question(random, index)
        image = render(random, objects, self.image_size)
        [label] = self.sample_classes(stage, index)
        targets: dict[str, Any] = {"label": label, "group": self.kind_and_answer(index)[0]}
        if stage != "train":
            targets["boxes"] = [objects[i].box(self.image_size, label) for i in referents]
        return Item({"image": image, "text": text}, targets, self.sample_name(stage, index))


def _count(random: Random, sampler: ObjectSampler, answer: str) -> Question:
    names, example = NAMED[random.integers(len(NAMED))], _choice(random, PAIRS)
    wanted = {name: example[name] for name in names}
    counted = [pair for pair in PAIRS if wanted.items() <= pair.items()]
    others = [pair for pair in PAIRS if pair not in counted]
    similar = [pair for pair in others if wanted.items() & pair.items()] or others
    number = NUMBERS.index(answer)
    total = max(number, sampler.count(random))
    pairs = [_choice(random, counted) for _ in range(number)]
    pairs += [_choice(random, similar if random.random() < P_SIMILAR else others) for _ in range(total - number)]
    text = f"how many {noun_of(wanted, plural=True)} are there?"
    return Question(text, _place(random, sampler, pairs), list(range(number)))


def _color(random: Random, sampler: ObjectSampler, answer: str) -> Question:
    return _attribute(random, sampler, {"color": answer}, "shape")


def _shape(random: Random, sampler: ObjectSampler, answer: str) -> Question:
    return _attribute(random, sampler, {"shape": answer}, "color")


def _attribute(random: Random, sampler: ObjectSampler, answer: Mapping[str, str], known: str) -> Question:
    """Ask for an attribute of the only object with another, known one."""
    [(name, value)] = answer.items()
    given = _choice(random, PAIRS)[known]
    others = [pair for pair in PAIRS if pair[known] != given]
    pairs = [{name: value, known: given}, *(_choice(random, others) for _ in range(sampler.count(random) - 1))]
    return Question(f"what {name} is the {noun_of({known: given})}?", _place(random, sampler, pairs), [0])


def _relation(random: Random, sampler: ObjectSampler, answer: str) -> Question:
    """Ask for the relation of two objects of a scene in which no two have the same color and shape."""
    chosen = random.choice(len(PAIRS), max(sampler.count(random), 2), replace=False)
    while True:
        objects = _place(random, sampler, [PAIRS[i] for i in chosen])
        one, other = objects[:2]
        if axes := [axis for axis in "xy" if abs(getattr(one, axis) - getattr(other, axis)) >= RELATION_MARGIN]:
            break
    axis = axes[random.integers(len(axes))]
    words = [
        word for word in RELATIONS if RELATIONS[word][0] == axis and is_related(word, one, other) == (answer == "yes")
    ]
    phrases = [phrase for word in words for phrase in RELATION_PHRASES[word]]
    nouns = [_unique_noun(random, objects, referent) for referent in (one, other)]
    return Question(f"is the {nouns[0]} {phrases[random.integers(len(phrases))]} the {nouns[1]}?", objects, [0, 1])


def _unique_noun(random: Random, objects: Sequence[SceneObject], one: SceneObject) -> str:
    """Draw a noun phrase that is true of one of the objects only."""
    options = [{name: one.attributes[name] for name in names} for names in NAMED]
    unique = [option for option in options if sum(option.items() <= it.attributes.items() for it in objects) == 1]
    return noun_of(unique[random.integers(len(unique))])


_QUESTIONS: dict[str, Callable[[Random, ObjectSampler, str], Question]] = {
    "count": _count,
    "color": _color,
    "shape": _shape,
    "relation": _relation,
}
"""Kind -> function that draws a scene and a question with the given answer."""


def _choice(random: Random, pairs: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
    return pairs[int(random.integers(len(pairs)))]


def _place(random: Random, sampler: ObjectSampler, pairs: Sequence[Mapping[str, str]]) -> list[SceneObject]:
    return sampler.place(random, [(pair["color"], pair["shape"]) for pair in pairs])
