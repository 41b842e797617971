"""Text to ids and back, by bytes, words and byte-pair encoding."""

import os
import pickle
import random
import subprocess
import sys
from collections import Counter

import pytest
import tokenizers
import torch
from torch.utils.data import DataLoader

from perceiver.tokenizer import (
    BOS,
    EOS,
    FIRST_BYTE,
    PAD,
    SPECIAL,
    UNKNOWN,
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    WordTokenizer,
    words_in,
)
from tests.runs import ROOT

TEXTS = [
    *("a red square above a blue circle", "two red circles, one blue star", "A red star (small), and a large one!"),
    *("there is a t-shirt; don't wear it", "naïve cafés: 3 of 5?", "the star's colour is red", "हिन्दी 2 m² 😀"),
]
LONG = 499
"""More ids than any text here has."""


def byte_tokenizer(max_length=LONG) -> ByteTokenizer:
    return ByteTokenizer(vocab_size=262, max_length=max_length)


def word_tokenizer(texts=TEXTS, *, vocab_size=211, max_length=LONG, lowercase=True, min_frequency=1) -> WordTokenizer:
    tokenizer = WordTokenizer(
        vocab_size=vocab_size, max_length=max_length, lowercase=lowercase, min_frequency=min_frequency
    )
    tokenizer.train(texts)
    return tokenizer


def bpe_tokenizer(texts=TEXTS, *, vocab_size=283, max_length=LONG, lowercase=False) -> BPETokenizer:
    tokenizer = BPETokenizer(vocab_size=vocab_size, max_length=max_length, lowercase=lowercase)
    tokenizer.train(texts)
    return tokenizer


KINDS = {"bytes": byte_tokenizer, "words": word_tokenizer, "bpe": bpe_tokenizer}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
trained_kind = pytest.mark.parametrize("make", [word_tokenizer, bpe_tokenizer], ids=["words", "bpe"])


def any_texts(count: int) -> list[str]:
    """Texts of random code points from everywhere, surrogates, marks and control characters among them."""
    chance = random.Random(3)
    ends = (0x80, 0x370, 0x3000, 0x11000, 0x110000)
    return [
        "".join(chr(chance.randrange(chance.choice(ends))) for _ in range(chance.randrange(13))) for _ in range(count)
    ]


ODD_TEXTS = [
    *("", " ", "\n\t", "\0", "👩‍👩‍👧 family", "e\u0301 é", "Å Å", "ﬁ", "İstanbul ẞ", "\u202eabc", "a\u0300\u0301"),
    *("\ud800", "a \udfff b", "\ud83d\ude00", "<pad> <bos> <eos> <unk>", "<eos>", "a<bos>b", "\ufffd", "�" * 3),
    *("हिन्दी", "日本語 テキスト", "m²", "x" * 97, " a  b ", "a\u00a0b"),
]


def readable(text: str) -> str:
    """A text as it can be written down: lone surrogates are no characters."""
    return text.encode("utf-8", errors="replace").decode()


