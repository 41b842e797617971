"""Phrases follow the grammar, their alignment is true, and held-out combinations occur in test phrases only."""

import pytest

from perceiver.data.synthetic.aligned_texts import AlignedPair, AlignedTexts
from perceiver.data.synthetic.phrases import ADJECTIVES, NOUNS, NUMBERS, OBJECTS, SUBJECTS, VERBS, Phrases, combination
from perceiver.data.synthetic.reversed_numbers import ReversedNumbers
from perceiver.tokenizer import split_words

NUM = {"train": 1009, "val": 53, "test": 211}
HELD_OUT = ["I love you", "red house"]


def phrases(**overrides) -> Phrases:
    return Phrases(**({"num_samples": NUM, "held_out": HELD_OUT, "unseen_fraction": 0.5, "seed": 3} | overrides))


def numbers(**overrides) -> ReversedNumbers:
    return ReversedNumbers(**({"num_samples": NUM, "num_values": 37, "lengths": (3, 11), "seed": 3} | overrides))


def pairs(source: AlignedTexts) -> dict[str, list[AlignedPair]]:
    return {stage: [source.pair(stage, index) for index in range(NUM[stage])] for stage in NUM}


@pytest.mark.parametrize("make", [phrases, numbers])
def test_pairs_are_a_function_of_the_seed_and_tested_inputs_are_not_trained_on(make):
    found = pairs(make())
    assert found == pairs(make())
    assert found != pairs(make(seed=5))
    trained = {pair.source for pair in found["train"]}
    assert not trained & {pair.source for stage in ("val", "test") for pair in found[stage]}
    assert list(make().text_pairs()) == [(pair.source, pair.target) for pair in found["train"]]


def test_held_out_combinations_are_a_group_of_test_phrases():
    found = pairs(phrases())
    unseen = [pair for pair in found["test"] if pair.group == "unseen"]
    assert len(unseen) / NUM["test"] == pytest.approx(0.5, abs=0.1)
    for pair in unseen:
        words = split_words(pair.source.replace(" do not ", " "))
        assert words[:3] == ["I", "love", "you"] or {"red"} < {*words} & {"red", "house", "houses"}
    for pair in (pair for stage in NUM for pair in found[stage] if pair.group == ""):
        text = pair.source.replace(" do not ", " ")
        assert not any(phrase in text for phrase in ("I love you", "red house"))
    for text in ("I love me", "red dwarf", "love", "big red house"):
        with pytest.raises(ValueError, match=f"held_out: '{text}'"):
            combination(text)
    with pytest.raises(ValueError, match=r"unseen_fraction=0\.5"):
        phrases(held_out=[])


def test_the_grammar_gives_agreement_elision_clitics_and_negation():
    texts = {pair.source: pair.target for of_stage in pairs(phrases()).values() for pair in of_stage}
    assert texts["I love you"] == "je t'aime"
    french = f" {' '.join(texts.values())}"
    assert not any(
        f" {wrong}" in french for wrong in ("le arbre", "je aime", "ne aime", "me aime", "ma église", "beau oiseau")
    )
    words = {word for text in texts.values() for word in split_words(text, elision=True)}
    assert {"l'", "j'", "n'", "m'", "t'", "d'"} <= words
    for source, target in texts.items():
        assert (" not " in source) == (" pas" in target)
    english = {word for text in texts for word in split_words(text)}
    assert 60 <= len(english) <= 150
    assert {*SUBJECTS, *OBJECTS, *NUMBERS, *ADJECTIVES, *NOUNS, *VERBS} <= english


def test_every_french_word_is_linked_to_the_english_one_that_it_translates():
    forms = {form: name for words in (VERBS, ADJECTIVES) for name, found in words.items() for form in found}
    forms |= {form: name for name, noun in NOUNS.items() for form in (noun.french, noun.french_plural)}
    forms |= {french: name for name, french in NUMBERS.items()}
    for pair in phrases().training_pairs:
        source, target = split_words(pair.source), split_words(pair.target, elision=True)
        assert len(target) == len(pair.links)
        for word, links in zip(target, pair.links, strict=True):
            linked = [source[link] for link in links]
            if word in ("ne", "n'"):
                assert linked in ([verb, "not"] for verb in ("do", "does", "is", "are"))
            elif word in forms:
                name = forms[word]
                names = {name, NOUNS[name].plural} if name in NOUNS else {name, f"{name}s"}
                assert len(linked) == 1
                assert linked[0] in names


def test_facts_locate_the_words_up_to_the_first_wrong_one():
    facts = AlignedPair("I do not love you.", "je ne t'aime pas.", [[0], [1, 2], [4], [3], [2], [5]]).facts
    mentions = facts.mentions("Je ne t'aime plus.")
    assert [one.word for one in mentions] == [0, 1, 2, 3]
    assert [[box.ranges["word"] for box in one.boxes] for one in mentions] == [
        [(0.0, 1.0)],
        [(1.0, 2.0), (2.0, 3.0)],
        [(4.0, 5.0)],
        [(3.0, 4.0)],
    ]
    item = phrases().items("test", {})[0]
    assert item.parts["text"]
    assert len(item.targets["facts"].mentions(item.targets["caption"])) == len(item.targets["facts"].words)
    assert "facts" not in phrases().items("train", {})[0].targets


def test_numbers_are_reversed_and_linked_in_reverse():
    for pair in numbers().training_pairs:
        source, target = pair.source.split(), pair.target.split()
        assert target == source[::-1]
        assert [source[link] for (link,) in pair.links] == target
        assert 3 <= len(source) <= 11
    with pytest.raises(ValueError, match=r"lengths=\[5, 3\]"):
        numbers(lengths=(5, 3))
