import gzip
import io
import lzma
import subprocess
import tarfile

import pytest

from perceiver.data.files import UnreadableError
from perceiver.data.sources.tar_file import BLOCK, files_in
from tests.data.shard_trees import tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
CONTENT = {"a.txt": b"A", "empty.txt": b"", "folder/b.txt": b"B" * BLOCK, "folder/c.txt": bytes(range(256)) * 5}


def listed(path) -> dict[str, bytes]:
    """Name -> content, as the places say."""
    whole = path.read_bytes()
    with path.open("rb") as file:
        return {found.name: whole[found.offset : found.offset + found.size] for found in files_in(path, file)}


def refused(path, message: str) -> None:
    with pytest.raises(UnreadableError) as error:
        listed(path)
    assert str(error.value).replace(str(path), "TAR") == message


def field(path, start: int, content: bytes, header: int = 0) -> None:
    """Change a field of a header, and its checksum with it."""
    whole = bytearray(path.read_bytes())
    whole[header + start : header + start + len(content)] = content
    block = whole[header : header + BLOCK]
    whole[header + 148 : header + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
    path.write_bytes(whole)


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_files_are_where_they_are_said_to_be(tmp_path, format):
    assert listed(tar(tmp_path / "x.tar", CONTENT, format)) == CONTENT


LONG = {
    "ustar": [f"{'d' * 90}/{'e' * 60}/{'f' * 95}.jpg", "ä/ö.jpg"],
    "gnu": ["d" * 101, f"{'d' * 250}/{'e' * 250}", f"{'ü' * 120}.jpg", "日本語.jpg", "a" * 99 + "ä"],
    "pax": ["d" * 101, f"{'d' * 250}/{'e' * 250}", f"{'ü' * 120}.jpg", "日本語.jpg", "a=b\nc.jpg", "a" * 99 + "ä"],
}


@pytest.mark.parametrize("format", FORMATS)
def test_names_of_any_length_and_in_any_script_are_read(tmp_path, format):
    content = {name: name.encode()[:7] for name in [*LONG[format], "short.jpg"]}
    assert listed(tar(tmp_path / "x.tar", content, FORMATS[format])) == content


@pytest.mark.parametrize("format", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
def test_what_the_program_tar_writes_is_read(tmp_path, format):
    folder = tmp_path / "files"
    content = CONTENT | ({} if format == "v7" else {f"{'d' * 60}/{'e' * 60}/ä.jpg": b"long"})
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    path = tmp_path / "x.tar"
    subprocess.run(["tar", "-c", f"--format={format}", "-f", path, "-C", folder, "."], check=True)
    assert listed(path) == {f"./{name}": data for name, data in content.items()}


def test_folders_are_left_out(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a", "a/b/"):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        archive.addfile(tarfile.TarInfo("a/c.txt"))
    assert listed(path) == {"a/c.txt": b""}


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_places_may_be_beyond_what_32_bits_and_octal_numbers_hold(tmp_path, format):
    """A file of 9 GiB in front, without a byte of it on disk."""
    path, size = tmp_path / "x.tar", 9 * 2**30
    with path.open("wb") as file:
        first = tarfile.TarInfo("large.bin")
        first.size = size
        file.write(first.tobuf(FORMATS[format]))
        start = file.tell()
        file.seek(size, io.SEEK_CUR)
        behind = tarfile.TarInfo("behind.txt")
        behind.size = 3
        file.write(behind.tobuf(FORMATS[format]) + b"yes".ljust(BLOCK, b"\0") + bytes(2 * BLOCK))
    with path.open("rb") as file:
        large, small = files_in(path, file)
        assert (large.name, large.offset, large.size) == ("large.bin", start, size)
        file.seek(small.offset)
        assert (small.name, file.read(small.size)) == ("behind.txt", b"yes")


def test_any_number_of_empty_blocks_may_end_it(tmp_path):
    path = tar(tmp_path / "x.tar", CONTENT)
    whole = path.read_bytes().rstrip(b"\0")
    content_end = -(-len(whole) // BLOCK) * BLOCK
    for empty in (1, 2, 7, 5000):
        path.write_bytes(whole.ljust(content_end + empty * BLOCK, b"\0"))
        assert listed(path) == CONTENT


class TestRefused:
    def test_a_tar_that_is_cut_off_anywhere(self, tmp_path):
        whole = tar(tmp_path / "whole.tar", CONTENT, tarfile.PAX_FORMAT).read_bytes()
        end = -(-len(whole.rstrip(b"\0")) // BLOCK) * BLOCK
        path = tmp_path / "x.tar"
        for length in sorted({*range(0, end + BLOCK, 173), *range(0, end + 1, BLOCK)}):
            path.write_bytes(whole[:length])
            with pytest.raises(UnreadableError, match=r"^.*x\.tar"):
                listed(path)
        path.write_bytes(whole[: end + BLOCK])
        assert listed(path) == CONTENT

    def test_cut_off_between_two_files(self, tmp_path):
        path = tar(tmp_path / "x.tar", {"a.txt": b"A", "b.txt": b"B"})
        path.write_bytes(path.read_bytes()[: 2 * BLOCK])
        refused(path, "TAR: lacks the empty blocks at its end, so that it must have been cut off")

    def test_cut_off_in_a_file(self, tmp_path):
        path = tar(tmp_path / "x.tar", {"a.txt": b"A" * 700})
        path.write_bytes(path.read_bytes()[: BLOCK + 699])
        refused(path, "TAR/a.txt: ends beyond the tar, which must have been cut off")

    def test_a_damaged_header_that_is_not_the_first(self, tmp_path):
        """Python's tarfile takes it for the end."""
        path = tar(tmp_path / "x.tar", {"a.txt": b"A", "b.txt": b"B"})
        whole = bytearray(path.read_bytes())
        whole[2 * BLOCK] ^= 1
        path.write_bytes(whole)
        refused(path, "TAR: damaged at byte 1024")

    def test_every_changed_byte_of_a_header(self, tmp_path):
        path = tar(tmp_path / "x.tar", {"a.txt": b"A"})
        whole = path.read_bytes()
        for place in {*range(BLOCK)} - {154, 155}:  # what follows the checksum
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
            with pytest.raises(UnreadableError):
                listed(path)

    @pytest.mark.parametrize("content", [b"x", b"no tar at all " * 100, b"\0" * 511 + b"x" + b"\0" * 512], ids=len)
    def test_what_is_no_tar(self, tmp_path, content):
        path = tmp_path / "x.tar"
        path.write_bytes(content)
        refused(path, "TAR: not a tar")

    def test_an_empty_file(self, tmp_path):
        path = tmp_path / "x.tar"
        path.touch()
        refused(path, "TAR: the file is empty")

    @pytest.mark.parametrize(("name", "compress"), [("gzip", gzip.compress), ("xz", lzma.compress)])
    def test_a_compressed_tar(self, tmp_path, name, compress):
        path = tar(tmp_path / "x.tar", CONTENT)
        path.write_bytes(compress(path.read_bytes()))
        reason = "in which no sample can be found by its place; decompress it"
        refused(path, f"TAR: compressed with {name}, {reason}")

    def test_tars_that_were_joined(self, tmp_path):
        path = tar(tmp_path / "x.tar", {"a.txt": b"A"})
        path.write_bytes(path.read_bytes() * 2)
        refused(path, "TAR: continues after its end; tars that were joined must be parted again")

    @pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
    @pytest.mark.parametrize("name", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", ".."])
    def test_names_that_lead_out_of_the_folder(self, tmp_path, name, format):
        path = tar(tmp_path / "x.tar", {name: b"x"}, format)
        refused(path, f"TAR/{name}: not a name of a file")

    def test_names_that_are_not_utf8(self, tmp_path):
        path = tar(tmp_path / "x.tar", {"a.jpg": b"x"})
        field(path, 0, b"\xe4.jpg")
        refused(path, "TAR/\\xe4.jpg: a name that is not in UTF-8")

    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            (tarfile.LNKTYPE, "a hard link"),
            (tarfile.SYMTYPE, "a symbolic link"),
            (tarfile.CHRTYPE, "a device"),
            (tarfile.BLKTYPE, "a device"),
            (tarfile.FIFOTYPE, "a pipe"),
            (tarfile.GNUTYPE_SPARSE, "a sparse file"),
            (b"Z", "of the unknown kind 'Z'"),
        ],
    )
    def test_what_is_no_file(self, tmp_path, kind, said):
        path = tar(tmp_path / "x.tar", {"a.jpg": b"x"})
        field(path, 156, kind)
        refused(path, f"TAR/a.jpg: {said}, which is not read")

    @pytest.mark.parametrize("format", ["gnu", "pax"])
    def test_sparse_files_as_the_program_tar_writes_them(self, tmp_path, format):
        with (tmp_path / "a.bin").open("wb") as file:
            file.seek(2**20)
            file.write(b"end")
        path = tmp_path / "x.tar"
        subprocess.run(["tar", "-c", "-S", f"--format={format}", "-f", path, "-C", tmp_path, "a.bin"], check=True)
        with pytest.raises(UnreadableError, match=r"a\.bin: a sparse file, which is not read$"):
            listed(path)

    @pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\x7f" * 11, b"00000001001\0"], ids=repr)
    def test_sizes_beyond_the_file(self, tmp_path, size):
        path = tmp_path / "x.tar"
        tar(path, {"a.jpg": b"x"})
        path.write_bytes(path.read_bytes()[: 2 * BLOCK])
        field(path, 124, size)
        refused(path, "TAR/a.jpg: ends beyond the tar, which must have been cut off")

    @pytest.mark.parametrize("size", [b"\xff" * 12, b"-0000000001\0", b"0x000000001\0", b"00000_00001\0"], ids=repr)
    def test_sizes_that_are_none(self, tmp_path, size):
        path = tar(tmp_path / "x.tar", {"a.jpg": b"x"})
        field(path, 124, size)
        refused(path, "TAR: not a tar")

    @pytest.mark.parametrize(
        "records",
        [b"x", b"5 a=b", b"99 path=x\n", b"0 path=x\n", b"11 size=-1\n", b"11 size=1_\n", b"999999999 path=x\n"],
        ids=repr,
    )
    def test_damaged_records_of_pax(self, tmp_path, records):
        path = tar(tmp_path / "x.tar", {"header": records, "a.jpg": b"x"})
        field(path, 156, b"x")
        refused(path, "TAR: damaged at byte 512")

    def test_a_name_that_is_larger_than_any(self, tmp_path):
        path = tar(tmp_path / "x.tar", {"name": bytes(2**20 + 1), "a.jpg": b"x"})
        field(path, 156, b"L")
        refused(path, "TAR: damaged at byte 0: a name of 1048577 bytes")

    def test_one_name_for_all_files(self, tmp_path):
        path = tar(tmp_path / "x.tar", {"header": b"9 path=x\n", "a.jpg": b"x"})
        field(path, 156, b"g")
        refused(path, "TAR: damaged at byte 512: one path for all files")

    def test_any_number_of_headers_that_continue_others(self, tmp_path):
        """Each of which Python's tarfile reads inside of the one before."""
        path = tar(tmp_path / "x.tar", {f"{number}": b"" for number in range(3000)})
        whole = bytearray(path.read_bytes())
        for header in range(0, 2999 * BLOCK, BLOCK):
            block = whole[header : header + BLOCK]
            block[156:157] = b"x"
            block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
            whole[header : header + BLOCK] = block
        path.write_bytes(whole)
        assert listed(path) == {"2999": b""}