class TestRoundTrips:
    @pytest.mark.parametrize("texts", [ODD_TEXTS, any_texts(499)], ids=["odd", "any"])
    def test_bytes_give_back_any_text(self, texts):
        tokenizer = byte_tokenizer()
        for text in texts:
            assert tokenizer.decode(tokenizer.encode(text).tolist()) == readable(text)

    @pytest.mark.parametrize("lowercase", [False, True])
    @pytest.mark.parametrize("texts", [ODD_TEXTS, any_texts(499)], ids=["odd", "any"])
    def test_byte_pairs_give_back_any_text_in_its_normal_form(self, texts, lowercase):
        tokenizer = bpe_tokenizer(lowercase=lowercase)
        for text in texts:
            expected = tokenizer.normalizer.normalize_str(readable(text))
            ids = tokenizer.encode(text).tolist()
            assert tokenizer.decode(ids) == expected
            assert set(ids[1:-1]).isdisjoint(range(len(SPECIAL)))

    @pytest.mark.parametrize("texts", [ODD_TEXTS, any_texts(199)], ids=["odd", "any"])
    def test_words_give_back_the_words_of_any_text_that_they_were_learned_from(self, texts):
        tokenizer = word_tokenizer(texts, vocab_size=9973, lowercase=False)
        for text in texts:
            ids = tokenizer.encode(text).tolist()
            read = tokenizer.normalizer.normalize_str(readable(text))
            assert words_of(tokenizer.decode(ids)) == words_of(read)
            assert (UNKNOWN in ids) == ("<unk>" in read)

    def test_what_is_written_is_read_again_as_it_was(self):
        tokenizer, chance = word_tokenizer(), random.Random(5)
        for length in range(2, 23):
            ids = [BOS, *chance.choices(range(len(SPECIAL), tokenizer.num_ids), k=length), EOS]
            assert tokenizer.encode(tokenizer.decode(ids)).tolist() == ids

    @pytest.mark.parametrize(
        ("text", "written"),
        [
            ("there is a red star, and a blue one!", "there is a red star, and a blue one!"),
            ("THE  red star's\ncolour", "the red star's colour"),
            ("a small ( red ) star : one", "a small ( red) star: one"),
            ("a t-shirt; don't?", "a t-shirt; don't?"),
            ("a green elephant", "a <unk> <unk>"),
            ("a <unk> star", "a <unk> star"),
        ],
    )
    def test_words_are_written_with_spaces_and_marks_that_close_without(self, text, written):
        tokenizer = word_tokenizer([*TEXTS, "( :"])
        assert tokenizer.decode(tokenizer.encode(text).tolist()) == written


class TestFrame:
    @every_kind
    def test_a_text_stands_between_begin_and_end(self, make):
        tokenizer = make()
        assert tokenizer.encode("").tolist() == [BOS, EOS]
        for text in TEXTS:
            first, *content, last = tokenizer.encode(text).tolist()
            assert (first, last) == (BOS, EOS)
            assert content
            assert {BOS, EOS, PAD}.isdisjoint(content)
            assert max(content) < tokenizer.num_ids <= tokenizer.vocab_size

    @every_kind
    @pytest.mark.parametrize("max_length", [3, 5, 7])
    def test_what_is_cut_off_ends_all_the_same(self, make, max_length):
        whole = make().encode(TEXTS[0]).tolist()
        cut = make(max_length=max_length).encode(TEXTS[0]).tolist()
        assert cut == [*whole[: max_length - 1], EOS]
        assert make(max_length=max_length).begin(TEXTS[0]).tolist() == whole[:max_length], "but not one that may go on"

    @every_kind
    def test_a_text_of_the_greatest_length_is_not_cut(self, make):
        whole = make().encode(TEXTS[0])
        assert make(max_length=len(whole)).encode(TEXTS[0]).equal(whole)
        assert len(make(max_length=len(whole) - 1).encode(TEXTS[0])) == len(whole) - 1

    @every_kind
    def test_a_batch_is_filled_up_behind(self, make):
        tokenizer = make()
        texts = [TEXTS[1], "", TEXTS[0], "a"]
        batch = tokenizer.encode_batch(texts)
        assert batch.dtype == torch.long
        assert batch.shape == (4, max(len(tokenizer.encode(text)) for text in texts))
        for text, row in zip(texts, batch, strict=True):
            alone = tokenizer.encode(text)
            assert row[: len(alone)].equal(alone)
            assert (row[len(alone) :] == PAD).all()
            assert tokenizer.decode(row.tolist()) == tokenizer.decode(alone.tolist())

    @every_kind
    def test_nothing_behind_the_end_is_read(self, make):
        tokenizer = make()
        ids = tokenizer.encode("a red star").tolist()
        assert tokenizer.decode([*ids, *ids]) == tokenizer.decode(ids) == tokenizer.decode(ids[1:-1]) == "a red star"
        assert tokenizer.decode([]) == tokenizer.decode([EOS, *ids]) == ""


def test_bytes_are_numbered_as_in_perceiver_io():
    """DeepMind's tokenizer: six ids for special use, PAD, BOS and EOS first, then the bytes."""
    tokenizer = byte_tokenizer()
    assert (PAD, BOS, EOS, FIRST_BYTE, tokenizer.num_ids) == (0, 1, 2, 6, 256 + 6)
    text = "A é 😀"
    assert tokenizer.encode(text).tolist() == [1, *(byte + 6 for byte in text.encode()), 2]


