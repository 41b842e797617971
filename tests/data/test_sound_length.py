import io

import numpy as np
import pytest
import soundfile

from perceiver.data.readers.sound_length import is_cut_off

KINDS = ["WAV", "AIFF", "OGG"]
OTHERS = ["FLAC", "AU", "MP3", "CAF"]


def written(kind: str, length: int = 40_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(length), 8000, format=kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS + OTHERS)
def test_what_is_whole_is_not_cut_off_and_the_file_is_left_at_its_begin(kind):
    file = io.BytesIO(written(kind))
    assert not is_cut_off(file)
    assert file.tell() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_cut_off_behind_its_header_is(kind):
    content = written(kind)
    for kept in (len(content) - 1, len(content) - 101, len(content) // 2, len(content) // 3):
        assert is_cut_off(io.BytesIO(content[:kept])), kept


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFF000])
def test_a_size_that_was_not_known_when_it_was_written_says_nothing(size):
    content = bytearray(written("WAV"))
    place = content.index(b"data") + 4
    content[place : place + 4] = size.to_bytes(4, "little")
    assert not is_cut_off(io.BytesIO(bytes(content)))


@pytest.mark.parametrize("content", [b"", b"R", b"RIFF", b"OggS", b"RIFF\0\0\0\0WAVE" + b"\xff" * 50, b"\0" * 997])
def test_any_bytes_are_answered(content):
    assert is_cut_off(io.BytesIO(content)) in (True, False)
