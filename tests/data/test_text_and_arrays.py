"""The readers of arrays and texts."""

import numpy as np
import pytest
import torch

from perceiver.data.files import UnreadableError
from perceiver.data.readers.array import ArrayReader
from perceiver.data.readers.text import TextReader
from perceiver.tokenizer import ByteTokenizer

VALUES = np.arange(21).reshape(3, 7)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float64", ">f4", "bool"])
def test_arrays_are_floats_from_files_and_memory(tmp_path, dtype):
    np.save(tmp_path / "x.npy", VALUES.astype(dtype))
    expected = torch.from_numpy(VALUES.astype(dtype).astype("float32"))
    for shape in ([3, 7], [3, None], [None, None]):
        for part in (tmp_path / "x.npy", expected.double()):
            values = ArrayReader(shape=shape).read(part, train=True).values
            assert values.dtype == torch.float32
            assert torch.equal(values, expected)
    for shape in ([7, 3], [3], [3, 7, None]):
        for part, name in ((tmp_path / "x.npy", r"x\.npy"), (expected, "an array")):
            with pytest.raises(UnreadableError, match=rf"{name}: .*\[3, 7\], which must be \["):
                ArrayReader(shape=shape).read(part, train=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([1.0, np.nan]), "not finite"),
        (np.array([1e300]), "not finite"),
        (np.array(["a"]), "not an array of numbers"),
        (np.array([{}], dtype=object), "not an array"),
        (b"", "not an array"),
        (b"text", "not an array"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_other_files_are_no_arrays(tmp_path, content, message):
    path = tmp_path / "x.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content, allow_pickle=True)
    with pytest.raises(UnreadableError, match=rf"^{path}: .*{message}"):
        ArrayReader(shape=[None]).read(path, train=False)


def test_texts_are_ids_from_files_and_memory(tmp_path):
    (tmp_path / "x.txt").write_text("a é\n")
    (tmp_path / "empty.txt").write_text(" \n")
    reader = TextReader(tokenizer=ByteTokenizer(vocab_size=262, max_length=7))
    for part in (tmp_path / "x.txt", "a é"):
        values = reader.read(part, train=False).values
        assert torch.equal(values, reader.tokenizer.encode("a é")[None])
        assert reader.pieces(values) == ["<bos>", "a", " ", "\ufffd", "\ufffd", "<eos>"]
    with pytest.raises(UnreadableError, match=r"empty\.txt: there is no text"):
        reader.read(tmp_path / "empty.txt", train=False)


def test_a_missing_file_is_unreadable(tmp_path):
    for reader in (ArrayReader(shape=[3]), TextReader(tokenizer=ByteTokenizer(vocab_size=262, max_length=7))):
        with pytest.raises(UnreadableError, match=r"none: no such file"):
            reader.read(tmp_path / "none", train=False)