class TestWords:
    @every_kind
    @pytest.mark.parametrize("texts", [TEXTS, ODD_TEXTS, any_texts(97)], ids=["plain", "odd", "any"])
    def test_they_are_those_of_the_text_and_no_id_is_in_two(self, make, texts):
        tokenizer = make()
        for text in texts:
            ids = tokenizer.encode(text).tolist()
            found = tokenizer.words(ids)
            assert [word.text for word in found] == words_of(tokenizer.decode(ids))
            places = [place for word in found for place in word.places]
            assert places == sorted(set(places))
            assert set(places) <= set(range(1, len(ids) - 1))

    @every_kind
    def test_together_they_have_every_id_that_is_not_space(self, make):
        tokenizer = make()
        for text in [*TEXTS, "日本 é👩‍👩‍👧 x"]:
            ids = tokenizer.encode(text).tolist()
            rest = set(range(1, len(ids) - 1)) - {place for word in tokenizer.words(ids) for place in word.places}
            left = [tokenizer.decode([ids[place]]) for place in rest]
            assert [one for one in left if one.strip(" \u200d\ufe0f")] == []
            assert all(word.places for word in tokenizer.words(ids))

    @every_kind
    def test_the_ids_of_a_word_alone_are_that_word(self, make):
        tokenizer = make()
        ids = tokenizer.encode("there is a naïve red star, don't").tolist()
        words = tokenizer.words(ids)
        assert [word.text for word in words] == ["there", "is", "a", "naïve", "red", "star", ",", "don't"]
        assert [tokenizer.decode([ids[place] for place in word.places]).strip() for word in words] == [
            word.text for word in words
        ]

    @every_kind
    def test_padding_before_and_behind_moves_places_and_nothing_else(self, make):
        tokenizer = make()
        ids = tokenizer.encode(TEXTS[2]).tolist()
        plain, moved = tokenizer.words(ids), tokenizer.words([PAD, PAD, *ids, PAD])
        assert [word.text for word in moved] == [word.text for word in plain]
        assert [tuple(place - 2 for place in word.places) for word in moved] == [word.places for word in plain]

    def test_a_text_that_ends_within_a_character_has_a_word_for_what_is_there(self):
        tokenizer = byte_tokenizer()
        ids = tokenizer.encode("a 😀").tolist()[:-3]  # without EOS and two bytes of four
        assert [(word.text, word.places) for word in tokenizer.words(ids)] == [("a", (1,)), ("\ufffd", (3,))]


class TestPieces:
    @every_kind
    @pytest.mark.parametrize("text", [text for text in TEXTS if text.isascii()])
    def test_each_id_has_one_and_together_they_are_the_text(self, make, text):
        tokenizer = make()
        ids = tokenizer.encode(text).tolist()
        pieces = tokenizer.pieces(ids)
        assert len(pieces) == len(ids)
        assert (pieces[0], pieces[-1]) == (SPECIAL[BOS], SPECIAL[EOS])
        assert "".join(pieces[1:-1]).replace(" ", "") == tokenizer.decode(ids).replace(" ", "")

    @every_kind
    def test_ids_that_are_no_text_are_named(self, make):
        assert make().pieces([PAD, BOS, EOS, UNKNOWN, PAD]) == ["<pad>", "<bos>", "<eos>", "<unk>", "<pad>"]

    def test_words_are_whole_and_a_part_of_a_character_is_a_sign_for_that(self):
        words = word_tokenizer()
        assert words.pieces(words.encode("two red circles").tolist())[1:-1] == ["two", "red", "circles"]
        assert byte_tokenizer().pieces(byte_tokenizer().encode("é").tolist())[1:-1] == ["\ufffd"] * 2


def words_of(text: str) -> list[str]:
    return [word.group() for word in words_in(text)]


