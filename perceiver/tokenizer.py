"""Text <-> ids: bytes, words, or byte-pair encoding.

Every text is encoded as BOS, its ids, EOS, cut off at `max_length`, where EOS follows all the same. PAD fills up
batches. Bytes are numbered as in Perceiver IO (Jaegle et al. 2022, section 4.1; DeepMind's `bytes_tokenizer`): six ids
for special use, then the 256 bytes of UTF-8.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import tokenizers
import torch
from jaxtyping import Int
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PAD, BOS, EOS, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
FIRST_BYTE = 6
"""In front of the bytes stand PAD, BOS, EOS, and three that DeepMind's language models use."""

WORD = re.compile(r"<unk>|\w+(?:['’-]\w+)*|[^\w\s]")


def words_in(text: str) -> list[re.Match[str]]:
    """The words and marks of punctuation of a text, each for itself, with their places in it."""
    return list(WORD.finditer(text))


@dataclass(frozen=True)
class Word:
    """A word of an encoded text and the places of the ids that make it."""

    text: str
    places: tuple[int, ...]


@dataclass(frozen=True)
class Loss:
    """What encoding loses of some texts.

    Attributes:
        num_texts, num_cut: how many there are, and of how many `max_length` cuts off the end.
        num_ids, num_unknown, num_cut_off: how many ids they would have without BOS and EOS, and how many of these are
            UNKNOWN or are cut off.
        longest: the `max_length` that would cut none.
    """

    num_texts: int
    num_cut: int
    num_ids: int
    num_unknown: int
    num_cut_off: int
    longest: int


class Tokenizer(ABC):
    """Text <-> ids.

    Args:
        vocab_size: ids that a model must have room for.
        max_length: most ids of an encoded text, BOS and EOS among them.
    """

    def __init__(self, *, vocab_size: int, max_length: int) -> None:
        if max_length < 3:
            raise ValueError(f"max_length={max_length} must be at least 3: one id between begin and end")
        self.vocab_size = vocab_size
        self.max_length = max_length

    @property
    def is_trained(self) -> bool:
        """Whether it can be used."""
        return True

    @property
    @abstractmethod
    def num_ids(self) -> int:
        """How many ids are in use: those from here to `vocab_size` stand for nothing."""

    @abstractmethod
    def train(self, texts: Iterable[str]) -> None:
        """Learn the vocabulary from texts."""

    @property
    @abstractmethod
    def vocabulary(self) -> str | None:
        """What was learned, to be kept with a model; None where nothing is to be learned."""

    @abstractmethod
    def restore(self, vocabulary: str) -> None:
        """Take over what was learned before."""

    @abstractmethod
    def _ids(self, text: str) -> list[int]: ...

    @abstractmethod
    def _text(self, ids: Sequence[int]) -> str: ...

    def encode(self, text: str) -> Int[Tensor, " length"]:
        """The ids of a text, from BOS to EOS."""
        return torch.tensor([BOS, *self._ids(text)[: self.max_length - 2], EOS])

    def loss(self, texts: Iterable[str]) -> Loss:
        """How much of some texts `encode` loses."""
        encoded = [self._ids(text) for text in texts]
        spare = [len(ids) + 2 - self.max_length for ids in encoded]
        return Loss(
            num_texts=len(encoded),
            num_cut=sum(count > 0 for count in spare),
            num_ids=sum(map(len, encoded)),
            num_unknown=sum(ids.count(UNKNOWN) for ids in encoded),
            num_cut_off=sum(max(count, 0) for count in spare),
            longest=max(spare, default=0) + self.max_length,
        )

    def begin(self, text: str) -> Int[Tensor, " length"]:
        """The ids of a text that may go on, from BOS: one more than `encode` keeps, as it has no EOS."""
        return torch.tensor([BOS, *self._ids(text)[: self.max_length - 1]])

    def encode_batch(self, texts: Sequence[str]) -> Int[Tensor, "batch length"]:
        """The ids of several texts, padded with PAD at the end."""
        return pad_sequence([self.encode(text) for text in texts], batch_first=True, padding_value=PAD)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, up to the first EOS."""
        return self._text(_content(ids)[1])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each id stands for by itself."""
        return [SPECIAL[id] if id < len(SPECIAL) else self._text([id]) for id in ids]

    def words(self, ids: Sequence[int]) -> list[Word]:
        """The words of `decode(ids)` with the places of their ids in `ids`.

        An id belongs to the word in which what it changes of the text ends; one that adds nothing but space, to none.
        """
        places, content = _content(ids)
        text = self._text(content)
        parts = [self._text(content[:count]).rstrip() for count in range(len(content) + 1)]
        # A character that takes several ids is another one until the last of them is there.
        starts = [_num_common(part, text) for part in parts[:-1]]
        ends = [len(part) for part in parts[1:]]
        return [
            Word(
                word.group(),
                tuple(
                    place
                    for place, start, end in zip(places, starts, ends, strict=True)
                    if end > start and word.start() < end <= word.end()
                ),
            )
            for word in words_in(text)
        ]


