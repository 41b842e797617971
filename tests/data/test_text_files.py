from pathlib import Path

import pytest

from perceiver.data.files import UnreadableError, is_file_name
from perceiver.data.text_files import JsonEntry, Row, normalize_spaces, read_csv, read_text, read_tsv, text_problem
from tests.data.datasets import check_error

COLUMNS = ["name", "fold"]
ENDS = pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
MARKS = pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])


@pytest.fixture
def file(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "file"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize(
    "read",
    [
        *(read_text, JsonEntry.read, lambda path: list(read_csv(path, ("x",)))),
        lambda path: list(read_tsv(path, ("x",))),
    ],
)
def test_missing_files_folders_and_other_encodings_are_named(tmp_path, file, read):
    check_error(lambda: read(tmp_path / "x"), f"{tmp_path}/x: no such file", error=FileNotFoundError)
    check_error(lambda: read(tmp_path), f"{tmp_path}: Is a directory")
    for encoding in ("latin1", "utf-16"):
        path = file('{"x": "ä"}'.encode(encoding))
        check_error(lambda path=path: read(path), f"{path}: not UTF-8 text")


@pytest.mark.parametrize("text", ["  a  dog ", "a\ndog", "a\r\n dog\n", "a\tdog", "a\u00a0dog"])
def test_white_space_becomes_single_spaces(text):
    assert normalize_spaces(text) == "a dog"


@pytest.mark.parametrize("character", ["\0", "\x1b[31m", "\x7f", "\x92", "\ud800"], ids=ascii)
def test_control_characters_and_surrogates_are_no_text(character):
    assert f"character 3, U+{ord(character[0]):04X}" in text_problem(f"a {character} dog")


def test_the_length_of_a_text_is_limited():
    assert "2,000,000 characters" in text_problem("a " * 1_000_000)


@pytest.mark.parametrize("text", ["é 😀 हिन्दी", "👩‍👩‍👧", "a\u200bb", "<pad> <eos> [BOS]", "\ufffd"])
def test_all_other_characters_are_text(text):
    assert text_problem(text) is None


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x.wav", "a/../../x.wav", "/etc/x.wav", "a\0.wav"),
        *("a\x1b[2Jb", "\ud800.png", "x" * 256, "ü" * 128, "x/" * 2048),
    ],
)
def test_names_outside_of_a_folder_or_that_no_file_can_have_are_refused(name):
    assert not is_file_name(name)
    row = Row(Path("t.csv"), 7, {"name": name})
    check_error(lambda: row.file_name("name"), "t.csv: line 7: name=", "is not a valid file name")


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "a b", "日本.png", "a/b/c.png", "..."])
def test_all_other_names_are_accepted(name):
    assert is_file_name(name)


def rows(path, columns=COLUMNS, **options) -> list[tuple[int, dict[str, str]]]:
    return [(row.line, row.cells) for row in read_csv(path, columns, **options)]


