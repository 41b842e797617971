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
    split_words,
)
from tests.runs import ROOT

TEXTS = [
    *("a red square above a blue circle", "two red circles, one blue star", "A red star (small), and a large one!"),
    *("there is a t-shirt; don't wear it", "naïve cafés: 3 of 5?", "the star's color is red", "हिन्दी 2 m² 😀"),
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


def random_texts(count: int) -> list[str]:
    """Texts of random code points from everywhere, including surrogates, marks and control characters."""
    chance = random.Random(3)
    ends = (0x80, 0x370, 0x3000, 0x11000, 0x110000)
    return [
        "".join(chr(chance.randrange(chance.choice(ends))) for _ in range(chance.randrange(13))) for _ in range(count)
    ]


ODD_TEXTS = [
    *("", " ", "\n\t", "\0", "👩‍👩‍👧 family", "e\u0301 é", "Å Å", "ﬁ", "İstanbul ẞ", "\u202eabc", "a\u0300\u0301"),
    *("\ud800", "a \udfff b", "\ud83d\ude00", "<pad> <bos> <eos> <unk>", "<eos>", "a<bos>b", "\ufffd", "�" * 3),
    *("日本語 テキスト", "m²", "x" * 97, " a  b ", "a\u00a0b"),
]
ALL_TEXTS = [*TEXTS, *ODD_TEXTS, *random_texts(199)]


def encodable(text: str) -> str:
    """A text without lone surrogates, which are not characters."""
    return text.encode("utf-8", errors="replace").decode()


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text).tolist()


class TestRoundTrips:
    def test_bytes_restore_any_text(self):
        for text in ALL_TEXTS:
            assert byte_tokenizer().decode(ids_of(byte_tokenizer(), text)) == encodable(text)

    @pytest.mark.parametrize("lowercase", [False, True])
    def test_byte_pairs_restore_the_normal_form_of_any_text(self, lowercase):
        tokenizer = bpe_tokenizer(lowercase=lowercase)
        for text in ALL_TEXTS:
            ids = ids_of(tokenizer, text)
            assert tokenizer.decode(ids) == tokenizer.normalizer.normalize_str(encodable(text))
            assert set(ids[1:-1]).isdisjoint(range(len(SPECIAL)))

    def test_words_restore_the_words_of_texts_they_were_learned_from(self):
        tokenizer = word_tokenizer(ALL_TEXTS, vocab_size=9973, lowercase=False)
        for text in ALL_TEXTS:
            ids, normal = ids_of(tokenizer, text), tokenizer.normalizer.normalize_str(encodable(text))
            assert split_words(tokenizer.decode(ids)) == split_words(normal)
            assert (UNKNOWN in ids) == ("<unk>" in normal)

    def test_decoded_words_have_the_same_ids(self):
        tokenizer, chance = word_tokenizer(), random.Random(5)
        for length in range(2, 23):
            ids = [BOS, *chance.choices(range(len(SPECIAL), tokenizer.num_ids), k=length), EOS]
            assert ids_of(tokenizer, tokenizer.decode(ids)) == ids

    @pytest.mark.parametrize(
        ("text", "decoded"),
        [
            ("there is a red star, and a blue one!", "there is a red star, and a blue one!"),
            ("THE  red star's\ncolor", "the red star's color"),
            ("a small ( red ) star : one", "a small ( red) star: one"),
            ("a green elephant", "a <unk> <unk>"),
            ("a <unk> star", "a <unk> star"),
        ],
    )
    def test_words_are_joined_by_spaces_except_before_closing_punctuation(self, text, decoded):
        tokenizer = word_tokenizer([*TEXTS, "( :"])
        assert tokenizer.decode(ids_of(tokenizer, text)) == decoded


