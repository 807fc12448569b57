"""The reader of raw tables: every row whole or named as bad, whatever wrote the file."""

import csv
import datetime
import gzip
import io
import json
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evenhand.cohorts.header import Row
from evenhand.cohorts.tables import TableReader
from evenhand.cohorts.values import BadRow
from evenhand.core.errors import UserError


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def taken(path: Path, **options: str) -> tuple[dict[int, Row], dict[int, str], list[str]]:
    """Whole rows and faults by number, and notes."""
    reader = TableReader(**options)
    rows = dict(reader.numbered(path))
    faults = {number: str(row) for number, row in rows.items() if isinstance(row, BadRow)}
    return {number: row for number, row in rows.items() if isinstance(row, dict)}, faults, reader.notes()


def refusal(path: Path, **options: str) -> str:
    with pytest.raises(UserError) as error:
        taken(path, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(path))
    return str(error.value).replace(str(path), path.name)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_whole_tables_are_as_the_csv_module_writes_and_reads_them(tmp_path, delimiter, end) -> None:
    cells = [["a.png", "f", "two\nlines"], ["b.png", "m", 'say "ah", a; b | c\td'], ["c.png", "", "plain"]]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["image", "sex", "text"], *cells])
    rows, faults, notes = taken(written(tmp_path, "t.csv", text.getvalue()))
    assert [list(row.values()) for row in rows.values()] == cells and list(rows) == [2, 3, 4]
    assert not faults and not notes


@pytest.mark.parametrize(
    ("text", "good", "faults"),
    [
        ("image,sex\na,f\nb\nc,m\n", [2, 4], {3: "1 of 2 cells: no value in column 'sex'; the row is cut short"}),
        ("image,cap\na,one, two\nb,x\n", [3], {2: "3 cells for 2 columns; quote cells that hold a comma"}),
        ("image;cap\na;one; two\nb;x\n", [3], {2: "3 cells for 2 columns; quote cells that hold a semicolon"}),
        ("image,,sex\na,x,f\nb,,m\n", [3], {2: "value 'x' in column 2, which has no name; name it in the header, or empty it"}),
        ("image,sex,,\na,f,,\nb,m\nc,f,,,,\nd,m,,,x\n", [2, 3, 4], {5: "5 cells for 2 columns; quote cells that hold a comma"}),
        ("image,sex,\na,f,\nb,m,x\n", [2], {3: "value 'x' in column 3, which has no name; name it in the header, or empty it"}),
    ],
)
def test_rows_of_too_many_or_too_few_cells_are_bad_and_the_others_are_read(tmp_path, text, good, faults) -> None:
    rows, found, _ = taken(written(tmp_path, "t.csv", text))
    assert list(rows) == good and found == faults


HINT = "close the quote, and double each quote inside a quoted cell"


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ('image,cap\na,x\nb,"open\nc,y\nd,z\n', [2, 4, 5], {3: f"a quote is opened and not closed: 'b,\"open'; {HINT}"}),
        ('image,cap\na,"open\nb,"closed"\nc,y\n', [3, 4], {2: f"a quote is opened and not closed: 'a,\"open'; {HINT}"}),
        ('image,cap\na,"halo" sign\nb,5" nodule\n', [3], {2: f"text beside the quotes of a cell: 'a,\"halo\" sign'; {HINT}"}),
        (
            'image,sex,cap\n1.png,m,"halo\n2.png,f,fine\n3.png,m,of 5"\n4.png,f,ok\n',
            [3, 4, 5],
            {2: "a quoted cell holds 2 lines that are rows themselves: '1.png'; close its quote"},
        ),
        (
            'cap,image\n"halo,a.png\nfine,b.PNG\nof 5",c.png\nok,d.png\n',
            [3, 4, 5],
            {2: "a quoted cell holds 2 lines that are rows themselves: 'halo,a.png\\nfine,b.PNG\\nof 5'; close its quote"},
        ),
    ],
)
def test_an_open_quote_costs_its_own_row_alone(tmp_path, text, good, bad) -> None:
    rows, faults, _ = taken(written(tmp_path, "t.csv", text))
    assert list(rows) == good and faults == bad


