"""Texts as token ids."""

from torch import Tensor

from perceiver.data.files import TEXTS, File, UnreadableError
from perceiver.data.readers.base import Clips, Reader, Reading
from perceiver.data.text_files import normalize_spaces, read_text, text_problem
from perceiver.tokenizer import Tokenizer


class TextReader(Reader[str]):
    """Text files, or texts in memory, as token ids [1, length].

    Args:
        tokenizer: of the run.
    """

    kind = TEXTS

    def __init__(self, *, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def read(self, part: File | str, *, train: bool, clips: Clips | None = None) -> Reading:
        return Reading(self.tokenizer.encode(part if isinstance(part, str) else _load(part))[None])

    def pieces(self, raw: Tensor) -> list[str]:
        return self.tokenizer.pieces(raw[0].tolist())


def _load(file: File) -> str:
    try:
        text = normalize_spaces(read_text(file))
    except FileNotFoundError as error:
        raise UnreadableError(str(error)) from error
    if fault := text_problem(text) if text else "there is no text in it":
        raise UnreadableError(f"{file}: {fault}")
    return text
