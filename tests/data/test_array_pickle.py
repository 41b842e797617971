"""What a pickle may build; what it may call is tested with the data that it is for."""

import codecs
import pickle
import time

import numpy as np
import pytest

from perceiver.data.files import UnreadableError
from perceiver.data.sources import array_pickle
from perceiver.data.sources.array_pickle import read_pickle


class Call:
    """Unpickled as usual, it calls a function."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def doubled(times: int) -> object:
    content: object = b"0123456789"
    for _ in range(times):
        content = Call(codecs.encode, content, "hex")
    return content


def refused(path, content: object, message: str) -> None:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))
    began = time.monotonic()
    with pytest.raises(UnreadableError, match=f"^{path}: .*{message}"):
        read_pickle(path)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("kind", ["u1", "i8", "<f4", "S5"])
def test_arrays_and_plain_values_are_read_as_they_were(tmp_path, protocol, kind):
    array = np.arange(15).reshape(3, 5).astype(kind)
    content = {"data": array, "labels": [1, 2], "names": ["é", "b"], "one": np.int64(3), "half": 0.5}
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_pickle(tmp_path / "x")
    assert read.keys() == content.keys()
    assert (read["data"] == array).all()
    assert read["data"].dtype == array.dtype
    assert {name: value for name, value in read.items() if name != "data"} == {
        name: value for name, value in content.items() if name != "data"
    }


def test_what_takes_more_memory_than_its_bytes_is_refused(tmp_path):
    refused(tmp_path / "x", {"a": doubled(40)}, "refuses to encode as 'hex'")
    refused(tmp_path / "x", {"a": Call(np.ndarray, (10**11,), np.dtype("f8"))}, "not callable")
    refused(tmp_path / "x", b"\x80\x02" + b"]" * 3_000_000 + b".", "more than 2,097,152 values")


def test_an_array_is_built_in_no_other_way_than_numpys(tmp_path):
    with pytest.raises(pickle.UnpicklingError, match="in another way"):
        array_pickle._array(array_pickle.NDARRAY, (10**11,), "b")


def test_a_file_larger_than_any_of_the_release_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(array_pickle, "MAX_BYTES", 10)
    refused(tmp_path / "x", {"a": "0123456789"}, "bytes are more than 10")


def test_keys_are_texts(tmp_path):
    refused(tmp_path / "x", {3: 5}, "holds a int as a key")