def test_reports_of_several_lines_with_commas_are_cells(tmp_path) -> None:
    report = "FINDINGS: heart normal, lungs clear\nIMPRESSION: none, really\n\nSigned, 3 May"
    path = tmp_path / "t.csv"
    pd.DataFrame({"image": ["a.png", "b.png"], "report": [report, "short"]}).to_csv(path, index=False)
    rows, faults, _ = taken(path)
    assert [row["report"] for row in rows.values()] == [report, "short"] and not faults


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ('image\tcap\na\t"halo\nb\tx\nc\ty\n', ['"halo', "x", "y"]),
        ('image\tcap\na\t"halo" sign\nb\tx\n', ['"halo" sign', "x"]),
        ('image\tcap\na\t"halo\nb\tx\nc\tof 5"\n', ['"halo', "x", 'of 5"']),  # two quotes that are not of one cell
        ('image\tcap\na\t"two\nlines"\nb\t"x\ty"\n', ["two\nlines", "x\ty"]),
        ('image\tcap\na\t"plain"\nb\tx\n', ["plain", "x"]),
    ],
)
def test_tabs_are_read_with_or_without_quoting(tmp_path, text, captions) -> None:
    rows, faults, _ = taken(written(tmp_path, "t.tsv", text))
    assert [row["cap"] for row in rows.values()] == captions and not faults


def test_a_name_that_stands_twice_is_refused(tmp_path) -> None:
    said = "column 'sex' stands twice in the header (columns 2 and 3); rename or remove one of the two"
    assert refusal(written(tmp_path, "t.csv", "image,sex, sex\na,f,\n")) == f"t.csv: {said}"
    book = openpyxl.Workbook()
    book.active.append(["image", "sex", "sex"])
    book.save(tmp_path / "t.xlsx")
    assert refusal(tmp_path / "t.xlsx") == f"t.xlsx: {said}"
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 3, names=["image", "sex", "sex"]), tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet") == f"t.parquet: {said}"
    _, faults, _ = taken(written(tmp_path, "t.jsonl", '{"image": "a"}\n{"image": "b", "image": ""}\n'))
    assert faults == {2: "key 'image' stands twice; keep one of the two"}


def test_blank_lines_and_empty_rows(tmp_path) -> None:
    rows, faults, notes = taken(written(tmp_path, "t.csv", "\nimage,sex\na,f\n\n,\n , \nb,m"))
    assert rows == {3: {"image": "a", "sex": "f"}, 7: {"image": "b", "sex": "m"}} and not faults  # as a spreadsheet counts
    assert notes == ["t.csv: 2 rows hold no value and were passed over"]


def test_comments_above_the_header(tmp_path) -> None:
    rows, _, _ = taken(written(tmp_path, "t.txt", "# exported in May, by hand\n#Image\tSex of patient\nimage\tsex\na\tf\n"))
    assert rows == {4: {"image": "a", "sex": "f"}}
    assert taken(written(tmp_path, "n.csv", "#,image\n1,a\n"))[0] == {2: {"#": "1", "image": "a"}}
    assert taken(written(tmp_path, "n.tsv", "#\timage\n1\ta\n"))[0] == {2: {"#": "1", "image": "a"}}


def test_stray_quotes_among_quoted_cells_of_two_lines(tmp_path) -> None:
    cell = '"up\nper"'
    text = f'image\tpart\tnote\na\t{cell}\t"halo\nb\t{cell}\thalo"\nc\t{cell}\tfine\nd\t{cell}\tfine\n'
    rows, faults, _ = taken(written(tmp_path, "t.tsv", text))
    assert faults and all(row["part"] == "up\nper" for row in rows.values()) and {"c", "d"} <= {row["image"] for row in rows.values()}


def test_the_row_numbers_of_pandas_and_r_are_no_column(tmp_path) -> None:
    pd.DataFrame({"image": ["a", "b"]}, index=[7, 9]).to_csv(tmp_path / "t.csv")
    assert [row for _, row in TableReader().good_rows(tmp_path / "t.csv")] == [{"image": "a"}, {"image": "b"}]
    assert TableReader().columns(written(tmp_path, "r.csv", '"","image"\n"1","a"\n')) == ["image"]


@pytest.mark.parametrize("text", ["sep=;\r\nimage;bmi\r\na;20,5\r\nb;1.234,25\r\nc;NA\r\n", "image\tbmi\na\t20,5\nb\t1.234,25\nc\t\n"])
def test_decimal_commas(tmp_path, text) -> None:
    path = written(tmp_path, "t.csv", text)
    rows, _, notes = taken(path)
    expected = pd.read_csv(path, sep="[;\t]", engine="python", decimal=",", thousands=".", skiprows=int(text.startswith("sep")))
    assert [float(row["bmi"]) for row in list(rows.values())[:2]] == expected["bmi"].tolist()[:2] == [20.5, 1234.25]
    assert list(rows) == [2, 3, 4] and notes == ["t.csv: decimal commas are read as points in bmi"]