class TestCsv:
    @ENDS
    @MARKS
    def test_rows_have_the_columns_of_the_header_and_their_lines(self, file, mark, end):
        text = end.join(["", "fold , more, name", "", "1,x,ü", "", '2,,"a, b"', "", ""])
        assert rows(file(mark + text.encode())) == [
            (4, {"fold": "1", "more": "x", "name": "ü"}),
            (6, {"fold": "2", "more": "", "name": "a, b"}),
        ]

    def test_without_a_header_columns_are_in_order_and_comments_skipped(self, file):
        path = file('# made by "hand\na, "x,y"\n# more\nb,  z\n')
        expected = [(2, {"name": "a", "fold": "x,y"}), (4, {"name": "b", "fold": "z"})]
        assert rows(path, header=False, comment="#") == expected

    @pytest.mark.parametrize(
        "text",
        [
            'name;fold\n"a; b";1\n"say ""x""";2',
            '\ufeffsep=;\r\nfold;name\r\n1;"a; b"\r\n2;"say ""x"""\r\n',
            'Sep=|\nname|fold\na; b|1\n"say ""x"""|2\n',
            'name\tfold\n"a; b"\t1\n"say ""x"""\t2\n',
            'Name,FOLD\na; b,1\n"say ""x""",2\n',
            'name,fold,,\na; b,1,,\n"say ""x""",2,,\n',
            'name,fold\na; b,1,\n"say ""x""",2,\n',
            'name, "fold"\na; b, 1\n"say ""x""", "2"\n',
        ],
        ids=["semicolons", "Excel", "declared", "tabs", "capitals", "empty columns", "empty cells", "blanks"],
    )
    def test_tables_of_other_programs(self, file, text):
        cells = [cells for _, cells in rows(file(text))]
        assert cells == [{"name": "a; b", "fold": "1"}, {"name": 'say "x"', "fold": "2"}]

    def test_case_is_ignored_unless_that_is_ambiguous(self, file):
        assert rows(file("Name,name,fold\nx,a,1\n"), ["name"]) == [(2, {"Name": "x", "name": "a", "fold": "1"})]
        check_error(lambda: rows(file("Name,NAME,fold\nx,a,1\n")), "no column 'name'", "Name, NAME, fold")

    def test_only_required_columns_must_be_distinct(self, file):
        path = file("a,b,a,c,c\n1,2,3,4,5\n")
        check_error(lambda: rows(path, ["a"]), "duplicate column 'a'")
        assert [cells["b"] for _, cells in rows(path, ["b"])] == ["2"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no column 'name'; columns: none"),
            ("name,take\na,1\n", "no column 'fold'; columns: name, take"),
            ("name,fold\na,1\nb\n", "line 3: 1 cell for 2 columns"),
            ("name,fold\na,1,2\n", "line 2: 3 cells for 2 columns"),
            ('name,fold\n"a,1\n', "line 2: unexpected end of data"),
            ('name,fold\na,1\n"a"b,1\n', "line 3: "),
            ("name,fold\na,1\nb,1\n\na,2\n", "line 5: name='a' appears twice"),
        ],
    )
    def test_errors_name_the_file_and_the_line_or_column(self, file, text, message):
        path = file(text)
        check_error(lambda: rows(path, unique="name"), f"{path}: {message}")

    def test_rows_are_yielded_one_by_one(self, file):
        read = read_csv(file("name,fold\na,1\nb\n"), COLUMNS)
        assert next(read).cells == {"name": "a", "fold": "1"}
        with pytest.raises(UnreadableError, match="line 3"):
            next(read)

    @pytest.mark.parametrize("cell", ["1_0", "１", "0x1", "1.0", "", "9" * 5000])
    def test_integers_are_checked(self, cell):
        row = Row(Path("t.csv"), 3, {"n": cell, "m": " -7"})
        check_error(lambda: row.integer("n"), f"t.csv: line 3: n={cell[:40]!r} is not an integer")
        assert row.integer("m") == -7

    @pytest.mark.parametrize("cell", ["nan", "inf", "1e999", "-1", "", "x"])
    def test_times_are_checked(self, cell):
        row = Row(Path("t.csv"), 3, {"s": cell, "t": " 1.5"})
        check_error(lambda: row.seconds("s"), f"t.csv: line 3: s={cell!r} is not a number of seconds")
        assert row.seconds("t") == 1.5


