"""Datasets in a table of image files and labels: CSV, TSV and JSON lines."""

import os

import pytest
from helpers.image_folders import constant_image, write_folder

from resflax import UserError
from resflax.data.table import open_table, open_table_split

IMAGES = {f"images/{i}.png": constant_image(i) for i in range(8)}


@pytest.fixture
def write_table(tmp_path):
    """A function that writes a table beside `IMAGES` and returns its path."""
    write_folder(tmp_path, IMAGES)

    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def examples(source):
    """Returns the first pixel and the label of each example."""
    read = [source.read(i) for i in range(len(source))]
    return [(int(pixels[0, 0, 0]), label) for pixels, label in read]


ROWS = [("images/3.png", "dog"), ("images/1.png", "cat"), ("images/2.png", "dog")]
LINES = "\n".join(f"{path},{label}" for path, label in ROWS)
TABLES = {
    "CSV": f"path,label\n{LINES}\n",
    "other columns": f"Filename,Class\n{LINES}",
    "BOM and CRLF": f"\ufeffimage,target\n{LINES}\n".replace("\n", "\r\n"),
    "semicolons": f"file;label\n{LINES}".replace(",", ";"),
    "tabs": f"file\tlabel\n{LINES}".replace(",", "\t"),
    "quotes": 'file,label\n"images/3.png","dog"\nimages/1.png, cat \n"images/2.png",dog\n\n',
    "more columns": "id,label,path\n" + "\n".join(f"7,{label},{path}" for path, label in ROWS),
    "JSON lines": "\n".join(f'{{"label": "{label}", "file": "{path}"}}' for path, label in ROWS),
    "no header": LINES,
    "no header, label first": "\n".join(f"{label}\t{path}" for path, label in ROWS),
    "UTF-16": f"path\tlabel\n{LINES}\n".replace(",", "\t").encode("utf-16"),
    "JSON list": "[" + ",".join(f'{{"path": "{p}", "label": "{c}"}}' for p, c in ROWS) + "]",
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_table_without_splits_is_the_training_split(write_table, text):
    sources = open_table(write_table(text), "raise")
    assert examples(sources.train) == [(3, 1), (1, 0), (2, 1)]
    assert sources.train.classes == ("cat", "dog")
    assert (sources.validation, sources.test) == (None, None)
    assert "no column split: all of it is the training split" in sources.note


def test_integers_are_classes_in_their_order(write_table):
    text = "path,label\nimages/1.png,10\nimages/2.png,9\nimages/3.png,10\n"
    source = open_table(write_table(text), "raise").train
    assert (source.classes, examples(source)) == (("9", "10"), [(1, 1), (2, 0), (3, 1)])
    text = '{"path": "images/1.png", "label": 1.0}\n{"path": "images/2.png", "label": 0}'
    assert open_table(write_table(text, "t.jsonl"), "raise").train.classes == ("0", "1")
    text = "path,label\nimages/1.png,1.0\nimages/2.png,0.0\nimages/3.png,\n"  # as pandas writes
    assert open_table(write_table(text), "skip").train.classes == ("0", "1")
    text = "path,label\nimages/1.png,1.5\nimages/2.png,1.0\n"
    assert open_table(write_table(text), "raise").train.classes == ("1.0", "1.5")


def test_note_lists_what_is_not_used(write_table):
    rows = "images/0.png,a,1,train\nimages/1.png,b,0,train\nimages/2.png,a,1,\n"
    note = open_table(write_table(f"path,label,is_valid,split\n{rows}"), "raise").note
    assert note.endswith("train split train; not used: (empty); columns not used: is_valid")


def test_header_can_be_missing_with_splits(write_table):
    rows = [line for line in SPLITS.splitlines()[1:] if line.split(",")[1] and line[-1] != ","]
    sources = open_table(write_table("\n".join(rows)), "raise")
    assert sources.names == {"train": "train", "validation": "Valid", "test": "test"}


SPLITS = """path,label,split
images/0.png,cat,train
images/1.png,dog,train
images/2.png,cat,Valid
images/3.png,dog,Valid
images/4.png,dog,test
images/5.png,cat,test
images/6.png,,hidden
images/7.png,cat,
"""


def test_column_names_the_splits(write_table):
    file = write_table(SPLITS)
    sources = open_table(file, "raise")
    assert sources.names == {"train": "train", "validation": "Valid", "test": "test"}
    assert examples(sources.validation) == [(2, 0), (3, 1)]
    assert examples(sources.test) == [(4, 1), (5, 0)]
    assert sources.note.endswith("not used: (empty), hidden")
    for split, expected in (("", 4), ("val", 2), ("Valid", 2), ("train", 0)):
        assert examples(open_table_split(file, split, "raise"))[0][0] == expected
    chosen = open_table(file, "raise", {"train": "Valid", "validation": "train"})
    assert examples(chosen.train) == [(2, 0), (3, 1)]
    unlabeled = SPLITS.replace("4.png,dog", "4.png,").replace("5.png,cat", "5.png,")
    assert open_table(write_table(unlabeled), "raise").test is None


def test_paths_can_be_absolute_or_bytes(write_table, tmp_path):
    os.rename(tmp_path / "images" / "3.png", os.fsencode(tmp_path) + b"/images/caf\xe9\n.png")
    text = f'path,label\n{tmp_path}/images/1.png,a\n"images/caf\xe9\n.png",b\n'.encode("latin-1")
    source = open_table(write_table(text), "raise").train
    assert examples(source) == [(1, 0), (3, 1)]
    assert source.files[0][0] == "images/1.png"  # so that the fingerprint lacks the folder


GOOD = "path,label\nimages/0.png,a\nimages/1.png,b\n"
MANY = "path,label\n" + "".join(f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(8))
# Text, and the error.
ERRORS = {
    "no columns": ("0,a\n1,b\n", "has the columns 0, a: expected"),
    "four columns": ("images/0.png,a,b,c\n" * 2, "has the columns images/0.png, a, b, c: expected"),
    "no label": ("path\nimages/0.png\n", "has the columns path: expected a CSV, TSV or JSON"),
    "empty": ("", "has no rows: expected"),
    "too many values": (GOOD + "images/2.png,b,c\n", "has 3 values in line 4: expected 2"),
    "open quote": (GOOD + '"images/2.png,b\n', "cannot read the table"),
    "invalid JSON": ('{"path": "x", "label": "a"}\n{"path', "string starting at in line 2: expec"),
    "JSON of names": ('["images/0.png"]', "has 'images/0.png' in row 1"),
    "list of labels": ('{"path": "x", "label": ["a", "b"]}', r"has label \['a', 'b'\] in row 1"),
    "repeated": (GOOD + "images/0.png,b\n", "has more than one row for .*images/0.png"),
    "repeated, with two labels": (GOOD + "images/../images/0.png,b\n", "has more than one row for"),
    "repeated in another split": (
        "path,label,split\nimages/0.png,a,train\nimages/1.png,b,train\n./images/0.png,a,test\n",
        "has more than one row for .*images/0.png",
    ),
    "no path": (GOOD + ",b\n", "has no path in row 4"),
    "one class": ("path,label\nimages/0.png,a\n", "has 1 class 'a' in the column label"),
    "missing files": (MANY.replace("images/", "x/"), "4 of 4 files of class 'a' do not exist"),
    "class of test": (
        "path,label,split\nimages/0.png,a,train\nimages/1.png,b,train\nimages/2.png,B,test\n",
        "row 4 has the label 'B', which the training split lacks, but 'b', which differs only",
    ),
    "class of train": (
        "path,label,split\nimages/0.png,a,train\nimages/1.png,b,train\nimages/2.png,a,test\n",
        "has no images of class 'b', which the training split has",
    ),
    "no train": ("path,label,split\nimages/0.png,a,x\nimages/1.png,b,x\n", "no training split"),
    "two validation": (
        "path,label,split\nimages/0.png,a,train\nimages/1.png,b,val\nimages/2.png,a,dev\n",
        "has the splits dev and val, which could both be the validation split",
    ),
}


@pytest.mark.parametrize(("text", "message"), ERRORS.values(), ids=ERRORS)
def test_invalid_table_is_an_error_of_one_line(write_table, text, message):
    with pytest.raises(UserError, match=message) as e:
        open_table(write_table(text), "skip")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("row", ["images/9.png,a", "images/9\u2028.png,a", "images/7.png,"])
def test_single_row_raises_or_is_skipped(write_table, row):
    rows = MANY.replace("images/7.png,b\n", "")
    file = write_table(f"{rows}{row}\n")
    with pytest.raises(UserError, match=r"(does not exist|no label).*on_bad_example=skip") as e:
        open_table(file, "raise")
    assert len(str(e.value).splitlines()) == 1
    source = open_table(file, "skip").train
    assert (len(source), len(source.problems)) == (7, 1)


@pytest.mark.parametrize("name", ["none.csv", "images"])
def test_missing_table_is_an_error(write_table, tmp_path, name):
    with pytest.raises(UserError, match="cannot read the table .*: (No such file|Is a directory)"):
        open_table(tmp_path / name, "raise")


def test_missing_split_is_an_error(write_table):
    with pytest.raises(UserError, match="unknown split 'x': expected one of train, Valid, test"):
        open_table_split(write_table(SPLITS), "x", "raise")
    with pytest.raises(UserError, match="no column split: splits cannot be chosen"):
        open_table(write_table(GOOD), "raise", {"test": "x"})