def _num_common(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _content(ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Places and values of the ids of a text: those before the first EOS, without what frames it."""
    end = next((place for place, id in enumerate(ids) if id == EOS), len(ids))
    found = [(place, int(id)) for place, id in enumerate(ids[:end]) if id not in (PAD, BOS)]
    return [place for place, _ in found], [id for _, id in found]


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8: nothing to learn, nothing unknown.

    Args:
        max_length: see `Tokenizer`.
    """

    def __init__(self, *, vocab_size: int, max_length: int) -> None:
        super().__init__(vocab_size=vocab_size, max_length=max_length)
        if vocab_size < self.num_ids:
            raise ValueError(f"vocab_size={vocab_size}: bytes take {self.num_ids}")

    @property
    def num_ids(self) -> int:
        return FIRST_BYTE + 256

    def train(self, texts: Iterable[str]) -> None:
        pass

    @property
    def vocabulary(self) -> None:
        return None

    def restore(self, vocabulary: str) -> None:
        pass

    def _ids(self, text: str) -> list[int]:
        return [FIRST_BYTE + byte for byte in text.encode("utf-8", errors="replace")]

    def _text(self, ids: Sequence[int]) -> str:
        return bytes(id - FIRST_BYTE for id in ids if FIRST_BYTE <= id < self.num_ids).decode("utf-8", errors="replace")


class TrainedTokenizer(Tokenizer):
    """A tokenizer of Hugging Face's `tokenizers`, whose vocabulary is learned from the training texts.

    Args:
        vocab_size: most ids, the special ones among them.
        max_length: see `Tokenizer`.
        lowercase: whether capitals are told apart from small letters.
    """

    def __init__(self, *, vocab_size: int, max_length: int, lowercase: bool) -> None:
        super().__init__(vocab_size=vocab_size, max_length=max_length)
        self.normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])])
        self.trained: tokenizers.Tokenizer | None = None

    @property
    def is_trained(self) -> bool:
        return self.trained is not None

    @property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        if self.trained is None:
            raise ValueError("the tokenizer has not learned a vocabulary yet: train() or restore() it")
        return self.trained

    @property
    def num_ids(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def vocabulary(self) -> str:
        return self._tokenizer.to_str()

    def restore(self, vocabulary: str) -> None:
        try:
            restored = tokenizers.Tokenizer.from_str(vocabulary)
        except Exception as error:  # of no class that could be named
            raise ValueError(f"the tokenizer's vocabulary is damaged: {error}") from error
        special = tuple(map(restored.id_to_token, range(len(SPECIAL))))
        if special != SPECIAL or restored.get_added_tokens_decoder():  # which would be found in texts
            raise ValueError(f"the tokenizer's vocabulary is damaged: it must begin with {' '.join(SPECIAL)}")
        self.trained = restored

    def _normalized(self, text: str) -> str:
        # A lone surrogate is no text to `tokenizers`.
        return self.normalizer.normalize_str(text.encode("utf-8", errors="replace").decode())


class WordTokenizer(TrainedTokenizer):
    """Words and marks of punctuation, the frequent ones; the others are unknown.

    Args:
        vocab_size, max_length, lowercase: see `TrainedTokenizer`.
        min_frequency: how often a word must occur in the training texts to be in the vocabulary.
    """

    def __init__(self, *, vocab_size: int, max_length: int, lowercase: bool, min_frequency: int) -> None:
        super().__init__(vocab_size=vocab_size, max_length=max_length, lowercase=lowercase)
        if vocab_size <= len(SPECIAL):
            raise ValueError(f"vocab_size={vocab_size} must be more than {len(SPECIAL)}, which are for special use")
        self.min_frequency = min_frequency

    def train(self, texts: Iterable[str]) -> None:
        counts = Counter(word for text in texts for word in self._words(text) if word not in SPECIAL)
        # Not `tokenizers`' own trainer: among equally frequent words its choice differs from process to process.
        frequent = sorted((-count, word) for word, count in counts.items() if count >= self.min_frequency)
        if not frequent:
            raise ValueError(f"min_frequency={self.min_frequency}: no word of the training texts comes as often")
        words = [*SPECIAL, *(word for _, word in frequent[: self.vocab_size - len(SPECIAL)])]
        self.trained = tokenizers.Tokenizer(
            models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=SPECIAL[UNKNOWN])
        )

    def _words(self, text: str) -> list[str]:
        # Not by `tokenizers`, whose regular expressions have other letters: that of ² or of vowel signs.
        return [word.group() for word in words_in(self._normalized(text))]

    def _ids(self, text: str) -> list[int]:
        known = map(self._tokenizer.token_to_id, self._words(text))
        return [UNKNOWN if id is None else id for id in known]

    def _text(self, ids: Sequence[int]) -> str:
        # Words with spaces between them, but for marks of punctuation that close.
        words = [self._tokenizer.id_to_token(id) or "" for id in ids]
        return re.sub(r"\s+([,.;:!?)\]}])", r"\1", " ".join(word for word in words if word))


class BPETokenizer(TrainedTokenizer):
    """Byte-pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019): nothing is unknown.

    Args:
        vocab_size, max_length, lowercase: see `TrainedTokenizer`.
    """

    def __init__(self, *, vocab_size: int, max_length: int, lowercase: bool) -> None:
        super().__init__(vocab_size=vocab_size, max_length=max_length, lowercase=lowercase)
        if vocab_size < len(SPECIAL) + 256:
            raise ValueError(f"vocab_size={vocab_size} must be at least {len(SPECIAL) + 256}: special ids and bytes")

    def train(self, texts: Iterable[str]) -> None:
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        learner = _byte_level(models.BPE())
        learner.train_from_iterator(map(self._normalized, texts), trainer)
        # Its model alone: to the learner, `<eos>` in a text would be the id.
        self.trained = _byte_level(learner.model)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(self._normalized(text)).ids

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids))


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