def test_commas_that_are_no_decimal_signs_stay(tmp_path) -> None:
    rows, _, notes = taken(written(tmp_path, "t.csv", "image;views;size\na;1,2;20.5\nb;PA;3,5\n"))
    assert [(row["views"], row["size"]) for row in rows.values()] == [("1,2", "20.5"), ("PA", "3,5")] and not notes


def test_the_delimiter_is_the_one_that_rows_agree_with(tmp_path) -> None:
    rows, faults, _ = taken(written(tmp_path, "t.csv", 'image;age, years;cap\na;3;"x; y"\nb;4;c, d\n'))
    assert not faults and [list(row.values()) for row in rows.values()] == [["a", "3", "x; y"], ["b", "4", "c, d"]]
    rows, _, _ = taken(written(tmp_path, "t.tsv", "image,Finding|Labels\na,Mass|Nodule\n"))  # commas, whatever the name says
    assert rows == {2: {"image": "a", "Finding|Labels": "Mass|Nodule"}}
    rows, faults, _ = taken(written(tmp_path, "p.csv", 'n, prompt\n2, "skin, lesion"\n1, skin, lesion\n'))
    assert rows == {2: {"n": "2", "prompt": "skin, lesion"}} and list(faults) == [3]


def test_brackets_that_hold_a_comma_count_as_the_rows_count_them(tmp_path) -> None:
    two = taken(written(tmp_path, "t.csv", "image,Size[w,h],sex,\na,3,4,f,\n"))[0]
    assert two == {2: {"image": "a", "Size[w": "3", "h]": "4", "sex": "f"}}
    one = taken(written(tmp_path, "t.csv", "image,Size[w,h],sex,\na,3 x 4,f,\n"))[0]
    assert one == {2: {"image": "a", "Size[w,h]": "3 x 4", "sex": "f"}}