class TestVocabulary:
    @trained_kind
    def test_what_was_learned_can_be_taken_over(self, make):
        trained = make()
        other = make(["something else"])
        assert other.vocabulary != trained.vocabulary
        other.restore(trained.vocabulary)
        assert other.vocabulary == trained.vocabulary
        assert other.num_ids == trained.num_ids
        for text in [*TEXTS, *ODD_TEXTS]:
            ids = trained.encode(text).tolist()
            assert other.encode(text).tolist() == ids
            assert other.decode(ids) == trained.decode(ids)

    @trained_kind
    def test_before_anything_is_learned_the_error_says_so(self, make):
        kind = type(make())
        options = {"min_frequency": 1} if kind is WordTokenizer else {}
        tokenizer = kind(vocab_size=283, max_length=7, lowercase=True, **options)
        assert not tokenizer.is_trained
        for use in (lambda: tokenizer.encode("a"), lambda: tokenizer.decode([5]), lambda: tokenizer.num_ids):
            with pytest.raises(ValueError, match=r"not learned a vocabulary"):
                use()
        tokenizer.train(TEXTS)
        assert tokenizer.is_trained

    def test_bytes_have_nothing_to_learn(self):
        tokenizer = byte_tokenizer()
        assert tokenizer.is_trained
        assert tokenizer.vocabulary is None
        before = tokenizer.encode(TEXTS[0])
        tokenizer.train(["other", "texts"])
        tokenizer.restore("whatever")
        assert tokenizer.encode(TEXTS[0]).equal(before)

    def test_words_are_numbered_by_how_often_they_are_there(self):
        tokenizer = word_tokenizer(["b a a c c", "c b d"])
        assert tokenizer.encode("c a b d").tolist() == [BOS, 4, 5, 6, 7, EOS]
        assert tokenizer.num_ids == len(SPECIAL) + 4

    @pytest.mark.parametrize("vocab_size", [5, 7, 11])
    def test_no_more_words_are_learned_than_there_is_room_for(self, vocab_size):
        counts = Counter(word for text in TEXTS for word in words_of(text.lower()))
        tokenizer = word_tokenizer(vocab_size=vocab_size)
        assert tokenizer.num_ids == vocab_size
        known = [word for word in counts if UNKNOWN not in tokenizer.encode(word).tolist()]
        assert len(known) == vocab_size - len(SPECIAL)
        assert min(counts[word] for word in known) >= max(counts[word] for word in counts.keys() - set(known))

    @pytest.mark.parametrize("vocab_size", [260, 263, 271, 283])
    def test_no_more_pairs_are_learned_than_there_is_room_for(self, vocab_size):
        tokenizer = bpe_tokenizer(vocab_size=vocab_size)
        assert tokenizer.num_ids == vocab_size
        assert bpe_tokenizer(["ab"], vocab_size=vocab_size).num_ids <= min(vocab_size, 261)

    def test_frequent_pairs_become_one_id(self):
        lengths = [len(bpe_tokenizer(vocab_size=size).encode(TEXTS[0])) for size in (260, 263, 271, 283)]
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[0] == len(byte_tokenizer().encode(TEXTS[0])) > lengths[-1]

    @pytest.mark.parametrize("min_frequency", [1, 2, 3])
    def test_what_is_rarer_is_unknown(self, min_frequency):
        counts = Counter(word for text in TEXTS for word in words_of(text.lower()))
        tokenizer = word_tokenizer(min_frequency=min_frequency)
        for word, count in counts.items():
            assert (tokenizer.encode(word).tolist() == [BOS, UNKNOWN, EOS]) == (count < min_frequency)

    @pytest.mark.parametrize("lowercase", [False, True])
    def test_capitals_are_told_apart_only_where_they_should_be(self, lowercase):
        tokenizer = word_tokenizer(["red Red RED", "red Star"], lowercase=lowercase)
        assert (tokenizer.num_ids == len(SPECIAL) + 2) == lowercase
        assert tokenizer.encode("Red").equal(tokenizer.encode("red")) == lowercase
        assert bpe_tokenizer(lowercase=lowercase).encode("Red").equal(bpe_tokenizer().encode("red")) == lowercase

    @trained_kind
    def test_names_of_special_ids_in_a_text_are_no_special_ids(self, make):
        texts = ["a <unk> <eos> <pad> b", "<bos> <unk> c"] * 3
        tokenizer = make(texts)
        assert {PAD, BOS, EOS}.isdisjoint(tokenizer.encode(texts[0]).tolist()[1:-1])
        assert tokenizer.encode("<unk>").tolist().count(UNKNOWN) == (make is word_tokenizer)

    @trained_kind
    def test_it_learns_from_texts_with_lone_surrogates(self, make):
        assert make(["a \ud800 b"]).vocabulary == make(["a ? b"]).vocabulary


