"""What may stand in a text: characters that can be written down, and not more of them than anybody writes."""

import re

MAX_LENGTH = 2**17
"""Characters of the longest text, as many as Python's csv takes in a cell: a book is no caption."""
STRAY = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
"""Control characters that are no white space, and halves of surrogate pairs, which JSON can hold: none can be meant."""


def fault_in(text: str) -> str | None:
    """Why something cannot be a text that somebody wrote, or None if it can."""
    if len(text) > MAX_LENGTH:
        return f"a text of {len(text):,} characters, more than {MAX_LENGTH:,}"
    found = STRAY.search(text)
    return None if found is None else f"U+{ord(found.group()):04X}, character {found.start() + 1}, is no text"