@pytest.mark.parametrize(
    ("codec", "note"),
    [
        *[(codec, None) for codec in ("utf-8", "utf-8-sig", "utf-16", "utf-32")],
        *[(codec, f"t.csv: read as {codec.upper()}, which it does not say itself") for codec in ("utf-16-le", "utf-16-be")],
        ("cp1252", "t.csv: not UTF-8, read as cp1252; where letters are wrong, name the encoding with --encoding"),
        ("latin-1", "t.csv: not UTF-8, read as cp1252; where letters are wrong, name the encoding with --encoding"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_encodings(tmp_path, codec, note, ending) -> None:
    data = "image,sex,caption\na,männlich,Röntgen 5\xa0µm – ok\n".replace("–", "-" if codec == "latin-1" else "–").encode(codec)
    path = written(tmp_path, f"t.csv{ending}", gzip.compress(data) if ending else data)
    rows, faults, notes = taken(path)
    assert rows[2]["sex"] == "männlich" and rows[2]["caption"].startswith("Röntgen 5\xa0µm") and not faults
    assert notes == ([note.replace("t.csv", path.name)] if note else [])


def test_the_encoding_that_is_named_counts(tmp_path) -> None:
    path = written(tmp_path, "t.csv", "image,sex\na,男性\n".encode("shift-jis"))
    assert taken(path, encoding="shift-jis")[0] == {2: {"image": "a", "sex": "男性"}}
    assert refusal(path, encoding="utf-8").startswith("t.csv: not utf-8 text (")
    marked = written(tmp_path, "m.csv", "image,sex\na,ä\n".encode("utf-8-sig"))
    assert taken(marked, encoding="utf-8")[0] == {2: {"image": "a", "sex": "ä"}}
    mixed = written(tmp_path, "x.csv", "image,sex\na,ä\n".encode() + b"b,\xe4\n")
    assert refusal(mixed) == "x.csv: UTF-8, but for some bytes (the first in line 3); mend them, or name the encoding with --encoding"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("t.csv", b"", "the file is empty; restore it or name another table"),
        ("t.csv", b"\n \n", "no header, only blank lines or comments; the first line names the columns"),
        ("t.csv", b"image,sex\na,f\n\0\0\0", "NUL bytes (the first in line 3): no text, or a damaged file; restore it"),
        ("t.csv", bytes(range(1, 256)) * 9, "control characters among its bytes: no text, or a damaged file; restore it"),
        ("t.csv", b"PK\x03\x04....", "an Excel workbook or a zip archive, not text; rename a workbook to .xlsx, unpack an archive"),
        ("t.csv", b"\n<!DOCTYPE html>\n<html>", "a web page, such as a login or an error page, not text; download the table again"),
        ("t.csv", b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS, not text; fetch the file itself with 'git lfs"),
        ("t.xls", b"\xd0\xcf\x11\xe0", "an old Excel workbook; open it and save it as .xlsx or CSV"),
        ("t.xlsx", b"\xd0\xcf\x11\xe0", "has a password, or is an old workbook (.xls); save it as .xlsx without a password, or as CSV"),
        ("t.pkl", b"\x80\x04K\x01.", "a pickle, which is never opened since it can run code; save its table as CSV"),
        ("t.ods", b"PK", "an OpenDocument table; save it as .xlsx or CSV"),
        ("t.dta", b"x", "a Stata file; save it as CSV from Stata or with pandas.read_stata"),
        ("t.csv.gz", b"image,sex\n", "not packed with gzip, as its name says; take .gz off its name, or restore it"),
        ("t.json", b'{"columns": ["image"], "data": [["a"]]}', "one object, with the keys columns, data; save it as an array of objects"),
        ("t.json", b'{\n "image": {"0": "a"}\n}', "neither JSON lines nor an array of objects; save it as an array of objects"),
        ("t.json", b"[1, 2", "not valid JSON (Expecting ',' delimiter: line 1 column 6 (char 5)); restore the file"),
        ("t.parquet", b"PAR1 is not all", "not a readable table (Parquet magic bytes not found in footer."),
    ],
)
def test_what_is_no_table_is_refused_with_its_remedy(tmp_path, name, data, said) -> None:
    assert refusal(written(tmp_path, name, data)).startswith(f"{name}: {said}")


def test_packed_text_unpacks_within_bounds(tmp_path) -> None:
    assert "unpacks to more than 32,000,000 bytes" in refusal(written(tmp_path, "t.csv.gz", gzip.compress(b"a,b\n" * 9_000_000, 1)))
    whole = gzip.compress(b"image,sex\na,f\n")
    assert taken(written(tmp_path, "T.CSV.GZ", whole))[0] == {2: {"image": "a", "sex": "f"}}
    assert refusal(written(tmp_path, "t.csv.gz", whole[:-9])).startswith("t.csv.gz: not a readable table (")


def test_long_cells_and_marks_within_a_file(tmp_path) -> None:
    long = "x" * 400_000
    assert taken(written(tmp_path, "t.csv", f"image,text\na,{long}\n"))[0][2]["text"] == long
    assert taken(written(tmp_path, "t.csv", "\ufeffimage,sex\n\ufeffa,f\n"))[0] == {2: {"image": "a", "sex": "f"}}


def test_json_lines_and_arrays(tmp_path) -> None:
    objects = [{"image": "a", "stage": 1.0, "meta": {"sex": "f"}}, {"image": "b", "sex": None, "ok": True}, {"image": "c", "meta": "text"}]
    lines = written(tmp_path, "t.jsonl", "".join(json.dumps(item) + "\n\n" for item in objects))
    array = written(tmp_path, "t.json", json.dumps(objects, indent=1))
    renamed = written(tmp_path, "lines.json", lines.read_bytes())
    for path, numbers in ((lines, [1, 3, 5]), (array, [1, 2, 3]), (renamed, [1, 3, 5])):
        rows, faults, _ = taken(path)
        assert list(rows) == numbers and not faults and TableReader().columns(path) == ["image", "stage", "meta", "sex", "ok"]
        assert list(rows.values()) == [
            {"image": "a", "stage": "1", "sex": "", "ok": ""},  # what is nested is no cell, and missed only where it is needed
            {"image": "b", "stage": "", "meta": "", "sex": "", "ok": "True"},
            {"image": "c", "stage": "", "meta": "text", "sex": "", "ok": ""},
        ]
        needed = dict(TableReader().numbered(path, ("image", "meta")))
        assert str(needed[1]) == "column 'meta' holds nested values or bytes; write them as plain columns"
        assert isinstance(needed[numbers[1]], dict)
    _, faults, _ = taken(written(tmp_path, "t.jsonl", '{"image": "a"}\nnull\n{"image"\n' + '{"image": ' + "[" * 100_000))
    assert list(faults) == [2, 3, 4] and faults[2] == "not a JSON object; each line is one image's columns"


def test_workbooks(tmp_path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (
        [],
        ["image", "stage", "day", "ok", "bmi"],
        ["a", 1.0, datetime.datetime(2020, 1, 2), True, 20.5],
        [],
        ["b", None, datetime.datetime(2020, 1, 2, 3), False, "#N/A"],
        ["c", 2, None, None, None, "a remark"],
        ["d", "=B3"],
    ):
        sheet.append(row)
    book.create_sheet("legend").append(["stage", "meaning"])
    book.create_sheet("empty")
    book.save(tmp_path / "t.xlsx")
    rows, faults, notes = taken(tmp_path / "t.xlsx")
    assert rows == {
        3: {"image": "a", "stage": "1", "day": "2020-01-02", "ok": "True", "bmi": "20.5"},
        5: {"image": "b", "stage": "", "day": "2020-01-02 03:00:00", "ok": "False", "bmi": "#N/A"},
    }
    assert faults == {
        6: "value 'a remark' in column 6, which has no name; name it in the header, or empty it",
        7: "formula '=B3' has no stored result; open the workbook in Excel and save it",
    }
    assert notes == [
        "t.xlsx: sheet 'Sheet' is read, and not 'legend'; save the one that is wanted on its own",
        "t.xlsx: 1 rows hold no value and were passed over",
    ]


def test_merged_cells_and_hidden_sheets(tmp_path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["image", "age\nin years", "sex"], ["a", 40, "f"], ["b"], ["c", 50, "m"], ["d", 60, None]):
        sheet.append(row)
    for cells in ("B2:B3", "C2:C3", "B5:C5"):
        sheet.merge_cells(cells)
    book.create_sheet("lists", 0).append(["f", "m"])
    book["lists"].sheet_state = "hidden"
    book.save(tmp_path / "t.xlsx")
    rows, faults, notes = taken(tmp_path / "t.xlsx")
    assert [list(row.values()) for row in rows.values()] == [["a", "40", "f"], ["b", "40", "f"], ["c", "50", "m"], ["d", "60", ""]]
    assert not faults and TableReader().columns(tmp_path / "t.xlsx") == ["image", "age in years", "sex"]
    assert "t.xlsx: 2 merged cells hold their value in each of their rows" in notes


def test_parquet(tmp_path) -> None:
    columns = {
        "image": pa.array(["a", "b"]),
        "kind": pa.array(["x", None]).dictionary_encode(),
        "stage": pa.array([1.0, np.nan]),
        "grade": pa.array([2, None]),
        "width": pa.array([20.1, 3.0], pa.float32()),
        "ok": pa.array([True, None]),
        "text": pa.array([b"old writers", None]),
        "day": pa.array([datetime.datetime(2020, 1, 2)] * 2),
        "struct": pa.array([{"bytes": b"\xff"}] * 2),
        "bytes": pa.array([b"\xff\xd8", b"\xff"]),
        "list": pa.array([[1], [2]]),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    rows, faults, _ = taken(tmp_path / "t.parquet")
    day = {"day": "2020-01-02"}
    assert rows == {
        1: {"image": "a", "kind": "x", "stage": "1", "grade": "2", "width": "20.1", "ok": "True", "text": "old writers", **day},
        2: {"image": "b", "kind": "", "stage": "", "grade": "", "width": "3", "ok": "", "text": "", **day},
    }
    assert not faults and TableReader().columns(tmp_path / "t.parquet") == list(columns)
    for name in ("struct", "bytes", "list"):
        first = next(TableReader().rows(tmp_path / "t.parquet", (name,)))[1]
        assert str(first) == f"column {name!r} holds nested values or bytes; write them as plain columns"


def test_a_table_of_which_every_row_is_needed_stops_at_the_first_bad_one(tmp_path) -> None:
    path = written(tmp_path, "t.csv", "subject_id,sex\np1,f\np2,m,x\n")
    with pytest.raises(UserError) as error:
        list(TableReader().good_rows(path))
    assert str(error.value) == f"{path} row 3: 3 cells for 2 columns; quote cells that hold a comma"