class TestSequences:
    @every_kind
    def test_a_text_is_framed_by_bos_and_eos(self, make):
        tokenizer = make()
        assert ids_of(tokenizer, "") == [BOS, EOS]
        for text in TEXTS:
            first, *content, last = ids_of(tokenizer, text)
            assert (first, last) == (BOS, EOS)
            assert content
            assert {BOS, EOS, PAD}.isdisjoint(content)
            assert max(content) < tokenizer.num_ids <= tokenizer.vocab_size

    @every_kind
    def test_longer_texts_are_truncated_before_eos_and_prefixes_have_none(self, make):
        complete = ids_of(make(), TEXTS[0])
        for max_length in (3, 5, 7, len(complete) - 1):
            tokenizer = make(max_length=max_length)
            assert ids_of(tokenizer, TEXTS[0]) == [*complete[: max_length - 1], EOS]
            assert tokenizer.encode_prefix(TEXTS[0]).tolist() == complete[:max_length]
        assert ids_of(make(max_length=len(complete)), TEXTS[0]) == complete

    @every_kind
    def test_a_batch_is_padded_at_the_end(self, make):
        tokenizer, texts = make(), [TEXTS[1], "", TEXTS[0], "a"]
        batch = tokenizer.encode_batch(texts)
        assert batch.dtype == torch.long
        assert batch.shape == (4, max(len(tokenizer.encode(text)) for text in texts))
        for text, row in zip(texts, batch, strict=True):
            ids = tokenizer.encode(text)
            assert row[: len(ids)].equal(ids)
            assert (row[len(ids) :] == PAD).all()
            assert tokenizer.decode(row.tolist()) == tokenizer.decode(ids.tolist())

    @every_kind
    def test_nothing_after_eos_is_decoded(self, make):
        tokenizer = make()
        ids = ids_of(tokenizer, "a red star")
        assert tokenizer.decode([*ids, *ids]) == tokenizer.decode(ids[1:-1]) == "a red star"
        assert tokenizer.decode([]) == tokenizer.decode([EOS, *ids]) == ""


def test_bytes_are_numbered_as_in_perceiver_io():
    assert (PAD, BOS, EOS, FIRST_BYTE, byte_tokenizer().num_ids) == (0, 1, 2, 6, 256 + 6)
    assert ids_of(byte_tokenizer(), "A é 😀") == [1, *(byte + 6 for byte in "A é 😀".encode()), 2]


class TestWords:
    @every_kind
    def test_they_are_those_of_the_text_and_share_no_id(self, make):
        tokenizer = make()
        for text in ALL_TEXTS:
            ids = ids_of(tokenizer, text)
            words = tokenizer.words(ids)
            assert [word.text for word in words] == split_words(tokenizer.decode(ids))
            positions = [position for word in words for position in word.positions]
            assert positions == sorted(set(positions))
            assert set(positions) <= set(range(1, len(ids) - 1))

    @every_kind
    def test_only_ids_of_space_belong_to_no_word(self, make):
        tokenizer = make()
        for text in [*TEXTS, "日本 é👩‍👩‍👧 x"]:
            ids = ids_of(tokenizer, text)
            words = tokenizer.words(ids)
            assert all(word.positions for word in words)
            rest = set(range(1, len(ids) - 1)).difference(*(word.positions for word in words))
            assert not any(tokenizer.decode([ids[position]]).strip(" \u200d\ufe0f") for position in rest)

    @every_kind
    def test_the_ids_of_a_word_decode_to_it_wherever_the_text_is_padded(self, make):
        tokenizer = make()
        ids = ids_of(tokenizer, "there is a naïve red star, don't")
        words = tokenizer.words(ids)
        assert [word.text for word in words] == ["there", "is", "a", "naïve", "red", "star", ",", "don't"]
        for word, moved in zip(words, tokenizer.words([PAD, PAD, *ids, PAD]), strict=True):
            assert tokenizer.decode([ids[position] for position in word.positions]).strip() == word.text == moved.text
            assert tuple(position - 2 for position in moved.positions) == word.positions

    def test_an_incomplete_character_is_a_word(self):
        ids = ids_of(byte_tokenizer(), "a 😀")[:-3]  # without EOS and two bytes of four
        words = byte_tokenizer().words(ids)
        assert [(word.text, word.positions) for word in words] == [("a", (1,)), ("\ufffd", (3,))]

    @every_kind
    def test_pieces_concatenate_to_the_text_and_special_ids_have_names(self, make):
        tokenizer = make()
        assert tokenizer.pieces([PAD, BOS, EOS, UNKNOWN, PAD]) == ["<pad>", "<bos>", "<eos>", "<unk>", "<pad>"]
        for text in (text for text in TEXTS if text.isascii()):
            ids = ids_of(tokenizer, text)
            pieces = tokenizer.pieces(ids)
            assert len(pieces) == len(ids)
            assert "".join(pieces[1:-1]).replace(" ", "") == tokenizer.decode(ids).replace(" ", "")
        assert byte_tokenizer().pieces(ids_of(byte_tokenizer(), "é"))[1:-1] == ["\ufffd"] * 2


