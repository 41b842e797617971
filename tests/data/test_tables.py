import re
from pathlib import Path

import pytest

from perceiver.data.files import UnreadableError
from perceiver.data.tables import Row, is_file_name, read_rows

COLUMNS = ["name", "fold"]


@pytest.fixture
def table(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "table.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def rows(path, columns=COLUMNS, **options) -> list[tuple[int, dict[str, str]]]:
    return [(row.line, row.cells) for row in read_rows(path, columns, **({"header": True} | options))]


def test_rows_come_by_the_names_of_the_header_with_their_lines(table):
    path = table("fold,more,name\n1,x,a\n2,y,b\n")
    assert rows(path) == [
        (2, {"fold": "1", "more": "x", "name": "a"}),
        (3, {"fold": "2", "more": "y", "name": "b"}),
    ]


def test_without_a_header_columns_are_named_in_order(table):
    assert rows(table("a,1\nb,2"), header=False) == [(1, {"name": "a", "fold": "1"}), (2, {"name": "b", "fold": "2"})]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
def test_marks_line_ends_and_empty_lines_change_nothing(table, mark, end):
    text = end.join(["", "name , fold", "", "ü,1", "", '"a, b",2', "", ""])
    path = table(mark + text.encode())
    assert rows(path) == [(4, {"name": "ü", "fold": "1"}), (6, {"name": "a, b", "fold": "2"})]


def test_quotes_may_stand_behind_blanks_and_comments_between_lines(table):
    path = table('# made by "hand\na, "x,y"\n# more\nb,  z\n')
    options = {"header": False, "comment": "#"}
    assert rows(path, **options) == [(2, {"name": "a", "fold": "x,y"}), (4, {"name": "b", "fold": "z"})]


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
    ids=["semicolons", "of Excel", "stated", "tabs", "capitals", "empty columns", "empty cells", "blanks"],
)
def test_tables_as_other_programs_write_them(table, text):
    assert [cells for _, cells in rows(table(text))] == [
        {"name": "a; b", "fold": "1"},
        {"name": 'say "x"', "fold": "2"},
    ]


def test_columns_that_differ_in_capitals_only_are_told_apart(table):
    assert rows(table("Name,name,fold\nx,a,1\n"), ["name"]) == [(2, {"Name": "x", "name": "a", "fold": "1"})]
    with pytest.raises(UnreadableError, match=r"there is no column 'name'; there are: Name, NAME, fold$"):
        rows(table("Name,NAME,fold\nx,a,1\n"))


def test_a_table_is_read_row_by_row(table):
    read = read_rows(table("name,fold\na,1\nb\n"), COLUMNS, header=True)
    assert next(read).cells == {"name": "a", "fold": "1"}
    with pytest.raises(UnreadableError, match="line 3"):
        next(read)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no column 'name'; there are: none$"),
        ("name,take\na,1\n", "there is no column 'fold'; there are: name, take$"),
        ("name,fold\na,1\nb\n", "line 3: 1 cell for 2 columns$"),
        ("name,fold\na,1,2\n", "line 2: 3 cells for 2 columns$"),
        ('name,fold\n"a,1\n', "line 2: unexpected end of data$"),
        ('name,fold\na,1\n"a"b,1\n', "line 3: .*expected after"),
        ("name,fold\nä,1\n".encode("latin1"), "not text in UTF-8$"),
        ("name,fold\n".encode("utf-16"), "not text in UTF-8$"),
    ],
)
def test_what_is_no_such_table_is_refused_with_its_name_and_the_place(table, text, message):
    path = table(text)
    with pytest.raises(UnreadableError, match=f"^{path}: {message}"):
        rows(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/x.csv: no such file$"):
        rows(tmp_path / "x.csv")
    with pytest.raises(UnreadableError, match=f"^{tmp_path}: Is a directory$"):
        rows(tmp_path)


def test_whole_numbers_and_names_of_files_are_checked(tmp_path):
    row = Row(tmp_path / "t.csv", 7, {"fold": "3", "bad": "3.5", "name": "a/b.wav"})
    assert row.integer("fold") == 3
    assert row.file_name("name") == "a/b.wav"
    with pytest.raises(UnreadableError, match=f"^{tmp_path}/t.csv: line 7: bad='3.5' is not a whole number$"):
        row.integer("bad")


@pytest.mark.parametrize("name", ["", ".", "..", "../x.wav", "a/../../x.wav", "/etc/x.wav", "a\0.wav"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(UnreadableError, match=r"line 7: name=.* is not a name of a file"):
        Row(tmp_path / "t.csv", 7, {"name": name}).file_name("name")


@pytest.mark.parametrize("name", ["a\0b", "a\x1b[2Jb", "\ud800.png", "x" * 256, "ü" * 128, "x/" * 2048])
def test_a_name_that_no_file_can_have_is_none(name):
    assert not is_file_name(name)


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "a b", "日本.png", "a/b/c.png", "..."])
def test_any_other_name_may_be_one(name):
    assert is_file_name(name)


@pytest.mark.parametrize("cell", ["1_0", "１", "0x1", "1.0", "", "9" * 5000])
def test_what_is_no_whole_number_is_told_in_short(cell):
    with pytest.raises(UnreadableError, match=rf"^t\.csv: line 3: n='{re.escape(cell[:40])}' is not a whole number$"):
        Row(Path("t.csv"), 3, {"n": cell}).integer("n")


@pytest.mark.parametrize("cell", ["nan", "inf", "1e999", "-1", "", "x"])
def test_a_time_is_a_number_from_0_on(cell):
    with pytest.raises(UnreadableError, match=rf"^t\.csv: line 3: s='{cell}' is not a number of seconds$"):
        Row(Path("t.csv"), 3, {"s": cell}).seconds("s")
    assert Row(Path("t.csv"), 3, {"s": " 1.5"}).seconds("s") == 1.5


def test_a_column_that_is_wanted_is_there_once(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,a,c,c\n1,2,3,4,5\n")
    with pytest.raises(UnreadableError, match=r"t\.csv: there are two columns 'a'$"):
        list(read_rows(tmp_path / "t.csv", ("a",), header=True))
    assert [row["b"] for row in read_rows(tmp_path / "t.csv", ("b",), header=True)] == ["2"]
