"""Tars: where their files are, which of them are samples, and the index that stores it."""

import gzip
import io
import lzma
import multiprocessing
import os
import pickle
import subprocess
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from perceiver.data.files import UnreadableError
from perceiver.data.sources import tar_index
from perceiver.data.sources.tar_index import BLOCK, MAX_ENDINGS, Member, ShardIndex, TarShards, files_in
from scripts.data_trees import write_tar
from tests.data.datasets import check_error

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
CONTENT = {"a.txt": b"A", "empty.txt": b"", "folder/b.txt": b"B" * BLOCK, "folder/c.txt": bytes(range(256)) * 5}


def listed(path: Path) -> dict[str, bytes]:
    """Return name -> content at the offset."""
    content = path.read_bytes()
    with path.open("rb") as file:
        return {found.name: content[found.offset : found.offset + found.size] for found in files_in(path, file)}


def change_field(path: Path, start: int, content: bytes, header: int = 0) -> None:
    """Change a field of a header and update its checksum."""
    tar = bytearray(path.read_bytes())
    tar[header + start : header + start + len(content)] = content
    block = tar[header : header + BLOCK]
    tar[header + 148 : header + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
    path.write_bytes(tar)


LONG = ["d" * 101, f"{'d' * 250}/{'e' * 250}", f"{'ü' * 120}.jpg", "日本語.jpg", "a" * 99 + "ä"]
NAMES = {
    "ustar": [f"{'d' * 90}/{'e' * 60}/{'f' * 95}.jpg", "ä/ö.jpg"],
    "gnu": LONG,
    "pax": [*LONG, "a=b\nc.jpg"],
}


class TestFilesIn:
    @pytest.mark.parametrize("format", FORMATS)
    def test_files_of_any_name_are_found_at_their_offsets(self, tmp_path, format):
        content = CONTENT | {name: name.encode()[:7] for name in NAMES[format]}
        assert listed(write_tar(tmp_path / "x.tar", content, FORMATS[format])) == content

    @pytest.mark.parametrize("format", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
    def test_tars_of_the_program_tar_are_read(self, tmp_path, format):
        content = CONTENT | ({} if format == "v7" else {f"{'d' * 60}/{'e' * 60}/ä.jpg": b"long"})
        for name, data in content.items():
            path = tmp_path / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        command = ["tar", "-c", f"--format={format}", "-f", tmp_path / "x.tar", "-C", tmp_path / "files", "."]
        subprocess.run(command, check=True)
        assert listed(tmp_path / "x.tar") == {f"./{name}": data for name, data in content.items()}

    def test_folders_are_left_out(self, tmp_path):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            for name in ("a", "a/b/"):
                entry = tarfile.TarInfo(name)
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            archive.addfile(tarfile.TarInfo("a/c.txt"))
        assert listed(tmp_path / "x.tar") == {"a/c.txt": b""}

    @pytest.mark.parametrize("format", ["gnu", "pax"])
    def test_offsets_may_exceed_32_bits_and_octal_numbers(self, tmp_path, format):
        """The first file has 9 GiB, none of which is on disk."""
        path, size = tmp_path / "x.tar", 9 * 2**30
        first, second = tarfile.TarInfo("large.bin"), tarfile.TarInfo("small.txt")
        first.size, second.size = size, 3
        with path.open("wb") as file:
            file.write(first.tobuf(FORMATS[format]))
            start = file.tell()
            file.seek(size, io.SEEK_CUR)
            file.write(second.tobuf(FORMATS[format]) + b"yes".ljust(BLOCK, b"\0") + bytes(2 * BLOCK))
        with path.open("rb") as file:
            large, small = files_in(path, file)
        assert (large.name, large.offset, large.size) == ("large.bin", start, size)
        assert Member(path, small.offset, small.size, small.name).open().read() == b"yes"

    def test_any_positive_number_of_empty_blocks_ends_a_tar_and_any_truncation_is_refused(self, tmp_path):
        path = write_tar(tmp_path / "x.tar", CONTENT, tarfile.PAX_FORMAT)
        tar = path.read_bytes().rstrip(b"\0")
        end = -(-len(tar) // BLOCK) * BLOCK
        for empty in (1, 2, 7, 5000):
            path.write_bytes(tar.ljust(end + empty * BLOCK, b"\0"))
            assert listed(path) == CONTENT
        for length in sorted({*range(0, end + BLOCK, 173), *range(0, end + 1, BLOCK)}):
            path.write_bytes(tar.ljust(end + BLOCK, b"\0")[:length])
            check_error(lambda: listed(path), str(path))

    def test_truncated_files_and_damaged_headers_are_named(self, tmp_path):
        path = write_tar(tmp_path / "x.tar", {"a.txt": b"A" * 700, "b.txt": b"B"})
        tar = path.read_bytes()
        path.write_bytes(tar[: BLOCK + 699])
        check_error(lambda: listed(path), f"{path}/a.txt: ", "truncated")
        path.write_bytes(tar[: 3 * BLOCK])
        check_error(lambda: listed(path), f"{path}: truncated")
        path.write_bytes(tar[: 3 * BLOCK] + b"c" + tar[3 * BLOCK + 1 :])  # Python's tarfile takes it for the end
        check_error(lambda: listed(path), f"{path}: damaged at byte 1536")

    def test_every_changed_byte_of_a_header_is_detected(self, tmp_path):
        path = write_tar(tmp_path / "x.tar", {"a.txt": b"A"})
        tar = path.read_bytes()
        with path.open("r+b") as file:
            for place in {*range(BLOCK)} - {154, 155}:  # bytes after the checksum
                os.pwrite(file.fileno(), bytes([tar[place] ^ 2]), place)
                with pytest.raises(UnreadableError):
                    list(files_in(path, file))
                os.pwrite(file.fileno(), tar[place : place + 1], place)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda tar: b"", "the file is empty"),
            (lambda tar: b"x", "not a tar"),
            (lambda tar: b"not a tar at all " * 100, "not a tar"),
            (lambda tar: b"\0" * 511 + b"x" + b"\0" * 512, "not a tar"),
            (gzip.compress, "compressed with gzip"),
            (lzma.compress, "compressed with xz"),
            (lambda tar: tar * 2, "continues after its end"),
        ],
    )
    def test_what_is_not_a_single_tar_is_refused(self, tmp_path, change, message):
        path = write_tar(tmp_path / "x.tar", CONTENT)
        path.write_bytes(change(path.read_bytes()))
        check_error(lambda: listed(path), f"{path}: {message}")

    @pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
    @pytest.mark.parametrize("name", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", ".."])
    def test_names_outside_of_the_folder_are_refused(self, tmp_path, name, format):
        path = write_tar(tmp_path / "x.tar", {name: b"x"}, format)
        check_error(lambda: listed(path), f"{path}/{name}: not a valid file name")

    @pytest.mark.parametrize(
        ("start", "content", "message"),
        [
            (0, b"\xe4.jpg", "/\\xe4.jpg: the name is not UTF-8"),
            (156, tarfile.LNKTYPE, "/a.jpg: a hard link"),
            (156, tarfile.SYMTYPE, "/a.jpg: a symbolic link"),
            (156, tarfile.CHRTYPE, "/a.jpg: a device"),
            (156, tarfile.BLKTYPE, "/a.jpg: a device"),
            (156, tarfile.FIFOTYPE, "/a.jpg: a pipe"),
            (156, tarfile.GNUTYPE_SPARSE, "/a.jpg: a sparse file"),
            (156, b"Z", "/a.jpg: of unknown type 'Z'"),
            *((124, size, "/a.jpg: ") for size in (b"77777777777\0", b"\x80" + b"\x7f" * 11, b"00000003001\0")),
            *((124, size, ": not a tar") for size in (b"\xff" * 12, b"-0000000001\0", b"0x000000001\0")),
            (124, b"00000_00001\0", ": not a tar"),
        ],
        ids=range(15),
    )
    def test_unsupported_headers_are_named(self, tmp_path, start, content, message):
        path = write_tar(tmp_path / "x.tar", {"a.jpg": b"x"})
        path.write_bytes(path.read_bytes()[: 4 * BLOCK])
        change_field(path, start, content)
        check_error(lambda: listed(path), f"{path}{message}")

    @pytest.mark.parametrize("format", ["gnu", "pax"])
    def test_sparse_files_of_the_program_tar_are_refused(self, tmp_path, format):
        with (tmp_path / "a.bin").open("wb") as file:
            file.seek(2**20)
            file.write(b"end")
        path = tmp_path / "x.tar"
        subprocess.run(["tar", "-c", "-S", f"--format={format}", "-f", path, "-C", tmp_path, "a.bin"], check=True)
        check_error(lambda: listed(path), "a.bin: a sparse file")

    @pytest.mark.parametrize(
        ("kind", "content", "message"),
        [
            *((b"x", content, "damaged at byte 512") for content in (b"x", b"5 a=b", b"99 path=x\n", b"0 path=x\n")),
            *((b"x", content, "damaged at byte 512") for content in (b"11 size=-1\n", b"11 size=1_\n")),
            (b"x", b"999999999 path=x\n", "damaged at byte 512"),
            (b"g", b"9 path=x\n", "damaged at byte 512: one path for all files"),
            (b"L", bytes(2**20 + 1), "damaged at byte 0: a name of 1048577 bytes"),
        ],
        ids=range(9),
    )
    def test_damaged_extended_headers_are_refused(self, tmp_path, kind, content, message):
        path = write_tar(tmp_path / "x.tar", {"header": content, "a.jpg": b"x"})
        change_field(path, 156, kind)
        check_error(lambda: listed(path), f"{path}: {message}")

    def test_thousands_of_extended_headers_do_not_recurse(self, tmp_path):
        """Python's tarfile reads each within the one before."""
        path = write_tar(tmp_path / "x.tar", {f"{number}": b"" for number in range(3000)})
        tar = bytearray(path.read_bytes())
        for header in range(0, 2999 * BLOCK, BLOCK):
            block = tar[header : header + BLOCK]
            block[156:157] = b"x"
            tar[header + 156 : header + 157] = b"x"
            tar[header + 148 : header + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
        path.write_bytes(tar)
        assert listed(path) == {"2999": b""}


FILES = {"a/0.jpg": b"J0", "a/0.cls": b"0", "b/0.JPG": b"J1", "b/0.seg.png": b"S1", "c.cls": b"22", "c.jpg": b""}
SAMPLES = [
    ("a/0", {"jpg": b"J0", "cls": b"0"}),
    ("b/0", {"jpg": b"J1", "seg.png": b"S1"}),
    ("c", {"cls": b"22", "jpg": b""}),
]


@pytest.fixture
def path(tmp_path) -> Path:
    return write_tar(tmp_path / "train-000000.tar", FILES)


def content(shards: TarShards) -> list[tuple[str, dict[str, bytes]]]:
    """Return key, and content by ending, of all samples."""
    found = [shards[index] for index in range(len(shards))]
    return [(one.key, {ending: file.open("rb").read() for ending, file in one.members.items()}) for one in found]


def index_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.npz")


class TestTarShards:
    def test_files_with_one_name_up_to_the_first_dot_are_a_sample(self, path):
        assert content(TarShards([path])) == SAMPLES

    def test_files_of_a_sample_need_not_be_adjacent(self, tmp_path):
        path = write_tar(tmp_path / "x.tar", {"0.jpg": b"a", "1.jpg": b"b", "0.cls": b"c", "1.cls": b"d"})
        assert content(TarShards([path])) == [("0", {"jpg": b"a", "cls": b"c"}), ("1", {"jpg": b"b", "cls": b"d"})]

    def test_samples_of_several_tars_follow_each_other(self, tmp_path):
        tars = [write_tar(tmp_path / f"{n}.tar", {f"{m}.e{n}": b"%d" % m for m in range(n)}) for n in (3, 1, 7)]
        shards = TarShards(tars)
        assert content(shards) == [(str(m), {f"e{n}": b"%d" % m}) for n in (3, 1, 7) for m in range(n)]
        assert [shards[index].tar for index in range(11)] == [tars[0]] * 3 + [tars[1]] + [tars[2]] * 7
        assert all(one < other for one, other in pairwise(shards.ends.tolist()))

    def test_a_member_is_named_with_its_tar_and_no_file_stays_open(self, path):
        before = len(os.listdir("/proc/self/fd"))
        member = TarShards([path])[1].members["jpg"]
        assert str(member) == f"{path}/b/0.jpg"
        assert [member.open("rb").read() for _ in range(2)] == [b"J1", b"J1"]
        assert len(os.listdir("/proc/self/fd")) == before

    def test_hidden_files_and_those_without_an_ending_are_ignored_and_named(self, tmp_path, caplog):
        files = {"a.jpg": b"", "README": b"", ".hidden.jpg": b"", "x/._a.jpg": b"", "a.": b""}
        path = write_tar(tmp_path / "x.tar", files)
        assert [key for key, _ in content(TarShards([path]))] == ["a"]
        (message,) = caplog.messages
        assert message.startswith(f"{path}: ")
        assert message.endswith(": README, .hidden.jpg, x/._a.jpg, a.")

    def test_shards_are_pickled_as_arrays(self, path, tmp_path):
        assert content(pickle.loads(pickle.dumps(TarShards([path])))) == SAMPLES
        files = {f"{number:06d}.{ending}": b"" for number in range(1000) for ending in ("jpg", "cls")}
        shards = TarShards([write_tar(tmp_path / "x.tar", files)])
        assert len(pickle.dumps(shards)) < 1000 * (6 + 8 + 4 * 8) + 2000  # keys, their ends, offsets and sizes

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({}, ": no samples"),
            ({"README": b""}, ": no samples"),
            ({"a.jpg": b"", "a.JPG": b""}, "/a.JPG: appears twice"),
            ({"a.jpg": b"", "./a.jpg": b""}, "/./a.jpg: appears twice"),
            ({f"a.{number}.jpg": b"" for number in range(MAX_ENDINGS + 1)}, ": more than 64 different endings: 0.jpg"),
        ],
        ids=range(5),
    )
    def test_tars_without_distinct_samples_are_refused_and_not_indexed(self, tmp_path, files, message):
        path = write_tar(tmp_path / "x.tar", files)
        check_error(lambda: TarShards([path]), f"{path}{message}")
        assert not index_path(path).exists()

    def test_missing_tars_and_members_that_change_are_named(self, path, monkeypatch):
        check_error(lambda: TarShards([path.with_name("x.tar")]), f"{path.parent}/x.tar: No such file or directory")
        first, last = (TarShards([path])[number] for number in (0, 2))
        monkeypatch.setattr(tar_index, "MAX_BYTES", 1)
        check_error(first.members["jpg"].open, f"{path}/a/0.jpg: 2 bytes")
        assert first.members["cls"].open().read() == b"0"
        monkeypatch.undo()
        path.write_bytes(path.read_bytes()[:1600])
        check_error(last.members["cls"].open, f"{path}/c.cls: ", "truncated")
        path.unlink()
        check_error(first.members["jpg"].open, f"{path}/a/0.jpg: no such file")


