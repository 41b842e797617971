"""Text <-> token ids: bytes, words, or byte-pair encoding.

A text is encoded as BOS, its ids, EOS; longer texts are truncated to `max_length`, including EOS. Batches are padded
with PAD. Bytes are numbered as in Perceiver IO (Jaegle et al. 2022, section 4.1; DeepMind's `bytes_tokenizer`): six
special ids, then the 256 bytes of UTF-8.
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
"""Id of byte 0, after PAD, BOS, EOS and three that DeepMind's language models use."""
MASK, CLS, SEP = range(3, FIRST_BYTE)
BYTE_SPECIAL = ("[PAD]", "[BOS]", "[EOS]", "[MASK]", "[CLS]", "[SEP]")
"""Special ids of bytes and their names in transformers."""

WORD = re.compile(r"<unk>|\w+(?:['’-]\w+)*|[^\w\s]")
"""A word or a punctuation mark."""
ELIDED = re.compile(rf"\w+['’](?=\w)|{WORD.pattern}")
"""The same, where an apostrophe ends a word, as in French: `l'` and `homme`."""


def split_words(text: str, *, elision: bool = False) -> list[str]:
    """Split a text into words and punctuation marks.

    Args:
        text: the text.
        elision: whether an apostrophe before a letter ends a word.
    """
    return (ELIDED if elision else WORD).findall(text)


@dataclass(frozen=True)
class WordSpan:
    """A word of an encoded text and the positions of its ids."""

    text: str
    positions: tuple[int, ...]


@dataclass(frozen=True)
class EncodingLoss:
    """What is lost by encoding texts.

    Attributes:
        num_texts, num_truncated: number of texts, and of those that are truncated.
        num_ids, num_unknown, num_ids_truncated: number of all ids without BOS and EOS, and of those that are UNKNOWN or
            beyond `max_length`.
        longest: the `max_length` that would truncate none.
    """

    num_texts: int
    num_truncated: int
    num_ids: int
    num_unknown: int
    num_ids_truncated: int
    longest: int


