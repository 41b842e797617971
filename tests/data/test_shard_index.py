import io
import multiprocessing
import os
import pickle
from itertools import pairwise

import numpy as np
import pytest

from perceiver.data.files import UnreadableError
from perceiver.data.sources.shard_index import MOST_ENDINGS, Member, ShardIndex, TarShards
from tests.data.shard_trees import tar

FILES = {"a/0.jpg": b"J0", "a/0.cls": b"0", "b/0.JPG": b"J1", "b/0.seg.png": b"S1", "c.cls": b"22", "c.jpg": b""}
SAMPLES = [
    ("a/0", {"jpg": b"J0", "cls": b"0"}),
    ("b/0", {"jpg": b"J1", "seg.png": b"S1"}),
    ("c", {"cls": b"22", "jpg": b""}),
]


@pytest.fixture
def path(tmp_path):
    return tar(tmp_path / "train-000000.tar", FILES)


def content(shards: TarShards) -> list[tuple[str, dict[str, bytes]]]:
    """Key, and content by ending, of all samples."""
    found = [shards[index] for index in range(len(shards))]
    return [(one.key, {ending: file.open("rb").read() for ending, file in one.members.items()}) for one in found]


def index_of(path):
    return path.with_name(f"{path.name}.index.npz")


def refused(path, message: str) -> None:
    with pytest.raises(UnreadableError) as error:
        TarShards([path])
    assert str(error.value).replace(str(path), "TAR") == message
    assert not index_of(path).exists()


def test_files_belong_together_that_are_called_alike_up_to_the_first_dot(path):
    assert content(TarShards([path])) == SAMPLES


def test_files_of_a_sample_need_not_lie_side_by_side(tmp_path):
    files = {"0.jpg": b"a", "1.jpg": b"b", "0.cls": b"c", "1.cls": b"d"}
    found = content(TarShards([tar(tmp_path / "x.tar", files)]))
    assert found == [("0", {"jpg": b"a", "cls": b"c"}), ("1", {"jpg": b"b", "cls": b"d"})]


def test_samples_of_several_tars_lie_one_tar_behind_the_other(tmp_path):
    tars = [tar(tmp_path / f"{n}.tar", {f"{m}.e{n}": b"%d" % m for m in range(n)}) for n in (3, 1, 7)]
    shards = TarShards(tars)
    assert content(shards) == [(str(m), {f"e{n}": b"%d" % m}) for n in (3, 1, 7) for m in range(n)]
    assert [shards[index].tar for index in range(11)] == [tars[0]] * 3 + [tars[1]] + [tars[2]] * 7


def test_a_member_reads_like_a_file_and_is_named_with_its_tar(path):
    member = TarShards([path])[1].members["jpg"]
    assert str(member) == f"{path}/b/0.jpg"
    for _ in range(2):
        with member.open("rb") as file:
            assert isinstance(file, io.BytesIO)
            assert file.read() == b"J1"


def test_what_is_hidden_or_has_no_ending_is_left_out_and_named(tmp_path, caplog):
    files = {"a.jpg": b"", "README": b"", ".hidden.jpg": b"", "x/._a.jpg": b"", "a.": b""}
    path = tar(tmp_path / "x.tar", files)
    assert [key for key, _ in content(TarShards([path]))] == ["a"]
    assert caplog.messages == [f"{path}: ignored files without a key or an ending: README, .hidden.jpg, x/._a.jpg, a."]


def test_shards_go_to_another_process_whole(path):
    assert content(pickle.loads(pickle.dumps(TarShards([path])))) == SAMPLES


def test_no_file_stays_open(path):
    before = len(os.listdir("/proc/self/fd"))
    shards = TarShards([path])
    content(shards)
    assert len(os.listdir("/proc/self/fd")) == before


def read_at_once(path, start, answers) -> None:
    start.wait()
    answers.put(content(TarShards([path])))