def read_at_once(path, start, answers) -> None:
    start.wait()
    answers.put(content(TarShards([path])))


class TestIndex:
    def test_it_is_stored_without_objects_and_used(self, path, monkeypatch):
        TarShards([path])
        assert sorted(path.parent.iterdir()) == [path, index_path(path)]
        with np.load(index_path(path), allow_pickle=False) as arrays:
            assert {arrays[name].dtype for name in arrays} == {np.dtype(np.uint8), np.dtype(np.int64)}
        monkeypatch.setattr(ShardIndex, "scan", None)
        assert content(TarShards([path])) == SAMPLES

    @pytest.mark.parametrize("same_size", [True, False])
    def test_it_is_rebuilt_if_the_tar_has_changed(self, path, same_size):
        TarShards([path])
        before = path.stat()
        write_tar(path, {"new.jpg": b"x" * (1 if same_size else 20000)})
        assert (path.stat().st_size == before.st_size) == same_size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + same_size))
        for _ in range(2):
            assert [key for key, _ in content(TarShards([path]))] == ["new"]

    def test_it_is_rebuilt_if_damaged_anywhere(self, path):
        TarShards([path])
        index = index_path(path).read_bytes()
        places = range(0, len(index), 59)
        damaged = [index[:place] + bytes([index[place] ^ 0xFF]) + index[place + 1 :] for place in places]
        for wrong in (*damaged, *(index[:length] for length in (0, 1, len(index) // 2, len(index) - 1))):
            index_path(path).write_bytes(wrong)
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
    def test_it_is_rebuilt_if_inconsistent(self, path, name, change):
        TarShards([path])
        with np.load(index_path(path)) as arrays:
            changed = {key: change(arrays[key]) if key == name else arrays[key] for key in arrays}
        np.savez(index_path(path), **changed)
        assert content(TarShards([path])) == SAMPLES
        with np.load(index_path(path), allow_pickle=False) as arrays:
            repaired, was = arrays[name], changed[name]
            assert repaired.dtype != was.dtype or not np.array_equal(repaired, was)

    def test_keys_are_never_cut_within_a_character(self, tmp_path):
        path = write_tar(tmp_path / "x.tar", {"ä.jpg": b"", "ö.jpg": b""})
        expected = content(TarShards([path]))
        with np.load(index_path(path)) as arrays:
            changed = {key: arrays[key] for key in arrays} | {"key_ends": np.array([1, 4])}
        np.savez(index_path(path), **changed)
        assert content(TarShards([path])) == expected

    def test_if_it_cannot_be_stored_it_is_built_every_time_with_one_warning(self, path, monkeypatch, caplog):
        def refuse(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        other = write_tar(path.with_name("train-000001.tar"), FILES)
        monkeypatch.setattr(tar_index.np, "savez", refuse)
        assert content(TarShards([path, other])) == SAMPLES * 2
        (message,) = caplog.messages
        assert all(part in message for part in (f"{path.parent}: ", "2 of 2", "Permission denied"))
        assert sorted(path.parent.iterdir()) == [path, other], "no partial file stays"

    def test_several_processes_may_build_it_at_once(self, tmp_path):
        path = write_tar(tmp_path / "x.tar", {f"{number}.jpg": b"%d" % number for number in range(501)})
        context = multiprocessing.get_context("fork")
        start, answers = context.Barrier(4), context.SimpleQueue()
        processes = [context.Process(target=read_at_once, args=(path, start, answers)) for _ in range(4)]
        for process in processes:
            process.start()
        for _ in processes:
            assert answers.get() == [(str(number), {"jpg": b"%d" % number}) for number in range(501)]
        for process in processes:
            process.join()
            assert process.exitcode == 0
        assert sorted(tmp_path.iterdir()) == [path, index_path(path)]