def learned_vocabularies() -> list[str]:
    """What is learned from texts with many words that are equally frequent."""
    chance = random.Random(7)
    words = ["".join(chance.choices("abcdefghéßहि日本", k=chance.randrange(2, 7))) for _ in range(307)]
    texts = [" ".join(chance.choices(words, k=11)) for _ in range(101)]
    return [word_tokenizer(texts, vocab_size=97).vocabulary, bpe_tokenizer(texts, vocab_size=499).vocabulary]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_every_process_learns_the_same(seed):
    environment = os.environ | {"PYTHONHASHSEED": str(seed), "RAYON_NUM_THREADS": str(seed + 1)}
    say = "from tests.test_tokenizer import learned_vocabularies; print(ascii(learned_vocabularies()))"
    ended = subprocess.run(
        [sys.executable, "-c", say], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.strip() == ascii(learned_vocabularies()), ended.stderr


class TestElsewhere:
    @every_kind
    def test_a_copy_is_the_same(self, make):
        tokenizer = make(max_length=29)
        copy: Tokenizer = pickle.loads(pickle.dumps(tokenizer))
        for text in [*TEXTS, *ODD_TEXTS]:
            ids = tokenizer.encode(text).tolist()
            assert copy.encode(text).tolist() == ids
            assert copy.decode(ids) == tokenizer.decode(ids)
        assert copy.vocabulary == tokenizer.vocabulary

    @every_kind
    def test_worker_processes_use_it(self, make, capfd):
        tokenizer = make()
        loader = DataLoader(TEXTS, batch_size=3, num_workers=1, collate_fn=tokenizer.encode_batch)
        expected = [tokenizer.encode_batch(TEXTS[start : start + 3]) for start in (0, 3, 6)]
        assert all(map(torch.equal, loader, expected))
        assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: byte_tokenizer(max_length=2), r"^max_length=2 must be at least 3"),
        (lambda: word_tokenizer(max_length=2), r"^max_length=2 "),
        (lambda: bpe_tokenizer(max_length=0), r"^max_length=0 "),
        (lambda: ByteTokenizer(vocab_size=257, max_length=7), r"^vocab_size=257: bytes take 262"),
        (lambda: word_tokenizer(vocab_size=4), r"^vocab_size=4 must be more than 4"),
        (lambda: bpe_tokenizer(vocab_size=259), r"^vocab_size=259 must be at least 260"),
    ],
)
def test_sizes_that_cannot_be_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@trained_kind
@pytest.mark.parametrize("spoil", [lambda text: "", lambda text: text[:-9], lambda text: "{}", lambda text: "[]"])
def test_a_vocabulary_that_is_damaged_is_refused(make, spoil):
    with pytest.raises(ValueError, match="the tokenizer's vocabulary is damaged"):
        make().restore(spoil(make().vocabulary))


def test_a_vocabulary_in_which_words_of_special_use_would_be_found_in_texts_is_refused():
    learned = tokenizers.Tokenizer.from_str(bpe_tokenizer().vocabulary)
    learned.add_special_tokens(["<eos>"])
    with pytest.raises(ValueError, match="is damaged: it must begin with <pad> <bos> <eos> <unk>"):
        bpe_tokenizer().restore(learned.to_str())


def test_a_vocabulary_without_any_word_is_not_learned():
    with pytest.raises(ValueError, match=r"^min_frequency=5: no word of the training texts comes as often$"):
        word_tokenizer(["a red star", "a blue star"], min_frequency=5)


class TestLoss:
    def test_unknown_words_and_what_is_cut_off_are_counted(self):
        tokenizer = WordTokenizer(vocab_size=53, max_length=5, lowercase=True, min_frequency=2)
        tokenizer.train(["a red star", "a red circle", "a"])
        loss = tokenizer.loss(["a red star", "a blue circle or a star", ""])
        assert (loss.num_texts, loss.num_cut, loss.num_ids) == (3, 1, 9)
        assert (loss.num_unknown, loss.num_cut_off, loss.longest) == (5, 3, 8)

    def test_bytes_are_known_and_can_be_cut_off_only(self):
        loss = byte_tokenizer(max_length=7).loss(["äöü"])
        assert (loss.num_ids, loss.num_unknown, loss.num_cut_off, loss.longest) == (6, 0, 1, 8)