class TestVocabulary:
    @trained_kind
    def test_it_can_be_restored(self, make):
        trained, other = make(), make(["something else"])
        assert other.vocabulary != trained.vocabulary
        other.restore(trained.vocabulary)
        assert (other.vocabulary, other.num_ids) == (trained.vocabulary, trained.num_ids)
        for text in [*TEXTS, *ODD_TEXTS]:
            assert ids_of(other, text) == ids_of(trained, text)

    @trained_kind
    def test_an_untrained_tokenizer_cannot_be_used(self, make):
        options = {"min_frequency": 1} if make is word_tokenizer else {}
        tokenizer = type(make())(vocab_size=283, max_length=7, lowercase=True, **options)
        assert not tokenizer.is_trained
        for use in (lambda: tokenizer.encode("a"), lambda: tokenizer.decode([5]), lambda: tokenizer.num_ids):
            with pytest.raises(ValueError, match="not learned a vocabulary"):
                use()
        tokenizer.train(TEXTS)
        assert tokenizer.is_trained

    def test_bytes_learn_nothing(self):
        tokenizer = byte_tokenizer()
        assert tokenizer.is_trained
        assert tokenizer.vocabulary is None
        before = ids_of(tokenizer, TEXTS[0])
        tokenizer.train(["other", "texts"])
        tokenizer.restore("")
        assert ids_of(tokenizer, TEXTS[0]) == before

    def test_words_are_numbered_by_frequency_and_then_alphabetically(self):
        tokenizer = word_tokenizer(["b a a c c", "c b d"])
        assert ids_of(tokenizer, "c a b d") == [BOS, 4, 5, 6, 7, EOS]
        assert tokenizer.num_ids == len(SPECIAL) + 4

    @pytest.mark.parametrize("vocab_size", [5, 7, 11])
    def test_vocab_size_limits_the_words(self, vocab_size):
        counts = Counter(word for text in TEXTS for word in split_words(text.lower()))
        tokenizer = word_tokenizer(vocab_size=vocab_size)
        assert tokenizer.num_ids == vocab_size
        known = [word for word in counts if UNKNOWN not in ids_of(tokenizer, word)]
        assert len(known) == vocab_size - len(SPECIAL)
        assert min(counts[word] for word in known) >= max(counts[word] for word in counts.keys() - set(known))

    def test_vocab_size_limits_the_byte_pairs_and_more_of_them_shorten_a_text(self):
        sizes = (260, 263, 271, 283)
        lengths = []
        for size in sizes:
            assert bpe_tokenizer(vocab_size=size).num_ids == size
            assert bpe_tokenizer(["ab"], vocab_size=size).num_ids <= min(size, 261)
            lengths.append(len(ids_of(bpe_tokenizer(vocab_size=size), TEXTS[0])))
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[0] == len(ids_of(byte_tokenizer(), TEXTS[0])) > lengths[-1]

    @pytest.mark.parametrize("min_frequency", [1, 2, 3])
    def test_rare_words_are_unknown(self, min_frequency):
        tokenizer = word_tokenizer(min_frequency=min_frequency)
        for word, count in Counter(word for text in TEXTS for word in split_words(text.lower())).items():
            assert (ids_of(tokenizer, word) == [BOS, UNKNOWN, EOS]) == (count < min_frequency)

    @pytest.mark.parametrize("lowercase", [False, True])
    def test_lowercase(self, lowercase):
        tokenizer = word_tokenizer(["red Red RED", "red Star"], lowercase=lowercase)
        assert (tokenizer.num_ids == len(SPECIAL) + 2) == lowercase
        assert (ids_of(tokenizer, "Red") == ids_of(tokenizer, "red")) == lowercase
        assert (ids_of(bpe_tokenizer(lowercase=lowercase), "Red") == ids_of(bpe_tokenizer(), "red")) == lowercase

    @trained_kind
    def test_names_of_special_ids_in_a_text_are_words(self, make):
        texts = ["a <unk> <eos> <pad> b", "<bos> <unk> c"] * 3
        tokenizer = make(texts)
        assert {PAD, BOS, EOS}.isdisjoint(ids_of(tokenizer, texts[0])[1:-1])
        assert ids_of(tokenizer, "<unk>").count(UNKNOWN) == (make is word_tokenizer)
        assert make(["a \ud800 b"]).vocabulary == make(["a ? b"]).vocabulary

    @trained_kind
    @pytest.mark.parametrize("damage", [lambda text: "", lambda text: text[:-9], lambda text: "{}", lambda text: "[]"])
    def test_a_damaged_vocabulary_is_refused(self, make, damage):
        with pytest.raises(ValueError, match="the tokenizer's vocabulary is damaged"):
            make().restore(damage(make().vocabulary))

    def test_a_vocabulary_with_added_tokens_is_refused(self):
        learned = tokenizers.Tokenizer.from_str(bpe_tokenizer().vocabulary)
        learned.add_special_tokens(["<eos>"])
        with pytest.raises(ValueError, match="is damaged: it must begin with <pad> <bos> <eos> <unk>"):
            bpe_tokenizer().restore(learned.to_str())


