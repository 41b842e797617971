"""What may be in a text or in the name of a file: printable characters, and no more than anybody writes."""

import re
from collections.abc import Sequence
from pathlib import PurePath

MAX_LENGTH = 2**17
"""Characters of the longest text, as many as Python's csv takes in a cell: a book is no caption."""
STRAY = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
"""Control characters that are no white space, and halves of surrogate pairs, which JSON can hold: none can be meant."""
MAX_NAME, MAX_PATH = 255, 4095
"""Bytes that a file system allows in a name and in a path; asking for more raises."""


def fault_in(text: str) -> str | None:
    """Why something cannot be a text that somebody wrote, or None if it can."""
    if len(text) > MAX_LENGTH:
        return f"a text of {len(text):,} characters, more than {MAX_LENGTH:,}"
    found = STRAY.search(text)
    return None if found is None else f"U+{ord(found.group()):04X}, character {found.start() + 1}, is no text"


def tidy(text: str) -> str:
    """A text in one line, with single spaces."""
    return " ".join(text.split())


def is_file_name(name: str) -> bool:
    """Whether it names something below some folder: neither that folder itself nor anything outside."""
    path = PurePath(name)
    if path.anchor or ".." in path.parts or not path.parts or STRAY.search(name):
        return False
    return len(name.encode()) <= MAX_PATH and all(len(part.encode()) <= MAX_NAME for part in path.parts)


def first_few(names: Sequence[str]) -> str:
    """Names for a message: five at most."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
