"""`resflax predict`: predictions and features of image files."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import run_command
from helpers.networks import apply
from helpers.weight_files import write_timm_folder
from PIL import Image

from resflax import UserError, load_pretrained
from resflax.cli.contact_sheet import open_contact_sheet
from resflax.cli.image_outputs import OutputBatch, Prediction, top_predictions
from resflax.cli.output_files import COLUMNS, open_predictions

NAMES = ("cat", "dog, large", "bird", "fish", "frog", "horse", "ship")
PHOTOS = ("a/0.png", "a/1.jpg", "a/2.png", "b/3.png", "b/4.png", "b/c/5.png")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    write_timm_folder(root / "color", labels=NAMES)
    write_timm_folder(root / "gray", labels=NAMES, channels=1)
    write_timm_folder(root / "headless")
    write_timm_folder(root / "unnamed", classes=7)
    return root


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of images of mixed sizes, and a file that is not an image."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(PHOTOS):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (20 + 3 * i, 41 - 5 * i, 3) if i else (30, 30)  # the first is gray
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    (tmp_path / "bad.png").write_bytes(b"hello")
    monkeypatch.chdir(tmp_path)
    return [f"photos/{name}" for name in PHOTOS]


def expected_probabilities(network, paths):
    """Returns the softmax, in float64, of the logits that `model.apply` gives image by image."""
    model, variables, preprocess, *_ = load_pretrained(network)
    logits = [apply(model, variables, preprocess(path)[None])[0] for path in paths]
    exponentials = np.exp(np.array(logits, np.float64))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def read_lines(capsys):
    """Returns the lines of stdout after the two that name the weights and the backend."""
    return capsys.readouterr().out.splitlines()[2:]


def read_csv(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
        assert tuple(rows[0]) == COLUMNS
    return [
        (r["path"], int(r["rank"]), int(r["label"]), r["class"], float(r["probability"]))
        for r in rows
    ]


def assert_predictions(rows, paths, probabilities, names, top):
    assert [row[:2] for row in rows] == [(p, k) for p in paths for k in range(1, top + 1)]
    best = np.argsort(-probabilities, axis=1)[:, :top]
    assert [row[2] for row in rows] == best.ravel().tolist()
    assert [row[3] for row in rows] == [names[i] for i in best.ravel()]
    expected = np.take_along_axis(probabilities, best, axis=1).ravel()
    np.testing.assert_allclose([row[4] for row in rows], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "names"), [("color", NAMES), ("gray", NAMES)])
def test_csv_has_the_softmax_of_the_logits(networks, photos, capsys, network, names):
    where = str(networks / network)
    assert run_command("predict", "photos", f"--weights={where}", "--out=p.csv", "--top=3") == 0
    source, inference, wrote = capsys.readouterr().out.splitlines()
    assert str(where) in source
    assert inference.startswith("inference: ")
    assert wrote == "wrote p.csv: 6 images"
    assert_predictions(read_csv("p.csv"), photos, expected_probabilities(where, photos), names, 3)


@pytest.mark.slow
def test_outputs_do_not_depend_on_batches_or_format(networks, photos):
    weights = f"--weights={networks / 'color'}"
    assert run_command("predict", "photos", weights, "--out=all.csv") == 0
    arguments = ["--batch-size=4", "--num-workers=1"]  # two batches of three images
    patterns = ["photos/a", weights, "photos/b/**/*"]  # options between paths
    assert run_command("predict", *patterns, "--out=b.jsonl", *arguments) == 0
    rows = read_csv("all.csv")
    objects = [json.loads(line) for line in Path("b.jsonl").read_text().splitlines()]
    assert [o["path"] for o in objects] == photos
    flat = [(o["path"], *p.values()) for o in objects for p in o["predictions"]]
    assert [row[:4] for row in flat] == [row[:4] for row in rows]
    np.testing.assert_allclose([r[4] for r in flat], [r[4] for r in rows], rtol=1e-4)
    assert [*objects[0]["predictions"][0]] == list(COLUMNS[1:])


@pytest.mark.slow
def test_table_of_few_images_lists_all_predictions(networks, photos, capsys):
    weights = f"--weights={networks / 'unnamed'}"
    assert run_command("predict", photos[3], photos[3], weights, "--top=99") == 0
    probabilities = expected_probabilities(networks / "unnamed", photos[3:4])[0]
    best = np.argsort(-probabilities)
    block = [photos[3], *(f"  {probabilities[i]:7.2%}  class {i}" for i in best)]
    assert read_lines(capsys) == 2 * block


@pytest.mark.slow
def test_table_of_many_images_has_one_line_each(networks, photos, tmp_path, capsys):
    Path("labels.txt").write_text("\n".join(f"label {i}" for i in range(7)))
    arguments = [*photos, *photos, f"--weights={networks / 'color'}", "--labels=labels.txt"]
    assert run_command("predict", *arguments) == 0
    lines = read_lines(capsys)
    probabilities = expected_probabilities(networks / "color", photos)
    for line, path, row in zip(lines, 2 * photos, [*probabilities, *probabilities], strict=True):
        assert line == f"{path:16}  {row.max():7.2%}  label {row.argmax()}"


def read_features(path):
    """Returns the paths and the features in a file."""
    if path.endswith(".npz"):
        with np.load(path) as arrays:
            return arrays["paths"].tolist(), arrays["features"]
    if path.endswith(".csv"):
        with open(path, newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["path", *(f"feature_{i}" for i in range(64))]
        return [row[0] for row in rows], np.array([row[1:] for row in rows], np.float32)
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(path)
    assert table.column_names == ["path", "features"]
    return table["path"].to_pylist(), np.array(table["features"].to_pylist(), np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["f.npz", "f.csv", "f.parquet"])
def test_features_are_those_before_the_head(networks, photos, capsys, name):
    weights = f"--weights={networks / 'headless'}"
    assert run_command("predict", "photos", weights, f"--features={name}", "--batch-size=4") == 0
    assert read_lines(capsys) == [f"wrote {name}: 6 images"]
    paths, features = read_features(name)
    assert paths == photos
    model, variables, preprocess, *_ = load_pretrained(networks / "headless")
    expected = [np.asarray(apply(model, variables, preprocess(path)[None])[0]) for path in photos]
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_features_with_predictions_and_sheet_in_one_call(networks, photos, capsys):
    weights = f"--weights={networks / 'color'}"
    outputs = ["--features=f.npz", "--out=p.csv", "--sheet=s.png"]
    assert run_command("predict", "photos", weights, *outputs) == 0
    wrote = [f"wrote {name}: 6 images" for name in ("p.csv", "f.npz", "s.png")]
    assert read_lines(capsys) == wrote
    probabilities = expected_probabilities(networks / "color", photos)
    assert_predictions(read_csv("p.csv"), photos, probabilities, NAMES, 5)
    assert read_features("f.npz")[1].shape == (6, 64)
    with Image.open("s.png") as sheet:
        assert min(sheet.size) > 300


def test_contact_sheet_shows_64_images_evenly(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "resflax.cli.contact_sheet.draw", lambda cells, path, title: drawn.append((cells, title))
    )
    with open_contact_sheet(tmp_path / "s.png", 256) as add:
        for start in range(0, 256, 32):
            indices = list(range(start, start + 32))
            pixels = np.array(indices, np.uint8).reshape(-1, 1, 1, 1)
            top = [[Prediction(1, i, f"class {i}", 0.5)] for i in indices]
            add(
                OutputBatch(
                    [""] * 32, indices, pixels, np.zeros((32, 0), np.float32), top, [None] * 32
                )
            )
    [(cells, title)] = drawn
    assert title == "64 of 256 images, 192 left out"
    assert [int(pixels[0, 0, 0]) for pixels, _ in cells] == list(range(0, 256, 4))
    assert [best.label for _, best in cells] == list(range(0, 256, 4))


def test_contact_sheet_that_cannot_be_written_is_named(tmp_path):
    top = [[Prediction(1, 0, "cat", 0.5)]]
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    batch = OutputBatch(["a.png"], [0], pixels, np.zeros((1, 0), np.float32), top, [None])
    with (
        pytest.raises(UserError, match=r"none/s.png cannot be written: No such file.*--sheet"),
        open_predictions(tmp_path / "p.csv"),
        open_contact_sheet(tmp_path / "none" / "s.png", 1) as add,
    ):
        add(batch)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_file_names_that_are_not_utf8_are_written(networks, photos):
    name, escaped = b"photos/caf\xe9.png", rb"photos/caf\xe9.png"
    os.rename(photos[0], name)
    weights = f"--weights={networks / 'color'}"
    arguments = [sys.executable, "-m", "resflax", "predict", name, weights]
    for out in ([], ["--out=p.csv", "--features=f.csv"]):
        table = subprocess.run([*arguments, *out], check=True, capture_output=True).stdout
        assert escaped in (Path("p.csv").read_bytes() if out else table)
    assert Path("f.csv").read_bytes().splitlines()[1].startswith(escaped + b",")


@pytest.mark.slow
def test_unreadable_images_are_skipped_and_listed(networks, photos, capsys):
    truncated = Path(photos[2]).read_bytes()[:200]
    Path(photos[2]).write_bytes(truncated)
    arguments = ["bad.png", "photos", f"--weights={networks / 'color'}", "--out=p.csv"]
    assert run_command("predict", *arguments, "--on-bad-example=skip") == 0
    wrote, skipped, *problems = read_lines(capsys)
    assert wrote == "wrote p.csv: 5 images"
    assert skipped == "skipped 2 of 7 images:"
    assert re.match("  bad.png: is not a readable image", problems[0])
    assert re.match("  photos/a/2.png: is not a readable image", problems[1])
    readable = [path for path in photos if path != photos[2]]
    assert [row[0] for row in read_csv("p.csv") if row[1] == 1] == readable
    # A file whose header is fine is found when its pixels are decoded: nothing is written.
    Path("p.csv").unlink()
    assert run_command("predict", *arguments[1:]) == 2
    error = capsys.readouterr().err
    assert re.match("error: photos/a/2.png: is not a readable image .*--on-bad-example", error)
    assert error.count("\n") == 1
    assert not [*Path().glob("p.csv*")]


ERRORS = {
    "no paths": (["--weights={0}/color"], "the following arguments are required: PATH"),
    "no weights": (["photos"], "the following arguments are required: --weights"),
    "missing image": (["no.png", "--weights={0}/color"], "image not found: no.png"),
    "not an image": (["bad.png", "--weights={0}/color"], "bad.png: is not a readable image"),
    "no image at all": (
        ["bad.png", "--weights={0}/color", "--on-bad-example=skip", "--out=p.csv"],
        "none of the 1 files is a readable image",
    ),
    "empty glob": (["photos/*.gif", "--weights={0}/color"], "no file matches photos/*.gif"),
    "folder without images": (["{0}/color", "--weights={0}/color"], "color contains no images"),
    "missing labels": (["photos", "--weights={0}/color", "--labels=no"], "cannot read the labels"),
    "labels that are not text": (
        ["photos", "--weights={0}/color", "--labels=photos/a/0.png"],
        "cannot read the labels in photos/a/0.png: it is not UTF-8: expected a text file with one",
    ),
    "wrong labels": (
        ["photos", "--weights={0}/color", "--labels={0}/color/config.json"],
        "config.json has 1 labels: expected 7, one per class",
    ),
    "no head": (
        ["photos", "--weights={0}/headless"],
        "headless has no classification head: expected weights with one, or only --features=FILE",
    ),
    "no head for the sheet": (
        ["photos", "--weights={0}/headless", "--features=f.npz", "--sheet=s.png"],
        "has no classification head",
    ),
    "missing folder of out": (
        ["photos", "--weights={0}/color", "--out=no/p.csv"],
        "--out is no/p.csv: the folder no does not exist",
    ),
    "unknown suffix of out": (
        ["photos", "--weights={0}/color", "--out=p.txt"],
        "--out is p.txt: expected a name ending in .csv or .jsonl or .parquet",
    ),
    "unknown suffix of features": (
        ["photos", "--weights={0}/color", "--features=f.npy"],
        "--features is f.npy: expected a name ending in .npz or .csv or .parquet",
    ),
    "unknown suffix of sheet": (
        ["photos", "--weights={0}/color", "--sheet=s.jpg"],
        "--sheet is s.jpg: expected a name ending in .png",
    ),
    "unknown weights": (["photos", "--weights=none/at/all"], "none/at/all"),
    "other model's weights": (
        ["photos", "--weights={0}/color", "--model=resnet18"],
        "not a state dict of resnet18: ",
    ),
    "top 0": (["photos", "--weights={0}/color", "--top=0"], "--top is 0: expected 1 or more"),
    "batch size 0": (["photos", "--weights=x", "--batch-size=0"], "--batch-size is 0"),
    "many threads": (["photos", "--weights=x", "--num-workers=9999"], "expected 1 to 1024"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_and_write_nothing(networks, photos, capsys, case):
    arguments, message = ERRORS[case]
    before = sorted(Path().rglob("*"))
    assert run_command("predict", *(argument.format(networks) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


@pytest.mark.slow
def test_interrupt_leaves_no_file(networks, photos, monkeypatch, capsys):
    batches = []

    def interrupt_after_one(row, classes, top):
        batches.append(row)
        if len(batches) > 2:
            raise KeyboardInterrupt
        return top_predictions(row, classes, top)

    monkeypatch.setattr("resflax.cli.image_outputs.top_predictions", interrupt_after_one)
    before = sorted(Path().rglob("*"))
    outputs = ["--out=p.csv", "--features=f.csv", "--sheet=s.png", "--batch-size=2"]
    assert run_command("predict", "photos", f"--weights={networks / 'color'}", *outputs) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert sorted(Path().rglob("*")) == before


def test_parquet_without_pyarrow_names_the_extra(networks, photos, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    arguments = ["photos", f"--weights={networks / 'color'}", "--features=f.parquet"]
    assert run_command("predict", *arguments) == 2
    assert 'pip install "resflax[parquet]"' in capsys.readouterr().err


def test_outputs_do_not_overwrite_inputs_or_each_other(networks, photos, capsys):
    for options, message in (
        ([f"--sheet={photos[0]}"], f"--sheet is {photos[0]}, which is the input {photos[0]}"),
        (["--out=x.csv", "--features=x.csv"], "which is the value of --out"),
    ):
        before = Path(photos[0]).read_bytes()
        assert run_command("predict", *photos, f"--weights={networks / 'color'}", *options) == 2
        assert message in capsys.readouterr().err
        assert Path(photos[0]).read_bytes() == before
        assert not Path("x.csv").exists()