class TestTsv:
    @ENDS
    @MARKS
    def test_marks_line_ends_and_empty_lines_change_nothing(self, file, mark, end):
        path = file(mark + end.join(["ü\tb\tmore\teven more", "", " c \u2028 c\t d ", " \t", ""]).encode())
        found = [(row.line, row["x"], row["y"]) for row in read_tsv(path, ("x", "y"))]
        assert found == [(1, "ü", "b"), (3, "c \u2028 c", "d")]

    def test_a_cell_may_be_empty_but_not_missing_or_repeated(self, file):
        cells = [row.cells for row in read_tsv(file("a\t\n\tb"), ("x", "y"))]
        assert cells == [{"x": "a", "y": ""}, {"x": "", "y": "b"}]
        path = file("a\tb\n\nc d\n")
        check_error(lambda: list(read_tsv(path, ("x", "y"))), f"{path}: line 3: no tab between x and y")
        file("a\tb\n\na\td\n")
        check_error(lambda: list(read_tsv(path, ("x", "y"), unique="x")), f"{path}: line 3: x='a' appears twice")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            # quoted by a program: everything, cells with a quote, cells with a comma
            ('"a"\t"b"\n"c"\t"d, e"\n', [("a", "b"), ("c", "d, e")]),
            ('a\t"say ""b"""\nc, d\te\n', [("a", 'say "b"'), ("c, d", "e")]),
            ('"a, b"\tc\nd\t"e, f"\n', [("a, b", "c"), ("d", "e, f")]),
            ('"a"\t"b\tc"\n"d"\t"e"\n', [("a", "b\tc"), ("d", "e")]),
            # part of the text: a lone quote, speech, a quoted text among others, a quote across the tab
            ('"a\tb\n"c"\t"d"\n', [('"a', "b"), ('"c"', '"d"')]),
            ('"a," b\tc\n"d, e"\tf\n', [('"a," b', "c"), ('"d, e"', "f")]),
            ('"a" "b"\tc\n', [('"a" "b"', "c")]),
            ('"a!"\tb\nc, d\te\n', [('"a!"', "b"), ("c, d", "e")]),
            ('"a, b"\tc\nd, e\tf\n', [('"a, b"', "c"), ("d, e", "f")]),
            ('"a,\tb"\nc\td\n', [('"a,', 'b"'), ("c", "d")]),
            ('5" pipe\ta\n', [('5" pipe', "a")]),
        ],
    )
    def test_quotes_are_removed_only_if_a_program_has_added_them(self, file, text, expected):
        assert [(row["x"], row["y"]) for row in read_tsv(file(text), ("x", "y"))] == expected


class TestJson:
    def test_values_and_lists_of_entries(self, file):
        (entry,) = JsonEntry.read(file('{"images": [{"name": "a/b.jpg", "id": 3}]}')).entries("images")
        assert entry.value("id", object) == 3
        assert entry.value("name", str) == entry.file_name("name") == "a/b.jpg"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "not JSON: Expecting value: line 1 column 1"),
            ('{"a":\n [1,}', "not JSON: Expecting value: line 2 column 5"),
            ("[" * 100_000, "not JSON: "),
            ('{"b": [{"a": 1, "c": 2, "a": 3}]}', "not JSON: key 'a' appears twice"),
            ("[]", "no key 'a'"),
            ("{}", "no key 'a'"),
            ('{"a": {}}', "a='{}' is not a list"),
            (f'{{"a": "{"x" * 1000}"}}', f"a='{'x' * 40}' is not a list"),
            ('{"a": [7]}', "a[0]: no key 'b'"),
            ('{"a": [{"b": []}, {"b": "x"}]}', "a[1]: b='x' is not a list"),
            ('{"a": [{"b": [{"c": 5}]}]}', "a[0].b[0]: c='5' is not a string"),
            ('{"a": [{"b": [{"c": "../x"}]}]}', "a[0].b[0]: c='../x' is not a valid file name"),
        ],
        ids=range(12),
    )
    def test_errors_name_the_file_and_the_place(self, file, text, message):
        path = file(text)
        check_error(
            lambda: [c.file_name("c") for a in JsonEntry.read(path).entries("a") for c in a.entries("b")],
            f"{path}: {message}",
        )

    @pytest.mark.parametrize("value", ["null", "true", "1.5", "[1]", '{"a": 1}'])
    def test_an_id_is_an_integer_or_a_string(self, file, value):
        check_error(lambda: JsonEntry.read(file(f'{{"id": {value}}}')).id("id"), "neither an integer nor a string")
        assert [JsonEntry.read(file(f'{{"id": {id}}}')).id("id") for id in ("7", '"7"', '"x"')] == ["7", "7", "x"]