def learned_vocabularies() -> list[str]:
    """The vocabularies of texts with many equally frequent words."""
    chance = random.Random(7)
    words = ["".join(chance.choices("abcdefghéßहि日本", k=chance.randrange(2, 7))) for _ in range(307)]
    texts = [" ".join(chance.choices(words, k=11)) for _ in range(101)]
    return [word_tokenizer(texts, vocab_size=97).vocabulary, bpe_tokenizer(texts, vocab_size=499).vocabulary]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_every_process_learns_the_same(seed):
    environment = os.environ | {"PYTHONHASHSEED": str(seed), "RAYON_NUM_THREADS": str(seed + 1)}
    code = "from tests.test_tokenizer import learned_vocabularies; print(ascii(learned_vocabularies()))"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.strip() == ascii(learned_vocabularies()), ended.stderr


@every_kind
def test_tokenizers_are_picklable_and_work_in_other_processes(make, capfd):
    tokenizer = make(max_length=29)
    copy: Tokenizer = pickle.loads(pickle.dumps(tokenizer))
    assert copy.vocabulary == tokenizer.vocabulary
    for text in [*TEXTS, *ODD_TEXTS]:
        assert ids_of(copy, text) == ids_of(tokenizer, text)
    loader = DataLoader(TEXTS, batch_size=3, num_workers=1, collate_fn=tokenizer.encode_batch)
    expected = [tokenizer.encode_batch(TEXTS[start : start + 3]) for start in (0, 3, 6)]
    assert all(map(torch.equal, loader, expected))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: byte_tokenizer(max_length=2), "max_length=2 must be at least 3"),
        (lambda: ByteTokenizer(vocab_size=257, max_length=7), "vocab_size=257: bytes take 262"),
        (lambda: word_tokenizer(vocab_size=4), "vocab_size=4 must be more than 4"),
        (lambda: bpe_tokenizer(vocab_size=259), "vocab_size=259 must be at least 260"),
        (lambda: word_tokenizer(["a red star", "a blue star"], min_frequency=5), "min_frequency=5: no word"),
    ],
)
def test_invalid_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_unknown_and_truncated_ids_are_counted():
    tokenizer = WordTokenizer(vocab_size=53, max_length=5, lowercase=True, min_frequency=2)
    tokenizer.train(["a red star", "a red circle", "a"])
    loss = tokenizer.encoding_loss(["a red star", "a blue circle or a star", ""])
    assert (loss.num_texts, loss.num_truncated, loss.num_ids) == (3, 1, 9)
    assert (loss.num_unknown, loss.num_ids_truncated, loss.longest) == (5, 3, 8)
    loss = byte_tokenizer(max_length=7).encoding_loss(["äöü"])
    assert (loss.num_ids, loss.num_unknown, loss.num_ids_truncated, loss.longest) == (6, 0, 1, 8)