class TestIndex:
    def test_it_is_kept_and_used(self, path, monkeypatch):
        first = content(TarShards([path]))
        monkeypatch.setattr(ShardIndex, "scanned", None)
        assert content(TarShards([path])) == first

    def test_it_holds_no_objects(self, path):
        TarShards([path])
        with np.load(index_of(path), allow_pickle=False) as arrays:
            assert {arrays[name].dtype for name in arrays} == {np.dtype(np.uint8), np.dtype(np.int64)}

    def test_nothing_but_it_is_left_in_the_folder(self, path):
        TarShards([path])
        assert sorted(path.parent.iterdir()) == [path, index_of(path)]

    @pytest.mark.parametrize("same_size", [True, False])
    def test_it_is_made_anew_where_the_tar_has_changed(self, path, same_size):
        TarShards([path])
        before = path.stat()
        tar(path, {"new.jpg": b"x" * (1 if same_size else 20000)})
        assert (path.stat().st_size == before.st_size) == same_size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + same_size))
        assert [key for key, _ in content(TarShards([path]))] == ["new"]
        assert [key for key, _ in content(TarShards([path]))] == ["new"]

    def test_it_is_made_anew_where_it_is_damaged_anywhere(self, path):
        TarShards([path])
        whole = index_of(path).read_bytes()
        for place in range(0, len(whole), 29):
            index_of(path).write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            assert content(TarShards([path])) == SAMPLES
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            index_of(path).write_bytes(whole[:length])
            assert content(TarShards([path])) == SAMPLES

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("offsets", lambda values: values + 2**40),
            ("offsets", lambda values: values * 0),
            ("offsets", lambda values: values * 0 - 1),
            ("offsets", lambda values: values[:1]),
            ("offsets", lambda values: values.astype(np.float64)),
            ("offsets", lambda values: values.astype(object)),
            ("sizes", lambda values: values + 2**62),
            ("sizes", lambda values: values * 0 - 1),
            ("key_ends", lambda values: values + 1),
            ("key_ends", lambda values: values[::-1]),
            ("key_ends", lambda values: values[:0]),
            ("keys", lambda values: values | 0x80),
            ("keys", lambda values: values[:-1]),
            ("endings", lambda values: values[:-1]),
            ("endings", lambda values: np.frombuffer(b"3", np.uint8)),
            ("tar", lambda values: values[:1]),
        ],
    )
    def test_it_is_made_anew_where_it_says_what_cannot_be(self, path, name, change):
        TarShards([path])
        with np.load(index_of(path)) as arrays:
            changed = {key: change(arrays[key]) if key == name else arrays[key] for key in arrays}
        np.savez(index_of(path), **changed)
        assert content(TarShards([path])) == SAMPLES
        with np.load(index_of(path), allow_pickle=False) as arrays:
            mended, was = arrays[name], changed[name]
            assert mended.dtype != was.dtype or not np.array_equal(mended, was)

    def test_a_key_is_never_cut_within_a_letter(self, tmp_path):
        path = tar(tmp_path / "x.tar", {"ä.jpg": b"", "ö.jpg": b""})
        shards = TarShards([path])
        with np.load(index_of(path)) as arrays:
            changed = {key: arrays[key] for key in arrays} | {"key_ends": np.array([1, 4])}
        np.savez(index_of(path), **changed)
        assert content(TarShards([path])) == content(shards)

    def test_where_it_cannot_be_kept_it_is_made_each_time_and_that_is_said_once(self, path, monkeypatch, caplog):
        def refuse(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        other = tar(path.with_name("train-000001.tar"), FILES)
        monkeypatch.setattr("perceiver.data.sources.shard_index.np.savez", refuse)
        assert content(TarShards([path, other])) == SAMPLES * 2
        (message,) = caplog.messages
        assert message.startswith(f"{path.parent}: the indices of 2 of 2 tars cannot be kept there (Permission denied)")
        assert sorted(path.parent.iterdir()) == [path, other], "nothing half written stays"

    def test_several_processes_may_make_it_at_once(self, tmp_path):
        path = tar(tmp_path / "x.tar", {f"{number}.jpg": b"%d" % number for number in range(2000)})
        context = multiprocessing.get_context("fork")
        start, answers = context.Barrier(4), context.SimpleQueue()
        processes = [context.Process(target=read_at_once, args=(path, start, answers)) for _ in range(4)]
        for process in processes:
            process.start()
        for _ in processes:
            assert answers.get() == [(str(number), {"jpg": b"%d" % number}) for number in range(2000)]
        for process in processes:
            process.join()
            assert process.exitcode == 0
        assert sorted(tmp_path.iterdir()) == [path, index_of(path)]
        assert len(TarShards([path])) == 2000

    def test_a_sample_of_a_million_costs_no_object(self, tmp_path):
        """What each worker holds of a tar are arrays, whose size is that of the names and places."""
        files = {f"{number:06d}.{ending}": b"" for number in range(1000) for ending in ("jpg", "cls")}
        shards = TarShards([tar(tmp_path / "x.tar", files)])
        assert len(pickle.dumps(shards)) < 1000 * (6 + 8 + 4 * 8) + 2000


class TestRefused:
    @pytest.mark.parametrize("second", ["a.jpg", "./a.jpg", "a.JPG"])
    def test_a_name_that_is_there_twice(self, tmp_path, second):
        path = tmp_path / "x.tar"
        one, two = tar(tmp_path / "1", {"a.jpg": b""}), tar(tmp_path / "2", {second: b""})
        path.write_bytes(one.read_bytes()[:512] + two.read_bytes())
        refused(path, f"TAR/{second}: is there a second time")

    @pytest.mark.parametrize("files", [{}, {"README": b""}], ids=str)
    def test_a_tar_without_a_sample(self, tmp_path, files):
        refused(tar(tmp_path / "x.tar", files), "TAR: there is no sample in it")

    def test_keys_with_dots_in_them(self, tmp_path):
        path = tar(tmp_path / "x.tar", {f"a.{number}.jpg": b"" for number in range(MOST_ENDINGS + 1)})
        endings = "0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, …"
        refused(path, f"TAR: more than 64 different endings: {endings}; are there dots in the keys?")

    def test_a_tar_that_is_damaged(self, path):
        path.write_bytes(path.read_bytes()[:700])
        refused(path, "TAR: lacks the empty blocks at its end, so that it must have been cut off")

    def test_a_tar_that_is_missing(self, tmp_path):
        refused(tmp_path / "x.tar", "TAR: No such file or directory")

    def test_a_member_of_a_tar_that_is_gone_or_shorter_by_now(self, path):
        member, other = (TarShards([path])[number].members["cls"] for number in (0, 2))
        path.write_bytes(path.read_bytes()[:1600])
        with pytest.raises(UnreadableError, match=r"c\.cls: the tar ends before; it was changed while it was read$"):
            other.open("rb")
        path.unlink()
        with pytest.raises(UnreadableError, match=r"a/0\.cls: no such file$"):
            member.open("rb")

    def test_a_member_that_is_too_large(self, path, monkeypatch):
        monkeypatch.setattr("perceiver.data.sources.shard_index.MOST_BYTES", 1)
        members = TarShards([path])[0].members
        assert members["cls"].open("rb").read() == b"0"
        with pytest.raises(UnreadableError, match=r"a/0\.jpg: 2 bytes are too much to be read at once$"):
            members["jpg"].open("rb")


def test_a_place_beyond_4_gib_is_read(tmp_path):
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.seek(5 * 2**30)
        file.write(b"there")
    assert Member(path, 5 * 2**30, 5, "a.txt").open("rb").read() == b"there"


def test_ends_ascend(tmp_path):
    shards = TarShards([tar(tmp_path / f"{n}.tar", {f"{m}.x": b"" for m in range(n + 1)}) for n in range(5)])
    assert all(one < other for one, other in pairwise(shards.ends.tolist()))
