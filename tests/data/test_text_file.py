import pytest

from perceiver.data.files import UnreadableError
from perceiver.data.text_file import Entry, read_lines, read_text


@pytest.fixture
def file(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "file"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
def test_marks_line_ends_and_empty_lines_change_nothing(file, mark, end):
    path = file(mark + end.join(["ü\tb\tmore\teven more", "", " c \u2028 c\t d ", " \t", ""]).encode())
    rows = [(row.line, row["x"], row["y"]) for row in read_lines(path, ("x", "y"))]
    assert rows == [(1, "ü", "b"), (3, "c \u2028 c", "d")]


def test_a_cell_may_be_empty_but_not_missing(file):
    assert [row.cells for row in read_lines(file("a\t\n\tb"), ("x", "y"))] == [{"x": "a", "y": ""}, {"x": "", "y": "b"}]
    path = file("a\tb\n\nc d\n")
    with pytest.raises(UnreadableError, match=f"^{path}: line 3: no tab between x and y$"):
        list(read_lines(path, ("x", "y")))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        # quoted by a program: everything, what holds a quote, what holds a comma
        ('"a"\t"b"\n"c"\t"d, e"\n', [("a", "b"), ("c", "d, e")]),
        ('a\t"say ""b"""\nc, d\te\n', [("a", 'say "b"'), ("c, d", "e")]),
        ('"a, b"\tc\nd\t"e, f"\n', [("a, b", "c"), ("d", "e, f")]),
        ('"a"\t"b\tc"\n"d"\t"e"\n', [("a", "b\tc"), ("d", "e")]),
        # of the text: a lone quote, speech, a quoted text among others, a quote that goes over the tab
        ('"a\tb\n"c"\t"d"\n', [('"a', "b"), ('"c"', '"d"')]),
        ('"a," b\tc\n"d, e"\tf\n', [('"a," b', "c"), ('"d, e"', "f")]),
        ('"a" "b"\tc\n', [('"a" "b"', "c")]),
        ('"a!"\tb\nc, d\te\n', [('"a!"', "b"), ("c, d", "e")]),
        ('"a, b"\tc\nd, e\tf\n', [('"a, b"', "c"), ("d, e", "f")]),
        ('"a,\tb"\nc\td\n', [('"a,', 'b"'), ("c", "d")]),
        ('5" pipe\ta\n', [('5" pipe', "a")]),
    ],
)
def test_quotes_are_taken_off_where_a_program_has_put_them_on_only(file, text, wanted):
    assert [(row["x"], row["y"]) for row in read_lines(file(text), ("x", "y"))] == wanted


@pytest.mark.parametrize("read", [read_text, Entry.read, lambda path: list(read_lines(path, ("x",)))])
class TestAnyReader:
    def test_missing_files_and_folders_are_named(self, tmp_path, read):
        with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/x: no such file$"):
            read(tmp_path / "x")
        with pytest.raises(UnreadableError, match=f"^{tmp_path}: Is a directory$"):
            read(tmp_path)

    @pytest.mark.parametrize("encoding", ["latin1", "utf-16"])
    def test_other_encodings_are_refused(self, file, read, encoding):
        path = file('{"x": "ä"}'.encode(encoding))
        with pytest.raises(UnreadableError, match=f"^{path}: not text in UTF-8$"):
            read(path)


class TestEntries:
    def test_what_stands_in_a_file(self, file):
        (entry,) = Entry.read(file('{"images": [{"name": "a/b.jpg", "id": 3}]}')).entries("images")
        assert entry.value("id", object) == 3
        assert entry.value("name", str) == entry.file_name("name") == "a/b.jpg"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"not JSON: Expecting value: line 1 column 1 \(char 0\)"),
            ('{"a":\n [1,}', r"not JSON: Expecting value: line 2 column 5 \(char 10\)"),
            ("[" * 100_000, "not JSON: .*recursion.*"),
            ("[]", "there is no 'a'"),
            ("{}", "there is no 'a'"),
            ('{"a": {}}', "a='{}' is not a list"),
            ('{"a": [7]}', r"a\[0\]: there is no 'b'"),
            ('{"a": [{"b": []}, {"b": "x"}]}', r"a\[1\]: b='x' is not a list"),
            ('{"a": [{"b": [{"c": 5}]}]}', r"a\[0\]\.b\[0\]: c='5' is not a text"),
            ('{"a": [{"b": [{"c": "../x"}]}]}', r"a\[0\]\.b\[0\]: c='\.\./x' is not a name of a file"),
        ],
        ids=range(10),
    )
    def test_what_is_not_as_it_must_be_is_told_with_its_place(self, file, text, message):
        path = file(text)
        with pytest.raises(UnreadableError, match=f"^{path}: {message}$"):
            [c.file_name("c") for a in Entry.read(path).entries("a") for c in a.entries("b")]

    def test_long_values_are_cut_in_messages(self, file):
        with pytest.raises(UnreadableError, match=r"a='x{40}' is not a list"):
            list(Entry.read(file(f'{{"a": "{"x" * 1000}"}}')).entries("a"))

    def test_a_key_that_comes_again_is_told(self, file):
        with pytest.raises(UnreadableError, match=r"not JSON: the key 'a' is there a second time in one object$"):
            Entry.read(file('{"b": [{"a": 1, "c": 2, "a": 3}]}'))

    @pytest.mark.parametrize("value", ["null", "true", "1.5", "[1]", '{"a": 1}'])
    def test_an_id_is_a_whole_number_or_a_text(self, file, value):
        with pytest.raises(UnreadableError, match=r"is neither a whole number nor a text$"):
            Entry.read(file(f'{{"id": {value}}}')).id("id")
        assert [Entry.read(file(f'{{"id": {one}}}')).id("id") for one in ("7", '"7"', '"x"')] == ["7", "7", "x"]