class Tokenizer(ABC):
    """Text <-> token ids. Tokenizers that learn nothing inherit `is_trained`, `train`, `vocabulary` and `restore`.

    Args:
        vocab_size: number of ids that a model provides for.
        max_length: most ids of an encoded text, including BOS and EOS.
        elision: whether an apostrophe ends a word (`split_words`).
    """

    def __init__(self, *, vocab_size: int, max_length: int, elision: bool = False) -> None:
        if max_length < 3:
            raise ValueError(f"max_length={max_length} must be at least 3: BOS, one id, EOS")
        self.elision = elision
        self.vocab_size = vocab_size
        self.max_length = max_length

    @property
    def is_trained(self) -> bool:
        """Whether texts can be encoded."""
        return True

    @property
    def vocabulary(self) -> str | None:
        """What was learned, to be stored with a model."""
        return None

    @property
    @abstractmethod
    def num_ids(self) -> int:
        """Number of ids in use; those from here to `vocab_size` have no meaning."""

    def train(self, texts: Iterable[str]) -> None:  # noqa: B027
        """Learn the vocabulary from texts."""

    def restore(self, vocabulary: str) -> None:  # noqa: B027
        """Load a `vocabulary` that was learned before."""

    @abstractmethod
    def _ids(self, text: str) -> list[int]: ...

    @abstractmethod
    def _text(self, ids: Sequence[int]) -> str: ...

    def encode(self, text: str) -> Int[Tensor, " length"]:
        """Return the ids of a text, from BOS to EOS."""
        return torch.tensor([BOS, *self._ids(text)[: self.max_length - 2], EOS])

    def encode_prefix(self, text: str) -> Int[Tensor, " length"]:
        """Return the ids of a text to be continued: BOS, no EOS, and thus one more id than `encode` keeps."""
        return torch.tensor([BOS, *self._ids(text)[: self.max_length - 1]])

    def encode_batch(self, texts: Sequence[str]) -> Int[Tensor, "batch length"]:
        """Return the ids of several texts, padded at the end."""
        return pad_sequence([self.encode(text) for text in texts], batch_first=True, padding_value=PAD)

    def encoding_loss(self, texts: Iterable[str]) -> EncodingLoss:
        """Measure how much of some texts `encode` loses."""
        encoded = [self._ids(text) for text in texts]
        excess = [len(ids) + 2 - self.max_length for ids in encoded]
        return EncodingLoss(
            num_texts=len(encoded),
            num_truncated=sum(count > 0 for count in excess),
            num_ids=sum(map(len, encoded)),
            num_unknown=sum(ids.count(UNKNOWN) for ids in encoded),
            num_ids_truncated=sum(max(count, 0) for count in excess),
            longest=max(excess, default=0) + self.max_length,
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, up to the first EOS."""
        return self._text([id for _, id in _content(ids)])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id alone."""
        return [SPECIAL[id] if id < len(SPECIAL) else self._text([id]) for id in ids]

    def words(self, ids: Sequence[int]) -> list[WordSpan]:
        """Return the words of `decode(ids)` with the positions of their ids in `ids`.

        An id belongs to the word in which its change of the text ends; an id that adds only space belongs to none.
        """
        content = _content(ids)
        text = self.decode(ids)
        parts = [self._text([id for _, id in content[:count]]).rstrip() for count in range(len(content) + 1)]
        # Before the last of its ids, a character of several ids is decoded as another one.
        starts = [_common_length(part, text) for part in parts[:-1]]
        ends = [len(part) for part in parts[1:]]
        return [
            WordSpan(
                word.group(),
                tuple(
                    position
                    for (position, _), start, end in zip(content, starts, ends, strict=True)
                    if end > start and word.start() < end <= word.end()
                ),
            )
            for word in (ELIDED if self.elision else WORD).finditer(text)
        ]


def _common_length(one: str, other: str) -> int:
    """Return the length of the longest common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _content(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return positions and values of the ids before the first EOS, without BOS and PAD."""
    end = next((position for position, id in enumerate(ids) if id == EOS), len(ids))
    return [(position, int(id)) for position, id in enumerate(ids[:end]) if id not in (PAD, BOS)]


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8; nothing is learned or unknown.

    Args:
        vocab_size, max_length: see `Tokenizer`.
    """

    def __init__(self, *, vocab_size: int, max_length: int) -> None:
        super().__init__(vocab_size=vocab_size, max_length=max_length)
        if vocab_size < self.num_ids:
            raise ValueError(f"vocab_size={vocab_size}: bytes take {self.num_ids}")

    @property
    def num_ids(self) -> int:
        return FIRST_BYTE + 256

    def _ids(self, text: str) -> list[int]:
        return [FIRST_BYTE + byte for byte in text.encode("utf-8", errors="replace")]

    def _text(self, ids: Sequence[int]) -> str:
        return bytes(id - FIRST_BYTE for id in ids if FIRST_BYTE <= id < self.num_ids).decode("utf-8", errors="replace")


class PerceiverTokenizer(ByteTokenizer):
    """The bytes of UTF-8 as the published language model reads them, between [CLS] and [SEP].

    The names of special ids in a text, such as [MASK], stand for these ids. Source: `PerceiverTokenizer` of
    transformers 5.23; DeepMind's own code adds neither [CLS] nor [SEP].

    Args:
        vocab_size, max_length: see `Tokenizer`.
        ends: whether [CLS] and [SEP] are added.
    """

    def __init__(self, *, vocab_size: int, max_length: int, ends: bool = True) -> None:
        super().__init__(vocab_size=vocab_size, max_length=max_length)
        self.ends = ends

    def encode(self, text: str) -> Int[Tensor, " length"]:
        if not self.ends:
            return torch.tensor(self._ids(text)[: self.max_length])
        return torch.tensor([CLS, *self._ids(text)[: self.max_length - 2], SEP])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [BYTE_SPECIAL[id] if id < FIRST_BYTE else self._text([id]) for id in ids]

    def _ids(self, text: str) -> list[int]:
        parts = re.split(f"({'|'.join(map(re.escape, BYTE_SPECIAL))})", text)
        return [
            id
            for part in parts
            for id in (
                [BYTE_SPECIAL.index(part)] if part in BYTE_SPECIAL else super(PerceiverTokenizer, self)._ids(part)
            )
        ]


class TrainedTokenizer(Tokenizer):
    """A tokenizer of Hugging Face's `tokenizers`, whose vocabulary is learned from the training texts.

    Args:
        vocab_size: most ids, including special ones.
        max_length: see `Tokenizer`.
        lowercase: convert texts to lower case.
        elision: see `Tokenizer`.
    """

    def __init__(self, *, vocab_size: int, max_length: int, lowercase: bool, elision: bool = False) -> None:
        super().__init__(vocab_size=vocab_size, max_length=max_length, elision=elision)
        self.normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])])
        self.trained: tokenizers.Tokenizer | None = None

    @property
    def is_trained(self) -> bool:
        return self.trained is not None

    @property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        if self.trained is None:
            raise ValueError("the tokenizer has not learned a vocabulary yet: call train() or restore()")
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
        except Exception as error:  # `tokenizers` raises nothing more specific
            raise ValueError(f"the tokenizer's vocabulary is damaged: {error}") from error
        special = tuple(map(restored.id_to_token, range(len(SPECIAL))))
        if special != SPECIAL or restored.get_added_tokens_decoder():  # which would match in texts
            raise ValueError(f"the tokenizer's vocabulary is damaged: it must begin with {' '.join(SPECIAL)}")
        self.trained = restored

    def _normalized(self, text: str) -> str:
        # `tokenizers` rejects lone surrogates.
        return self.normalizer.normalize_str(text.encode("utf-8", errors="replace").decode())


class WordTokenizer(TrainedTokenizer):
    """Frequent words and punctuation marks; others are unknown.

    Args:
        vocab_size, max_length, lowercase: see `TrainedTokenizer`.
        min_frequency: least number of occurrences in the training texts of a word of the vocabulary.
        elision: see `Tokenizer`.
    """

    def __init__(
        self, *, vocab_size: int, max_length: int, lowercase: bool, min_frequency: int, elision: bool = False
    ) -> None:
        super().__init__(vocab_size=vocab_size, max_length=max_length, lowercase=lowercase, elision=elision)
        if vocab_size <= len(SPECIAL):
            raise ValueError(f"vocab_size={vocab_size} must be more than {len(SPECIAL)}, the special ids")
        self.min_frequency = min_frequency

    def train(self, texts: Iterable[str]) -> None:
        counts = Counter(word for text in texts for word in self._words(text) if word not in SPECIAL)
        # The trainer of `tokenizers` chooses among equally frequent words differently in each process.
        frequent = sorted((-count, word) for word, count in counts.items() if count >= self.min_frequency)
        if not frequent:
            raise ValueError(f"min_frequency={self.min_frequency}: no word of the training texts is as frequent")
        words = [*SPECIAL, *(word for _, word in frequent[: self.vocab_size - len(SPECIAL)])]
        self.trained = tokenizers.Tokenizer(
            models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=SPECIAL[UNKNOWN])
        )

    def _words(self, text: str) -> list[str]:
        # The regular expressions of `tokenizers` differ in \w, as in ² and vowel signs.
        return split_words(self._normalized(text), elision=self.elision)

    def _ids(self, text: str) -> list[int]:
        known = map(self._tokenizer.token_to_id, self._words(text))
        return [UNKNOWN if id is None else id for id in known]

    def _text(self, ids: Sequence[int]) -> str:
        # No space before closing punctuation.
        words = [self._tokenizer.id_to_token(id) or "" for id in ids]
        text = re.sub(r"\s+([,.;:!?)\]}])", r"\1", " ".join(word for word in words if word))
        return re.sub(r"(?<=\w['’])\s+(?=\w)", "", text) if self.elision else text


class BPETokenizer(TrainedTokenizer):
    """Byte-pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019); nothing is unknown.

    Args:
        vocab_size, max_length, lowercase, elision: see `TrainedTokenizer`.
    """

    def __init__(self, *, vocab_size: int, max_length: int, lowercase: bool, elision: bool = False) -> None:
        super().__init__(vocab_size=vocab_size, max_length=max_length, lowercase=lowercase, elision=elision)
        if vocab_size < len(SPECIAL) + 256:
            raise ValueError(f"vocab_size={vocab_size} must be at least {len(SPECIAL) + 256}: special ids and bytes")

    def train(self, texts: Iterable[str]) -> None:
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        trained = _byte_level(models.BPE())
        trained.train_from_iterator(map(self._normalized, texts), trainer)
        # Only its model: the trained tokenizer would encode the text `<eos>` as EOS.
        self.trained = _byte_level(trained.model)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(self._normalized(text)).ids

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids))


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
