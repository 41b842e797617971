"""English phrases and their French translations from a small grammar, with the alignment of their words.

    I love you                      je t'aime                           clitics before the verb, elision
    she does not see the cat        elle ne voit pas le chat            negation around the verb
    my old red cars are small       mes vieilles voitures rouges sont petites     agreement, adjectives after the noun
    he finds two birds in a tree    il trouve deux oiseaux dans un arbre

Some combinations, of a pronoun, a verb and a pronoun, or of an adjective and a noun, are held out: they occur in test
phrases only, whose metrics are also reported as a group of their own (`unseen`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, TypeVar

from perceiver.data.sources.generated import Random
from perceiver.data.synthetic.aligned_texts import AlignedPair, AlignedTexts
from perceiver.types import Stage

SUBJECTS = {"I": "je", "you": "tu", "he": "il", "she": "elle", "we": "nous", "they": "ils"}
OBJECTS = {"me": "me", "you": "te", "him": "le", "her": "la", "us": "nous", "them": "les"}
REFLEXIVE = {"I": "me", "you": "you", "he": "him", "she": "her", "we": "us", "they": "them"}
"""The object that is the subject itself, which French expresses differently."""
VERBS = {
    "love": ("aime", "aimes", "aime", "aimons", "aiment"),
    "help": ("aide", "aides", "aide", "aidons", "aident"),
    "hear": ("entends", "entends", "entend", "entendons", "entendent"),
    "see": ("vois", "vois", "voit", "voyons", "voient"),
    "know": ("connais", "connais", "connaît", "connaissons", "connaissent"),
    "seek": ("cherche", "cherches", "cherche", "cherchons", "cherchent"),
    "find": ("trouve", "trouves", "trouve", "trouvons", "trouvent"),
    "draw": ("dessine", "dessines", "dessine", "dessinons", "dessinent"),
}
"""Forms with je, tu, il or elle, nous, ils."""
PERSONS = {"I": 0, "you": 1, "he": 2, "she": 2, "we": 3, "they": 4}
BE = ("suis", "es", "est", "sommes", "sont")


class Noun(NamedTuple):
    """A noun: English plural, French singular and plural, and whether it is feminine."""

    plural: str
    french: str
    french_plural: str
    feminine: bool


NOUNS = {
    "cat": Noun("cats", "chat", "chats", False),
    "dog": Noun("dogs", "chien", "chiens", False),
    "bird": Noun("birds", "oiseau", "oiseaux", False),
    "tree": Noun("trees", "arbre", "arbres", False),
    "man": Noun("men", "homme", "hommes", False),
    "child": Noun("children", "enfant", "enfants", False),
    "book": Noun("books", "livre", "livres", False),
    "woman": Noun("women", "femme", "femmes", True),
    "house": Noun("houses", "maison", "maisons", True),
    "car": Noun("cars", "voiture", "voitures", True),
    "flower": Noun("flowers", "fleur", "fleurs", True),
    "church": Noun("churches", "église", "églises", True),
}
BEFORE = {
    "small": ("petit", "petit", "petite", "petits", "petites"),
    "big": ("grand", "grand", "grande", "grands", "grandes"),
    "beautiful": ("beau", "bel", "belle", "beaux", "belles"),
    "old": ("vieux", "vieil", "vieille", "vieux", "vieilles"),
    "young": ("jeune", "jeune", "jeune", "jeunes", "jeunes"),
}
AFTER = {
    "red": ("rouge", "rouge", "rouge", "rouges", "rouges"),
    "green": ("vert", "vert", "verte", "verts", "vertes"),
    "black": ("noir", "noir", "noire", "noirs", "noires"),
    "white": ("blanc", "blanc", "blanche", "blancs", "blanches"),
    "blue": ("bleu", "bleu", "bleue", "bleus", "bleues"),
}
"""Adjectives before and after the noun: masculine, the same before a vowel, feminine, and plurals of both."""
ADJECTIVES = {**BEFORE, **AFTER}
DETERMINERS = {"the": ("le", "la", "les"), "my": ("mon", "ma", "mes"), "your": ("ton", "ta", "tes")}
"""Masculine, feminine, plural."""
NUMBERS = {
    "two": "deux",
    "three": "trois",
    "four": "quatre",
    "five": "cinq",
    "six": "six",
    "seven": "sept",
    "eight": "huit",
    "nine": "neuf",
    "ten": "dix",
}
PREPOSITIONS = {"in": "dans", "under": "sous", "with": "avec"}
ELIDED = {"je": "j'", "me": "m'", "te": "t'", "le": "l'", "la": "l'", "ne": "n'", "de": "d'"}
POSSESSIVES = {"ma": "mon", "ta": "ton"}
"""Before a vowel."""
VOWELS = "aeiouhéê"
"""First letters before which words are elided; every h of the grammar is silent."""
PLURALS = (3, 4)
"""The plural forms among them."""
P_BEING, P_NEGATION, P_NOUN_SUBJECT, P_PRONOUN_OBJECT, P_SECOND, P_PLACE = 0.25, 0.3, 0.4, 0.5, 0.15, 0.25
"""Probabilities of `is`, `not`, a subject with a noun, a pronoun as the object, `and`, and a place."""
P_PLURAL, P_ADJECTIVE = 0.4, 0.3
"""Probabilities of a plural where it is optional, and of an adjective before the noun and after it."""
AdjectiveNoun: TypeAlias = tuple[str, str]

Choice = TypeVar("Choice")


@dataclass
class Draft:
    """A pair of texts as far as it is drawn, and the combinations of words in it.

    Attributes:
        english: words.
        french: words, each with the numbers of the English words that it comes from.
        combinations: held out or not.
    """

    english: list[str] = field(default_factory=list)
    french: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    combinations: set[str] = field(default_factory=set)

    def read(self, word: str) -> int:
        """Append an English word and return its number."""
        self.english.append(word)
        return len(self.english) - 1

    def write(self, word: str, *links: int) -> None:
        """Append a French word that comes from English ones."""
        self.french.append((word, links))

    def pair(self, group: str) -> AlignedPair:
        """Return the texts, with elisions and the forms of possessives before a vowel."""
        words = [word for word, _ in self.french]
        links = [list(numbers) for _, numbers in self.french]
        for place, following in enumerate(words[1:]):
            if following[0] in VOWELS:
                words[place] = ELIDED.get(words[place], POSSESSIVES.get(words[place], words[place]))
        target = "".join(word if word.endswith("'") else f"{word} " for word in words).rstrip()
        return AlignedPair(" ".join(self.english), target, links, group)


class Wanted(NamedTuple):
    """A combination that a phrase must contain: a subject, a verb and an object, or an adjective and a noun."""

    clause: tuple[str, str, str] | None = None
    noun: AdjectiveNoun | None = None


ANY = Wanted()


def combination(text: str) -> Wanted:
    """Parse a combination such as `I love you` or `red house`.

    Raises:
        ValueError: it is not one of the grammar.
    """
    match text.split():
        case [subject, verb, thing] if subject in SUBJECTS and verb in VERBS and thing in OBJECTS:
            if REFLEXIVE[subject] != thing:
                return Wanted(clause=(subject, verb, thing))
        case [adjective, noun] if adjective in ADJECTIVES and noun in NOUNS:
            return Wanted(noun=(adjective, noun))
    raise ValueError(f"held_out: {text!r} must be a pronoun, a verb and a pronoun, or an adjective and a noun")


class Phrases(AlignedTexts):
    """English phrases and their French translations.

    Args:
        held_out: combinations that only test phrases have, such as `I love you` or `red house`, also in negations and
            plurals.
        unseen_fraction: fraction of the test phrases that have one.
        num_samples, seed: see `AlignedTexts`.

    Raises:
        ValueError: `held_out` has a combination that the grammar does not have, or the fraction is not in [0, 1].
    """

    name = "phrases"

    def __init__(
        self, *, held_out: Sequence[str], unseen_fraction: float, num_samples: Mapping[Stage, int], seed: int
    ) -> None:
        super().__init__(num_samples=num_samples, seed=seed)
        if not 0.0 <= unseen_fraction <= 1.0:
            raise ValueError(f"unseen_fraction={unseen_fraction} must be in [0, 1]")
        if unseen_fraction and not held_out:
            raise ValueError(f"unseen_fraction={unseen_fraction} must be 0 without held_out combinations")
        self.held_out = {text: combination(text) for text in held_out}
        self.unseen_fraction = unseen_fraction

    def draw(self, random: Random, stage: Stage) -> AlignedPair:
        if stage == "test" and random.random() < self.unseen_fraction:
            return sentence(random, choice(random, list(self.held_out.values()))).pair("unseen")
        while True:
            draft = sentence(random)
            if not draft.combinations & self.held_out.keys():
                return draft.pair("")


def choice(random: Random, options: Sequence[Choice]) -> Choice:
    """Draw one of several options."""
    return options[int(random.integers(len(options)))]


def sentence(random: Random, wanted: Wanted = ANY) -> Draft:
    """Draw a sentence that contains a combination."""
    draft = Draft()
    negated = random.random() < P_NEGATION
    if wanted.clause is None and random.random() < P_BEING:
        _being(draft, random, wanted.noun, negated=negated)
    else:
        _action(draft, random, wanted, negated=negated)
    return draft


def _being(draft: Draft, random: Random, wanted: AdjectiveNoun | None, *, negated: bool) -> None:
    """`my cats are not small`: a noun phrase, and an adjective that agrees with it or a place."""
    form = _noun_phrase(draft, random, wanted=wanted)
    plural = form in PLURALS
    verb = draft.read("are" if plural else "is")
    negation = (draft.read("not"),) if negated else ()
    _write_verb(draft, BE[PERSONS["they" if plural else "he"]], verb, negation)
    if random.random() < P_PLACE:
        _place(draft, random)
    else:
        adjective = choice(random, [*ADJECTIVES])
        draft.write(ADJECTIVES[adjective][form], draft.read(adjective))


def _action(draft: Draft, random: Random, wanted: Wanted, *, negated: bool) -> None:
    """`he does not see me in the house`: a subject, a verb and an object."""
    subject, verb, thing = wanted.clause or (choice(random, [*SUBJECTS]), choice(random, [*VERBS]), None)
    noun = wanted.noun
    if wanted.clause is None and random.random() < P_NOUN_SUBJECT:
        form = _noun_phrase(draft, random, wanted=noun)
        subject, noun = ("they" if form in PLURALS else "he"), None
        is_pronoun = False
    else:
        draft.write(SUBJECTS[subject], draft.read(subject))
        is_pronoun = True
    third = subject in ("he", "she")
    negation = (draft.read("does" if third else "do"), draft.read("not")) if negated else ()
    number = draft.read(f"{verb}s" if third and not negated else verb)
    french = VERBS[verb][PERSONS[subject]]
    if thing is None and noun is None and random.random() < P_PRONOUN_OBJECT:
        thing = choice(random, [one for one in OBJECTS if one != REFLEXIVE[subject]])
    if thing is None:
        _write_verb(draft, french, number, negation)
        _noun_phrase(draft, random, negated=negated, wanted=noun)
        if not negated and random.random() < P_SECOND:
            draft.write("et", draft.read("and"))
            _noun_phrase(draft, random)
    else:
        if is_pronoun:
            draft.combinations.add(f"{subject} {verb} {thing}")
        _write_verb(draft, french, number, negation, clitic=(OBJECTS[thing], draft.read(thing)))
    if random.random() < P_PLACE:
        _place(draft, random)


def _write_verb(
    draft: Draft, verb: str, link: int, negation: tuple[int, ...], clitic: tuple[str, int] | None = None
) -> None:
    """Write a verb with its clitic and negation: `ne t'aime pas`."""
    if negation:  # `ne` has no counterpart of its own
        draft.write("ne", *sorted({link, *negation}) if len(negation) == 1 else negation)
    if clitic is not None:
        draft.write(*clitic)
    draft.write(verb, link)
    if negation:
        draft.write("pas", negation[-1])


def _place(draft: Draft, random: Random) -> None:
    preposition = choice(random, [*PREPOSITIONS])
    draft.write(PREPOSITIONS[preposition], draft.read(preposition))
    _noun_phrase(draft, random)


def _noun_phrase(draft: Draft, random: Random, *, negated: bool = False, wanted: AdjectiveNoun | None = None) -> int:
    """Append a noun phrase.

    Args:
        draft: what it is appended to.
        random: draws it.
        negated: whether it is the object of a negation, in which `a` is `de` rather than `un`.
        wanted: an adjective and a noun that it has.

    Returns:
        The form of adjectives that agree with it, see `ADJECTIVES`.
    """
    noun = wanted[1] if wanted else choice(random, [*NOUNS])
    english_plural, singular, plural, feminine = NOUNS[noun]
    kind = choice(random, [*DETERMINERS, "the", "a", "number"])
    is_plural = kind == "number" or (kind != "a" and random.random() < P_PLURAL)
    form = 3 + feminine if is_plural else 2 * feminine
    before, after = (choice(random, [*words]) if random.random() < P_ADJECTIVE else None for words in (BEFORE, AFTER))
    if wanted:
        before, after = (wanted[0], after) if wanted[0] in BEFORE else (before, wanted[0])
    adjectives = [one for one in (before, after) if one]
    draft.combinations |= {f"{adjective} {noun}" for adjective in adjectives}
    first = choice(random, [*NUMBERS]) if kind == "number" else kind
    words = [*adjectives, english_plural if is_plural else noun]
    number, *numbers = map(draft.read, ["an" if first == "a" and words[0][0] in "aeiou" else first, *words])
    french = plural if is_plural else singular
    if kind == "number":
        draft.write(NUMBERS[first], number)
    elif kind == "a":
        draft.write("de" if negated else "une" if feminine else "un", number)
    else:
        draft.write(DETERMINERS[kind][2 if is_plural else feminine], number)
    if before:
        draft.write(BEFORE[before][1 if form == 0 and french[0] in VOWELS else form], numbers[0])
    draft.write(french, numbers[-1])
    if after:
        draft.write(AFTER[after][form], numbers[-2])
    return form
