"""Whether a file of sound is as long as it claims to be, as far as its header tells: libsndfile reads what there is."""

import os
from typing import IO, Literal

CHUNKS: dict[bytes, tuple[bytes, Literal["little", "big"]]] = {
    b"RIFF": (b"data", "little"),
    b"FORM": (b"SSND", "big"),
}
"""First bytes of wav and aiff -> the chunk that holds the sound, and the order of bytes."""
UNKNOWN_SIZE = 0x7F000000
"""Sizes from here on are written where a file goes to a pipe, and its length is not known yet."""
OGG_PAGE = 2**16
"""A page of Ogg is shorter than this."""
OGG_HEADER = 27
"""Bytes of a page before the sizes of its segments; the last of them says how many these are."""
OGG_LAST = 4
"""Flag of the last page of an Ogg stream."""


def is_cut_off(file: IO[bytes]) -> bool:
    """Whether a wav, an aiff or an Ogg lacks its end; False of any other, and of one that was written to a pipe.

    Leaves the file at its begin.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic = file.read(12)[:4]
    if magic == b"OggS":
        lacks = _lacks_last_page(file, end)
    elif magic in CHUNKS:
        lacks = _lacks_bytes(file, end, *CHUNKS[magic])
    else:
        lacks = False
    file.seek(0)
    return lacks


def _lacks_bytes(file: IO[bytes], end: int, wanted: bytes, order: Literal["little", "big"]) -> bool:
    """Whether the chunk that holds the sound ends after the end of the file."""
    place = 12
    while place + 8 <= end:
        file.seek(place)
        name, size = file.read(4), int.from_bytes(file.read(4), order)
        if name == wanted:
            return size < UNKNOWN_SIZE and place + 8 + size > end
        place += 8 + size + size % 2
    return False


def _lacks_last_page(file: IO[bytes], end: int) -> bool:
    file.seek(max(end - OGG_PAGE, 0))
    rest = file.read()
    page = rest[max(rest.rfind(b"OggS"), 0) :]
    if len(page) < OGG_HEADER or not page[5] & OGG_LAST:
        return True
    count = page[OGG_HEADER - 1]
    segments = page[OGG_HEADER : OGG_HEADER + count]
    return len(segments) < count or OGG_HEADER + count + sum(segments) > len(page)
